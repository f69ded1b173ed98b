//! The counters of the guest's disks: asked of QEMU, told from where an administrator had them counted, and counted from zero
//! on request.

use hpvm_app::counters::{Counted, Counters, Zero};
use hpvm_app::snapshot::Snapshot;
use hpvm_engine::devices::counted::counted;
use hpvm_model::{StorageAddress, chain};
use hpvm_plan::record;
use hpvm_qmp::answer::BlockCounters;

use super::*;

/// Where counting begins.
#[derive(Debug, Default)]
pub(super) struct Zeros(Vec<Zero>);

impl Zeros {
    pub(super) fn of(before: Option<&Snapshot>) -> Zeros {
        Zeros(before.map(|snapshot| snapshot.zeros.clone()).unwrap_or_default())
    }

    pub(super) fn all(&self) -> &[Zero] {
        &self.0
    }

    /// A disk that left takes its zero along: the same one counts from its beginning when it comes again.
    pub(super) fn keep_those_of(&mut self, machine: &record::Machine) {
        self.0.retain(|zero| is_of(zero, machine));
    }

    fn at(&self, address: StorageAddress) -> Option<&Zero> {
        self.0.iter().find(|zero| zero.address == address)
    }

    fn move_to(&mut self, zero: Zero) {
        self.0.retain(|before| before.address != zero.address);
        self.0.push(zero);
    }
}

fn is_of(zero: &Zero, machine: &record::Machine) -> bool {
    machine.device_at(zero.address).is_some_and(|attached| attached.device.id == zero.id)
}

fn of_engine(told: &BlockCounters) -> Counters {
    Counters {
        reads: told.rd_operations,
        read_bytes: told.rd_bytes,
        read_ns: told.rd_total_time_ns,
        failed_reads: told.failed_rd_operations,
        writes: told.wr_operations,
        written_bytes: told.wr_bytes,
        write_ns: told.wr_total_time_ns,
        failed_writes: told.failed_wr_operations,
        flushes: told.flush_operations,
        flush_ns: told.flush_total_time_ns,
        failed_flushes: told.failed_flush_operations,
    }
}

impl Driver {
    pub(super) fn read_counters(&mut self, ticket: Ticket) {
        let (Some(client), Ok(known)) = (self.monitor.client().cloned(), &self.recorded.machine)
        else {
            let error = "the guest does not answer".into();
            return self.reply(ticket, Reply::Failed { error });
        };
        let (machine, news) = (known.file.machine().clone(), self.monitor.news());
        spawn_local(async move {
            let told = counted(&client, &machine).await;
            let _ = news.send(News::Counted(ticket, told)).await;
        });
    }

    /// They are told as they stand before zero is moved, so that nothing that is counted is lost between the two.
    pub(super) fn counted(
        &mut self,
        ticket: Ticket,
        told: Result<Vec<(StorageAddress, BlockCounters)>, hpvm_qmp::Error>,
    ) {
        let asked = self.requests.from_zero.remove(&ticket).unwrap_or_default();
        let told = match told {
            Ok(told) => told,
            Err(error) => return self.reply(ticket, Reply::Failed { error: chain(&error) }),
        };
        let Ok(known) = &self.recorded.machine else { return };
        let machine = known.file.machine();
        self.zeros.keep_those_of(machine);
        let mut disks = Vec::new();
        for (address, told) in told {
            let Some(attached) = machine.device_at(address) else { continue };
            let (counters, zero) = (of_engine(&told), self.zeros.at(address));
            disks.push(Counted {
                address,
                counters: zero.map_or(counters, |zero| counters.since(zero.counters)),
                since: zero.map(|zero| zero.at.clone()),
            });
            if asked.contains(&address) {
                self.zeros.move_to(Zero { address, id: attached.device.id, at: now(), counters });
            }
        }
        if !asked.is_empty() {
            self.publish();
        }
        self.reply(ticket, Reply::Counted { disks });
    }
}
