//! gvsdmgr: the verbs of A.03.50's tool for storage adapters, from the VM Host's side.

use std::str::FromStr;

use hpvm_model::bytes::shown;
use hpvm_model::entry::Setting;
use hpvm_model::storage::AddressError;
use hpvm_model::{EntryId, EntryType, GuestConfig, GuestName, PciSlot, StorageAddress};
use hpvm_operations::adapters::{self, Adapter, LunState};
use hpvm_operations::devdb::entries::{self, Changed};
use hpvm_operations::{Actor, Mode, VmHost};
use hpvm_registry::Access;

use crate::args::{GuestArgument, Operation};
use crate::dispatch::{Context, Perform};
use crate::dry_run::NOTHING;
use crate::entries as shown_as;
use crate::exit::{About, Failure};
use crate::luns;
use crate::output::print;

use super::{agreed, mode, refused};

/// Tell what a guest's storage adapters and LUNs are and have done
///
/// An adapter is written as bus,device, a LUN as its target on that adapter or as bus,device,target, which is what hpvmstatus
/// shows. Without -D all adapters of the guest are meant. Without -q the adapters are told of, with it their LUNs.
///
/// get_info shows what each is and whether it answers. get_stat shows the requests of the running guest, their bytes, times and
/// errors, since the guest has the LUN or since clear_stat, which has them counted from zero. An adapter's are the sums of its
/// LUNs'; to clear an adapter is to clear those.
///
/// bdr resets the SCSI devices of the VM Host that back LUNs, those of storage type attach and whole disks, of a running guest:
/// requests under way fail, and the guest sends them again. Other LUNs are refused, as QEMU resets none by itself; the message
/// tells what to do instead.
///
/// replace_dsk accepts the disk that backs one LUN now, where it is another than the guest was given; until then the guest is
/// not started with it. It is what `hpvmdevmgmt -m gdev:PATH:attr:IDENTIFIER=ACCEPT` does.
#[derive(Debug, clap::Parser)]
#[command(override_usage = "gvsdmgr [OPTIONS] <VERB> <--name <NAME>|--number <NUMBER>|GUEST>")]
pub struct Gvsdmgr {
    /// What to do
    #[arg(value_enum, value_name = "VERB")]
    pub verb: Verb,

    #[command(flatten)]
    pub guest: GuestArgument,

    /// One adapter
    #[arg(short = 'D', long = "adapter", value_name = "BUS,DEVICE", value_parser = adapter)]
    pub adapter: Option<PciSlot>,

    /// Which LUNs: all, or one by its target or address
    #[arg(short = 'q', long = "qualifier", value_name = "all|lun=LUN")]
    pub qualifier: Option<Qualifier>,

    /// bdr and replace_dsk: do not ask
    #[arg(short = 'f', long)]
    pub force: bool,

    /// clear_stat, bdr and replace_dsk: check only, print what would be done
    #[arg(long)]
    pub dry_run: bool,

    /// As JSON, after docs/schema/luns.json; get_info and get_stat
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub operation: Operation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Verb {
    /// What adapters and LUNs are, and whether they answer
    GetInfo,
    /// What they have done
    GetStat,
    /// Count that from zero
    ClearStat,
    /// Reset what backs LUNs
    Bdr,
    /// Accept what backs a LUN now as its disk
    ReplaceDsk,
}

/// `-q`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qualifier {
    /// All that is behind the adapters.
    All,
    /// On the adapter of -D.
    Target(u8),
    Address(StorageAddress),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QualifierError {
    #[error("'{0}' is no qualifier; write all, lun=all, lun=TARGET or lun=BUS,DEVICE,TARGET")]
    Malformed(String),
    #[error("'{0}' is no adapter; write BUS,DEVICE, such as 0,1")]
    Adapter(String),
    #[error(
        "there is no adapter at '{text}'; `hpvmstatus -P NAME -d` shows where a guest has some"
    )]
    NoAdapter { text: String, source: AddressError },
}

/// An adapter is written as the address of its first target, without that.
fn adapter(text: &str) -> Result<PciSlot, QualifierError> {
    let first: Result<StorageAddress, _> = format!("{text},0").parse();
    first.map(|address| address.slot).map_err(|source| match source {
        AddressError::Malformed(_) => QualifierError::Adapter(shown(text)),
        source => QualifierError::NoAdapter { text: shown(text), source },
    })
}

impl FromStr for Qualifier {
    type Err = QualifierError;
    fn from_str(text: &str) -> Result<Qualifier, QualifierError> {
        let malformed = || QualifierError::Malformed(shown(text));
        match text.strip_prefix("lun=") {
            None if text == "all" => Ok(Qualifier::All),
            None => Err(malformed()),
            Some("all") => Ok(Qualifier::All),
            Some(lun) if lun.contains(',') => {
                lun.parse().map(Qualifier::Address).map_err(|_| malformed())
            }
            Some(lun) => lun.parse().map(Qualifier::Target).map_err(|_| malformed()),
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum NotThere {
    #[error("it has no storage adapter at {0}; `hpvmstatus -P {1} -d` shows its devices")]
    Adapter(PciSlot, GuestName),
    #[error("it has no LUN there; `hpvm gvsdmgr get_info -P {0} -q lun=all` shows those it has")]
    Lun(GuestName),
    #[error("bdr resets LUNs, not an adapter; say which by -q lun=LUN, or -q lun=all")]
    Unsaid,
    #[error("replace_dsk accepts the disk of one LUN; say which by -q lun=BUS,DEVICE,TARGET")]
    NotOne,
    #[error("{0} has no disk behind it that could be another one")]
    NoDisk(StorageAddress),
}

impl Perform for Gvsdmgr {
    fn perform(self, context: &Context) -> Result<(), Failure> {
        let changes = matches!(self.verb, Verb::ClearStat | Verb::Bdr | Verb::ReplaceDsk);
        let access = match changes && mode(self.dry_run) == Mode::Apply {
            true => Access::ReadWrite,
            false => Access::ReadOnly,
        };
        let mut host = VmHost::open(access)?;
        let config = host.guest(&self.guest.0.clone().into())?;
        let name = &config.name;
        if self.verb == Verb::Bdr && self.qualifier.is_none() {
            return Err(NotThere::Unsaid).about(name);
        }
        let chosen = self.chosen(adapters::adapters(&host, &config), name).about(name)?;
        let shape = self.qualifier.map_or(luns::Shape::Adapters, |_| luns::Shape::Luns);
        let text = match self.verb {
            Verb::ClearStat => self.clear(context, &mut host, &config, &chosen)?,
            Verb::Bdr => self.reset(context, &mut host, &config, &chosen)?,
            Verb::ReplaceDsk => self.accept(context, &mut host, name, &chosen)?,
            Verb::GetStat => {
                let statistics = adapters::statistics(&host, &config, chosen)
                    .or_else(|refusal| refused(name, refusal))?;
                match self.json {
                    true => luns::statistics_json(&statistics)?,
                    false => luns::statistics(&statistics, shape),
                }
            }
            Verb::GetInfo => match self.json {
                true => luns::information_json(&chosen)?,
                false => luns::information(&chosen, shape),
            },
        };
        Ok(print(&text)?)
    }
}

/// What changes something gives what is to be printed: of a change that was made nothing, of a dry run what would be.
impl Gvsdmgr {
    fn clear(
        &self,
        context: &Context,
        host: &mut VmHost,
        config: &GuestConfig,
        chosen: &[Adapter],
    ) -> Result<String, Failure> {
        let (mode, actor) = (mode(self.dry_run), self.actor(context));
        let luns = running(chosen);
        let counted = listed(&luns);
        adapters::clear(host, &actor, config, luns, mode)
            .or_else(|refusal| refused(&config.name, refusal))?;
        Ok(match (mode, counted) {
            (Mode::Apply, _) => String::new(),
            (Mode::DryRun, Some(luns)) => format!("{luns} would be counted from zero\n"),
            (Mode::DryRun, None) => NOTHING.into(),
        })
    }

    fn reset(
        &self,
        context: &Context,
        host: &mut VmHost,
        config: &GuestConfig,
        chosen: &[Adapter],
    ) -> Result<String, Failure> {
        let (name, actor) = (&config.name, self.actor(context));
        let luns = running(chosen);
        let shown = listed(&luns).unwrap_or_default();
        let mut reset = |mode| {
            adapters::reset(host, &actor, config, &luns, mode)
                .or_else(|refusal| refused(name, refusal))
        };
        // Of none of them the refusal is the answer.
        if self.asks() && !luns.is_empty() {
            reset(Mode::DryRun)?;
            let question =
                format!("Reset {shown} of '{name}'? Requests under way fail, and are sent again.");
            agreed(context.say.ask(&question)).about(name)?;
        }
        let mode = mode(self.dry_run);
        reset(mode)?;
        Ok(match mode {
            Mode::Apply => String::new(),
            Mode::DryRun => format!("{shown} would be reset\n"),
        })
    }

    fn accept(
        &self,
        context: &Context,
        host: &mut VmHost,
        name: &GuestName,
        chosen: &[Adapter],
    ) -> Result<String, Failure> {
        let (address, id) = self.one_disk(chosen).about(name)?;
        let actor = self.actor(context);
        let mut accept = |mode| {
            entries::set(host, &actor, &id, Setting::AcceptIdentifier, mode)
                .or_else(|refusal| refused(name, refusal))
        };
        let tried = accept(Mode::DryRun);
        if tried.as_ref().is_ok_and(|changed| !changed.accepts_another()) {
            context.say.note(&format!(
                "'{}' leads to the disk that {address} of '{name}' was given; there is nothing to accept",
                id.name()
            ));
            return Ok(match mode(self.dry_run) {
                Mode::Apply => String::new(),
                Mode::DryRun => NOTHING.into(),
            });
        }
        if self.asks() {
            tried?;
            let question = format!(
                "Accept the device that '{}' leads to now as the disk {address} of '{name}'?",
                id.name()
            );
            agreed(context.say.ask(&question)).about(name)?;
        }
        let mode = mode(self.dry_run);
        let Changed { before, after } = accept(mode)?;
        Ok(match mode {
            Mode::Apply => String::new(),
            Mode::DryRun => shown_as::change(before.as_ref(), after.as_ref(), mode),
        })
    }

    /// Whether somebody is asked first, once it is known that it can be done.
    fn asks(&self) -> bool {
        !self.force && mode(self.dry_run) == Mode::Apply
    }

    fn actor(&self, context: &Context) -> Actor {
        context.actor(self.operation.reason.clone())
    }
}

/// As a sentence names them; none of none.
fn listed(luns: &[StorageAddress]) -> Option<String> {
    let shown: Vec<String> = luns.iter().map(ToString::to_string).collect();
    (!shown.is_empty()).then(|| shown.join(" and "))
}

/// Of these, what the running guest has.
fn running(chosen: &[Adapter]) -> Vec<StorageAddress> {
    let luns = chosen.iter().flat_map(|adapter| &adapter.luns);
    let running =
        luns.filter(|lun| matches!(lun.state, LunState::Online | LunState::Silent { .. }));
    running.map(|lun| lun.device.address).collect()
}

impl Gvsdmgr {
    /// The one LUN that is meant, and the entry of what backs it.
    fn one_disk(&self, chosen: &[Adapter]) -> Result<(StorageAddress, EntryId), NotThere> {
        let mut luns = chosen.iter().flat_map(|adapter| &adapter.luns);
        let (Some(Qualifier::Target(_) | Qualifier::Address(_)), Some(lun), None) =
            (self.qualifier, luns.next(), luns.next())
        else {
            return Err(NotThere::NotOne);
        };
        let address = lun.device.address;
        let path = lun.device.backing.store().ok_or(NotThere::NoDisk(address))?;
        let id = EntryId::new(EntryType::Guest, path).map_err(|_| NotThere::NoDisk(address))?;
        Ok((address, id))
    }

    fn chosen(&self, all: Vec<Adapter>, guest: &GuestName) -> Result<Vec<Adapter>, NotThere> {
        let mut chosen: Vec<Adapter> = all
            .into_iter()
            .filter(|adapter| self.adapter.is_none_or(|slot| adapter.slot == slot))
            .collect();
        if let (Some(slot), true) = (self.adapter, chosen.is_empty()) {
            return Err(NotThere::Adapter(slot, guest.clone()));
        }
        let is_meant = |address: StorageAddress| match self.qualifier {
            None | Some(Qualifier::All) => true,
            Some(Qualifier::Target(target)) => address.target == target,
            Some(Qualifier::Address(meant)) => address == meant,
        };
        for adapter in &mut chosen {
            adapter.luns.retain(|lun| is_meant(lun.device.address));
        }
        chosen.retain(|adapter| !adapter.luns.is_empty());
        match chosen.is_empty() && self.qualifier.is_some() {
            true => Err(NotThere::Lun(guest.clone())),
            false => Ok(chosen),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qualifiers_are_those_of_the_original_and_addresses() {
        assert_eq!("all".parse(), Ok(Qualifier::All));
        assert_eq!("lun=all".parse(), Ok(Qualifier::All));
        assert_eq!("lun=16".parse(), Ok(Qualifier::Target(16)));
        let address = "0,1,16".parse().expect("an address");
        assert_eq!("lun=0,1,16".parse(), Ok(Qualifier::Address(address)));
        for text in ["", "lun", "lun=", "lun=x", "lun=0,1", "lun=0,1,2,3", "16", "lun=-1"] {
            assert!(text.parse::<Qualifier>().is_err(), "{text}");
        }
        assert_eq!(adapter("0,1"), Ok(address.slot));
        for text in ["", "0", "0,1,2", "/dev/gvsd0"] {
            assert_eq!(adapter(text), Err(QualifierError::Adapter(text.into())));
        }
        for text in ["0,3", "0,9", "7,0"] {
            assert!(matches!(adapter(text), Err(QualifierError::NoAdapter { .. })), "{text}");
        }
    }
}
