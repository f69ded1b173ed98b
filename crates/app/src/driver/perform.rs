//! Performs what the machine decided.

use std::io::Write;
use std::time::Duration;

use hpvm_app::protocol::Reply;
use hpvm_app::snapshot::{Crash, Extent, Phase, Snapshot};
use hpvm_engine::devices::{self, DeviceError, Performed};
use hpvm_model::{Occupant, chain};
use hpvm_plan::record::{self, Occasion};
use hpvm_qmp::client::Client;
use hpvm_qmp::command::{Cont, ReadPowerButton, SystemPowerdown};

use super::*;
use crate::changes::{Made, Means};
use crate::monitor::Disks;

impl Driver {
    pub(super) fn perform(&mut self, action: Action) {
        match action {
            Action::Publish => self.publish(),
            Action::Log(sentence) => self.log.say(&sentence),
            Action::Started(outcome) => self.started(&outcome),
            Action::Reply(ticket, reply) => self.reply(ticket, reply),
            Action::PressButton => self.monitor.tell(SystemPowerdown {}),
            Action::ReadButton => {
                self.monitor.ask(ReadPowerButton {}, News::Button);
            }
            Action::Continue => self.monitor.tell(Cont {}),
            Action::Quit => self.monitor.end_qemu(),
            Action::Kill => self.kill(),
            Action::BeginChange(ticket) => self.begin_changes(ticket),
            Action::BeginCopy(ticket) => {
                self.when_stores_are_read(move |driver| driver.begin_copy(ticket));
            }
            Action::ReadIdle(ticket) => {
                self.when_stores_are_read(move |driver| driver.read_idle(ticket));
            }
            Action::ReadCounters(ticket) => self.read_counters(ticket),
            Action::AfterReset => self.after_reset(),
            Action::Finish => self.finished = true,
        }
    }

    pub(super) fn publish(&mut self) {
        let phase = self.machine.phase();
        if std::mem::discriminant(&phase) != std::mem::discriminant(&self.shown.phase) {
            self.shown.since = now();
        }
        if self.machine.is_silent() {
            self.shown.unresponsive_since.get_or_insert_with(now);
        } else {
            self.shown.unresponsive_since = None;
        }
        self.shown.phase = phase;
        let mut snapshot = Snapshot {
            boot_id: self.shown.boot_id.clone(),
            phase: self.shown.phase.clone(),
            since: self.shown.since.clone(),
            state_since: None,
            decided: self.machine.decided().cloned(),
            unresponsive_since: self.shown.unresponsive_since.clone(),
            notes: self.notes().collect(),
            silent_stores: self.stores.silent().cloned().collect(),
            cut_images: self.stores.cut.clone(),
            zeros: self.zeros.all().to_vec(),
            record_damage: self.recorded.damage().cloned(),
            qemu: self.engine.process(),
            accelerator: self.recorded.accelerator.clone(),
            extent: self
                .recorded
                .machine
                .as_ref()
                .ok()
                .map(|known| Extent::of(known.file.machine())),
            agent: self.agent_watch.known().clone(),
            adoptions: self.shown.adoptions,
        };
        if snapshot.state() != self.shown.state {
            self.shown.state = snapshot.state();
            self.shown.state_since = Some(now());
        }
        snapshot.state_since.clone_from(&self.shown.state_since);
        let had_failed = self.publisher.has_failed();
        if let Err(error) = self.publisher.publish(&snapshot)
            && !had_failed
        {
            self.log.say(&format!("the status cannot be published: {error}"));
        }
        self.console.set_state(state_words(&self.shown.phase));
    }

    fn notes(&self) -> impl Iterator<Item = String> {
        let reserving = self.reservations.note(&self.recorded.name);
        let trouble = self.trouble.last.iter().cloned().chain(reserving);
        let left = self.left_copy.note(&self.stores.copies);
        trouble.chain(left).chain(self.stores.unwatched_in_words())
    }

    fn started(&mut self, outcome: &Result<(), String>) {
        let Some(mut ready) = self.ready.take() else { return };
        let line = match outcome {
            Ok(()) => "running\n".to_owned(),
            Err(words) => format!("failed {}\n", words.replace('\n', " ")),
        };
        // Who waited for it may have given up.
        let _ = ready.write_all(line.as_bytes());
    }

    /// The keeper may; we may only where QEMU runs as our own user.
    fn kill(&mut self) {
        if self.keeper.lives {
            self.link.send(ToKeeper::Kill);
        } else {
            self.engine.kill();
        }
    }

    pub(super) fn engine_ended(&mut self, crash: Crash) {
        let words = self.engine.last_words();
        if !words.is_empty() && self.machine.decided().is_none() {
            self.log.say(&format!("QEMU said last: {words}"));
        }
        self.feed(Input::Exited { crash, words });
    }

    fn begin_changes(&mut self, ticket: Ticket) {
        let begun = match self.requests.media.remove(&ticket) {
            Some(medium) => self.payload_of(medium),
            None => Ok(self.requests.payloads.remove(&ticket).unwrap_or_default()),
        };
        let begun = begun.and_then(|mut payload| {
            let devices = payload.changes.iter().flat_map(DeviceChange::media);
            self.stores.watch.add_all(devices, std::mem::take(&mut payload.stores));
            self.tell_keeper_of_stores();
            Changes::new(ticket, payload).ok_or_else(|| {
                "the request does not bring one descriptor for each medium".to_owned()
            })
        });
        match begun {
            Ok(changes) => {
                self.changes = Some(changes);
                self.next_step();
            }
            Err(error) => {
                self.forget_stores();
                self.reply(ticket, Reply::Failed { error });
                self.feed(Input::ChangeOver);
            }
        }
    }

    /// Begins the next step when all stores have answered that it may have to do with, what it brings among them.
    pub(super) fn next_step(&mut self) {
        let between = self.changes.as_ref().filter(|changes| changes.is_between_steps());
        match between.map(Changes::needs_stores) {
            Some(true) => self.when_stores_are_read(Driver::begin_step),
            Some(false) => self.begin_step(),
            None => {}
        }
    }

    /// Not if QEMU would wait for a silent store with it: whoever watches stores comes again then.
    pub(super) fn begin_step(&mut self) {
        let Some(mut changes) = self.changes.take_if(|changes| changes.is_between_steps()) else {
            return;
        };
        if changes.needs_stores()
            && let Some(silence) = self.stores.silence()
        {
            match silence.denial(self.began.elapsed()) {
                Some(reason) => changes.fail(reason.to_string()),
                None => {
                    self.log.say(&format!("a request waits for {}", silence.words));
                    return self.changes = Some(changes);
                }
            }
        }
        let means = Means {
            client: self.monitor.client(),
            agent: self.agent.as_ref(),
            uptime: self.engine.age(),
            news: self.monitor.news(),
        };
        if let Ok(known) = &mut self.recorded.machine
            && changes.begin_next(&mut known.file, means)
        {
            self.changes = Some(changes);
            return;
        }
        let ticket = changes.ticket;
        self.forget_stores();
        self.reply(ticket, Reply::Changed { results: changes.into_results() });
        self.feed(Input::ChangeOver);
        self.ask_status();
        self.make_missed();
        // What only waits for a place may have found it meanwhile.
        self.make_due(Occasion::PlaceFree);
    }

    pub(super) fn step_over(&mut self, seq: u64, made: Made) {
        let Some(changes) = &mut self.changes else { return };
        let change = self.recorded.change(seq);
        self.log.say(&match &made.result {
            Ok(Performed::Done) => format!("{change} is done"),
            Ok(Performed::DoneWhileHeld(held)) => {
                let ms = held.as_millis();
                format!("{change} is done; the guest stood still for {ms} ms for it")
            }
            Ok(Performed::Asked) => format!("{change} waits for the guest to let go"),
            Ok(Performed::Prepared) => format!("{change} waits for the guest's next reset"),
            Err(DeviceError::Waits(reason)) => format!("{change} waits: {reason}"),
            Err(error) => format!("{change} failed: {}", chain(error)),
        });
        if let (Ok(_), Some(loss)) = (&made.result, &made.loss) {
            self.log.say(loss);
        }
        if made.result.as_ref().is_err_and(DeviceError::is_unanswered) {
            self.takeover.step_got_no_answer();
        }
        if let Ok(known) = &mut self.recorded.machine {
            changes.settle(&mut known.file, seq, made);
            self.zeros.keep_those_of(known.file.machine());
        }
        // Whoever asked finds it in a list as soon as he is answered.
        self.publish();
        self.show_links();
        self.next_step();
    }

    fn read_idle(&mut self, ticket: Ticket) {
        if self.stores.silence().is_some() {
            return self.feed(Input::Asked { ticket, ask: Ask::Idle });
        }
        let news = self.monitor.news();
        let (Some(client), Ok(known)) = (self.monitor.client().cloned(), &self.recorded.machine)
        else {
            let error = "the guest does not answer".into();
            return self.reply(ticket, Reply::Failed { error });
        };
        let (machine, uptime) = (known.file.machine().clone(), self.engine.age());
        spawn_local(async move {
            let disks = look_at_disks(&client, &machine, uptime).await;
            let _ = news.send(News::Idle(ticket, disks)).await;
        });
    }

    pub(super) fn idle_known(&mut self, ticket: Ticket, answer: Result<Disks, hpvm_qmp::Error>) {
        let reply = match answer {
            Ok(Disks { idle_ms, size_bytes }) => Reply::Idle { idle_ms, size_bytes },
            Err(error) => Reply::Failed { error: chain(&error) },
        };
        self.reply(ticket, reply);
    }
}

async fn look_at_disks(
    client: &Client,
    machine: &record::Machine,
    uptime: Duration,
) -> Result<Disks, hpvm_qmp::Error> {
    let idle_ms = devices::idle(client, machine, uptime).await?;
    let size_bytes = devices::grow::sizes(client, machine).await?.into_iter().collect();
    Ok(Disks { idle_ms, size_bytes })
}

fn state_words(phase: &Phase) -> &'static str {
    match phase {
        Phase::Running { occupant } | Phase::Paused { occupant, .. } => match occupant {
            Occupant::Os => "On (OS)",
            Occupant::Firmware => "On (EFI)",
        },
        Phase::Starting | Phase::Stopping { .. } => "On",
        Phase::Ended { .. } => "Off",
    }
}
