//! What happens when the VM Host goes down: all guests that run are asked at once to shut down, for as long as hpvmconf says,
//! and those that run on after that are ended like by a power cut, so that every disk is whole before the host's own end takes
//! what lies under it. Called by `hpvm autostop`, which the system runs at its shutdown. Guests with `-B auto` are started
//! again at the next boot, like at every one.

use std::time::Duration;

use hpvm_model::{GuestConfig, GuestName};

use crate::presence::Presence;
use crate::stop::{How, Stopped, stop};
use crate::{Actor, Mode, Refusal, VmHost};

/// How a guest came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By its own shutdown, or it was off by then.
    ByItself,
    /// It had not shut down; why.
    ByForce(String),
    /// Not yet: a dry run.
    Would,
}

/// What became of each guest that ran.
#[derive(Debug)]
pub struct Autostopped {
    pub guests: Vec<(GuestName, Result<Ended, Refusal>)>,
}

/// Ends all guests that run. One that cannot be ended keeps no other running.
pub fn autostop(
    host: &mut VmHost,
    actor: &Actor,
    at_most: Duration,
    mode: Mode,
) -> Result<Autostopped, Refusal> {
    let (mut guests, mut running) = (Vec::new(), Vec::new());
    for line in host.lines()?.into_iter().filter(|line| line.state.is_on()) {
        match host.guest_numbered(line.summary.number) {
            Ok(config) => running.push(config),
            // Who ended and removed it meanwhile has done all there is to do.
            Err(Refusal::NoGuest { .. }) => {}
            Err(refusal) => guests.push((line.summary.name, Err(refusal))),
        }
    }
    if mode == Mode::DryRun {
        guests.extend(running.into_iter().map(|config| (config.name, Ok(Ended::Would))));
        return Ok(Autostopped { guests });
    }
    // Each by a thread and a registry of its own: they wait, all at the same time.
    guests.extend(std::thread::scope(|scope| {
        let ends: Vec<_> = running
            .into_iter()
            .map(|config| {
                let name = config.name.clone();
                (name, scope.spawn(move || end(&config, actor, at_most)))
            })
            .collect();
        let joined = |end: std::thread::ScopedJoinHandle<'_, _>| {
            end.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        ends.into_iter().map(|(name, end)| (name, joined(end))).collect::<Vec<_>>()
    }));
    Ok(Autostopped { guests })
}

fn end(config: &GuestConfig, actor: &Actor, at_most: Duration) -> Result<Ended, Refusal> {
    let mut host = VmHost::open_to_end_guests()?;
    // What a QEMU held by a signal is asked, it does not hear. A worker is replaced, or the stop says why not.
    let asked = match host.presence(config.number).is_deaf() {
        true => Err(Refusal::StopFailed("its QEMU does not answer".into())),
        false if at_most.is_zero() => Err(Refusal::StopFailed("it was not asked to".into())),
        false => stop(&mut host, actor, config, How::Graceful { at_most }, &mut |_| {}),
    };
    let why = match asked {
        Ok(Stopped { .. }) => return Ok(Ended::ByItself),
        Err(interrupted @ Refusal::Interrupted { .. }) => return Err(interrupted),
        // What else could be tried is tried here.
        Err(Refusal::NotStopped { why, .. }) => why.to_string(),
        Err(Refusal::Lost { .. }) => {
            "its files in /run were gone or damaged, so nobody could ask it to shut down".into()
        }
        Err(refusal) => hpvm_model::chain(&refusal),
    };
    match host.presence(config.number) {
        Presence::Off { .. } if crate::lost::qemu(&host, config).is_none() => Ok(Ended::ByItself),
        _ => {
            stop(&mut host, actor, config, How::Hard, &mut |_| {})?;
            Ok(Ended::ByForce(why))
        }
    }
}
