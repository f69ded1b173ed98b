//! The guest's life: start, stop, reset, power button, the end.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Answer, Effect, Later, Machine, Refusal, State, done};
use crate::fake::behaviour::{Boot, PowerButton};
use crate::fake::human::Chipset;
use crate::fake::serial;

impl Machine {
    /// The first moment: processors run unless the line said `-S`.
    pub(in crate::fake) fn begin(&mut self, is_held: bool) {
        let behaviour = self.behaviour.clone();
        let own_doing = [
            (behaviour.crash, Later::Crash),
            (behaviour.eat, Later::Eats),
            (behaviour.off, Later::SwitchesOff { boot: 0 }),
            (behaviour.reboot, Later::Reboots),
            (behaviour.requests.stick_after(), Later::RequestsStick),
        ];
        for (delay, later) in own_doing {
            if let Some(delay) = delay {
                self.after(delay, later);
            }
        }
        if !is_held {
            self.state = State::Running;
            self.power_on();
        }
    }

    /// What was announced with [`Effect::After`] happens.
    pub(in crate::fake) fn happen(&mut self, later: Later) {
        match later {
            Later::OsTakesOver { boot } if boot == self.boot => self.os_takes_over(),
            Later::SwitchesOff { boot } if boot == self.boot => self.switch_off(),
            Later::OsTakesOver { .. } | Later::SwitchesOff { .. } => {}
            Later::Reboots => drop(self.reset("guest-reset", true)),
            Later::DeviceGone { id } => self.let_go(&id),
            Later::Mirrored { id } => self.mirrored(&id),
            Later::Completed { id } => self.completed(&id),
            Later::Crash => std::process::abort(),
            Later::Ends => self.effects.push(Effect::Exit),
            Later::Eats => eat(),
            Later::RequestsStick => self.requests.stick(),
        }
    }

    pub(super) fn status(&self) -> Value {
        let status = match self.state {
            State::Prelaunch => "prelaunch",
            State::Running => "running",
            State::Paused => "paused",
            State::Shutdown | State::Ending => "shutdown",
        };
        json!({ "status": status, "running": self.state == State::Running })
    }

    pub(super) fn chipset(&self) -> Chipset {
        Chipset {
            os_runs: self.os_runs,
            button_enabled: self.os_runs,
            button_pressed: self.button_pressed,
            mapped: self.state != State::Prelaunch,
        }
    }

    pub(super) fn stop(&mut self) -> Answer {
        if self.state == State::Running {
            self.state = State::Paused;
            self.event("STOP", None);
        }
        done()
    }

    pub(super) fn cont(&mut self) -> Answer {
        match self.state {
            State::Running => {}
            State::Shutdown | State::Ending => {
                return Err(Refusal::generic("Resetting the Virtual Machine is required"));
            }
            State::Paused => {
                self.resume();
                if std::mem::take(&mut self.button_pressed) {
                    self.os_takes_press();
                }
            }
            State::Prelaunch => {
                self.resume();
                self.power_on();
            }
        }
        done()
    }

    pub(super) fn quit(&mut self) -> Answer {
        self.end("host-qmp-quit");
        done()
    }

    /// A signal asked QEMU to end.
    pub(in crate::fake) fn terminate(&mut self) {
        self.end("host-signal");
    }

    fn end(&mut self, reason: &str) {
        self.event("SHUTDOWN", Some(json!({ "guest": false, "reason": reason })));
        match self.behaviour.end {
            Duration::ZERO => self.effects.push(Effect::Exit),
            end => {
                self.state = State::Ending;
                self.after(end, Later::Ends);
            }
        }
    }

    pub(super) fn reset(&mut self, reason: &str, guest: bool) -> Answer {
        self.boot += 1;
        let agent_listened = self.agent_listens();
        self.os_runs = false;
        self.button_pressed = false;
        self.requests.end();
        self.event("RESET", Some(json!({ "guest": guest, "reason": reason })));
        if agent_listened {
            self.agent_port_moves(false);
        }
        for id in self.leaving() {
            self.let_go(&id);
        }
        match self.state {
            State::Running => self.power_on(),
            _ => self.state = State::Prelaunch,
        }
        done()
    }

    pub(super) fn press_power_button(&mut self) -> Answer {
        self.event("POWERDOWN", None);
        match (self.os_runs, self.state) {
            (true, State::Running) => self.os_takes_press(),
            (true, State::Paused) => self.button_pressed = true,
            _ => {}
        }
        done()
    }

    fn resume(&mut self) {
        self.state = State::Running;
        self.event("RESUME", None);
    }

    fn power_on(&mut self) {
        self.console(serial::FIRMWARE);
        let boot = self.boot;
        match self.behaviour.boot {
            Boot::FirmwareOnly => self.console(serial::SHELL),
            Boot::OsAfter(delay) if delay.is_zero() => self.os_takes_over(),
            Boot::OsAfter(delay) => self.after(delay, Later::OsTakesOver { boot }),
        }
    }

    fn os_takes_over(&mut self) {
        self.os_runs = true;
        let text = self.behaviour.text.clone();
        self.console(serial::KERNEL);
        self.console(&text);
        if self.agent_listens() {
            self.agent_port_moves(true);
        }
    }

    fn agent_port_moves(&mut self, open: bool) {
        if let Some((id, _)) = self.agent_port() {
            let data = json!({ "open": open, "id": id });
            self.event("VSERPORT_CHANGE", Some(data));
        }
    }

    fn os_takes_press(&mut self) {
        if let PowerButton::OffAfter(delay) = self.behaviour.power_button {
            self.after(delay, Later::SwitchesOff { boot: self.boot });
        }
    }

    fn switch_off(&mut self) {
        if self.state != State::Running {
            return;
        }
        self.console(serial::POWER_DOWN);
        self.event("SHUTDOWN", Some(json!({ "guest": true, "reason": "guest-shutdown" })));
        if self.stays_after_shutdown {
            self.state = State::Shutdown;
            self.event("STOP", None);
        } else {
            self.effects.push(Effect::Exit);
        }
    }
}

/// Bounded, so that a test whose own bound fails does no harm.
fn eat() {
    const MEBIBYTE: usize = 1 << 20;
    for _ in 0..256 {
        std::hint::black_box(Box::leak(vec![1_u8; MEBIBYTE].into_boxed_slice()));
    }
}
