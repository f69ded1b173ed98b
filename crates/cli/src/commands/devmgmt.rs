//! hpvmdevmgmt: the device database, and files for disks.

use std::path::{Path, PathBuf};

use clap::{ArgGroup, CommandFactory};
use hpvm_model::bytes::{Bytes, MIB, SizeError, shown};
use hpvm_model::entry::{AttributeName, Deletion, EntryError, Listing, Replacement, Setting};
use hpvm_model::{Choice, EntryId, EntryType, Severity, quoted};
use hpvm_operations::devdb::disk_file::{self, DiskRefused, Made, Room, Unknown, Wanted};
use hpvm_operations::devdb::entries::{self, Changed};
use hpvm_operations::devdb::replace::{Renamed, Standing};
use hpvm_operations::devdb::running::{self, Sight};
use hpvm_operations::devdb::{listing, repair, replace};
use hpvm_operations::{Actor, Mode, Refusal, VmHost};
use hpvm_registry::Access;

use crate::args::Operation;
use crate::dispatch::{Context, Perform, version};
use crate::entries as shown_as;
use crate::exit::Failure;
use crate::messages::printable;
use crate::output::print;
use crate::usage;

use super::{catch_interruptions, done, mode};

/// Manage the device database, and make files for disks
///
/// The database says which devices guests have (gdev), which no guest may have (rdev), and which VM Hosts there are (server).
/// Which guests depend on a device follows from the guests and is never typed. An entry that came with a guest's device goes
/// with the last one that has it, unless somebody added it, gave it an attribute, or says PRESERVE=YES.
///
/// A folder that is restricted keeps all below it from guests. /etc, /boot, /usr and the like are restricted always. What the
/// VM Host itself uses is never given to a guest, whatever the database says; the one exception is an rdev entry with
/// ALLOW=GUEST, which needs a reason. A guest then has the device beside the VM Host, and nothing keeps the two from writing over
/// each other.
///
/// Attributes of gdev entries: SHARE, PRESERVE, READONLY (YES or NO), USAGE (DISK, DVD, TAPE, CHANGER or BURNER), IDENTIFIER
/// (ACCEPT: what the path leads to now is the right device). Of rdev entries: PRESERVE, ALLOW (GUEST).
#[derive(Debug, clap::Parser)]
#[command(
    override_usage = "hpvmdevmgmt [OPTIONS] <-a ENTRY|-d ENTRY|-m CHANGE|-n CHANGE|-l LIST|-I|-r|-S SIZE FILE|-v>"
)]
#[command(group(ArgGroup::new("task").required(true).multiple(false).args([
    "add", "delete", "modify", "rename", "list", "initialize", "repair_script", "size", "version",
])))]
pub struct Devmgmt {
    /// Add an entry: gdev:PATH, rdev:PATH or server:NAME
    #[arg(short = 'a', long, value_name = "TYPE:NAME", value_parser = to_add)]
    pub add: Option<EntryId>,

    /// Delete an entry or an attribute: TYPE:NAME or TYPE:NAME:attr:ATTRIBUTE
    #[arg(short = 'd', long, value_name = "TYPE:NAME[:attr:ATTRIBUTE]")]
    pub delete: Option<Deletion>,

    /// Change an attribute
    #[arg(
        short = 'm',
        long,
        value_name = "TYPE:NAME:attr:ATTRIBUTE=VALUE",
        value_parser = setting,
    )]
    pub modify: Option<(EntryId, Setting)>,

    /// Give an entry another name, and every guest that has the device by the old one
    #[arg(short = 'n', long, value_name = "TYPE:OLD:NEW[,ALIAS]")]
    pub rename: Option<Replacement>,

    /// List entries: gdev, rdev, server or all, each with :NAME, :depend:GUEST or :ATTRIBUTE=VALUE
    #[arg(short = 'l', long, value_name = "TYPE[:FILTER]")]
    pub list: Option<Listing>,

    /// Bring the entries that come with guests' devices up to date with the guests
    #[arg(short = 'I', long)]
    pub initialize: bool,

    /// Print what does not agree as a script, to be read and then run
    #[arg(short = 'r', long)]
    pub repair_script: bool,

    /// Make a file of exactly this size, a multiple of 4096 bytes, or extend it; a size has a letter (K, M, G, T or P), such as 512M or 1.5G. `--` stands before a FILE that begins with -
    #[arg(short = 'S', long, num_args = 1..=2, value_names = ["SIZE", "FILE"])]
    pub size: Option<Vec<String>>,

    /// The FILE of -S, where `--` stands before it
    #[arg(last = true, hide = true, requires = "size", conflicts_with_all = OTHERS_THAN_SIZE)]
    pub file: Option<String>,

    /// Say which version this is
    #[arg(short = 'v', long)]
    pub version: bool,

    /// Say what was done; in a list, why an entry is there
    #[arg(short = 'V', long)]
    pub verbose: bool,

    /// With -S: take the room on the file system now, not when the guest writes
    #[arg(long, requires = "size", conflicts_with_all = OTHERS_THAN_SIZE)]
    pub preallocate: bool,

    /// With -S: FILE is a raw disk, though it begins as a qcow2 image does and no guest has it
    #[arg(long, requires = "size", conflicts_with_all = OTHERS_THAN_SIZE)]
    pub raw: bool,

    /// Check only: print what would be done
    #[arg(long, conflicts_with_all = ["list", "repair_script", "version"])]
    pub dry_run: bool,

    /// With -l: as JSON, after docs/schema/devices.json
    #[arg(long, requires = "list", conflicts_with_all = OTHERS_THAN_LIST)]
    pub json: bool,

    #[command(flatten)]
    pub operation: Operation,
}

/// Of the tasks, those with which an option of one of them means nothing: clap asks for no other task than the one there is.
const OTHERS_THAN_SIZE: [&str; 8] =
    ["add", "delete", "modify", "rename", "list", "initialize", "repair_script", "version"];
const OTHERS_THAN_LIST: [&str; 8] =
    ["add", "delete", "modify", "rename", "initialize", "repair_script", "size", "version"];

/// Why a text is no entry to be added.
#[derive(Debug, thiserror::Error)]
enum AddError {
    #[error(transparent)]
    Entry(#[from] EntryError),
    #[error("an attribute is given to an entry that is there: first -a {}, then -m {}", quoted(&.entry.to_string()), quoted(&shown(.text)))]
    Attribute { entry: EntryId, text: String },
}

fn to_add(text: &str) -> Result<EntryId, AddError> {
    if let Ok((entry, _)) = Setting::parse(text) {
        return Err(AddError::Attribute { entry, text: text.to_owned() });
    }
    Ok(text.parse()?)
}

fn setting(text: &str) -> Result<(EntryId, Setting), EntryError> {
    Setting::parse(text)
}

impl Perform for Devmgmt {
    fn perform(self, context: &Context) -> Result<(), Failure> {
        if self.version {
            return Ok(print(&version())?);
        }
        if let Some(listing) = &self.list {
            let lines = listing::list(&VmHost::open(Access::ReadOnly)?, listing)?;
            let text = match self.json {
                true => shown_as::json(&lines)?,
                false => shown_as::list(&lines, self.verbose),
            };
            return Ok(print(&text)?);
        }
        if self.repair_script {
            let flaws = repair::flaws(&VmHost::open(Access::ReadOnly)?)?;
            return Ok(print(&shown_as::script(&flaws))?);
        }
        let words = self.size.iter().flatten().chain(&self.file).map(String::as_str);
        let words = self.size.is_some().then(|| words.collect::<Vec<_>>());
        let disk = words.map(|words| disk(&words, context)).transpose()?;
        catch_interruptions();
        let mut host = VmHost::open_in(mode(self.dry_run))?;
        let actor = context.actor(self.operation.reason.clone());
        match disk {
            Some((size, path)) => self.make_disk(context, &mut host, &actor, size, &path),
            None => self.change(context, &mut host, &actor),
        }?;
        match mode(self.dry_run) {
            Mode::Apply => done("what was asked for is done already"),
            Mode::DryRun => Ok(()),
        }
    }
}

impl Devmgmt {
    fn change(&self, context: &Context, host: &mut VmHost, actor: &Actor) -> Result<(), Failure> {
        let mode = mode(self.dry_run);
        let changed = if let Some(id) = &self.add {
            entries::add(host, actor, id, mode)
        } else if let Some(deletion) = &self.delete {
            entries::delete(host, actor, deletion, mode)
        } else if let Some((id, setting)) = &self.modify {
            entries::set(host, actor, id, *setting, mode)
        } else if let Some(replacement) = &self.rename {
            let renamed = replace::replace(host, actor, replacement, mode).map_err(whole)?;
            for Renamed { guest, warnings, .. } in &renamed {
                context.say.problems(guest, warnings);
            }
            let named = |Renamed { guest, standing, .. }: &Renamed| match standing {
                Standing::Present => guest.to_string(),
                Standing::Removed { .. } => format!("{guest}, which was removed"),
            };
            let guests: Vec<String> = renamed.iter().map(named).collect();
            return self.tell(&shown_as::renamed(replacement, &guests, mode));
        } else {
            let done = repair::initialise(host, actor, mode)?;
            let would = if mode == Mode::DryRun { "that would be " } else { "" };
            return self.tell(&format!(
                "devices {would}new: {}, entries {would}forgotten: {}\n",
                done.known, done.forgotten
            ));
        };
        let Changed { before, after } = changed?;
        self.tell_who_waits(context, host)?;
        self.tell_what_is_overruled(context, host)?;
        self.tell(&shown_as::change(before.as_ref(), after.as_ref(), mode))
    }

    /// Who restricts what an entry keeps for guests may have mistaken the path.
    fn tell_what_is_overruled(&self, context: &Context, host: &VmHost) -> Result<(), Failure> {
        let Some(id) = self.add.as_ref().filter(|id| id.entry == EntryType::Restricted) else {
            return Ok(());
        };
        if let Some(known) = entries::overruled(host, id)? {
            context.say.note(&format!(
                "there is {known} too, which stays with its attributes; no guest is given the device as long as {id} is there"
            ));
        }
        Ok(())
    }

    /// Whether a disk may be written is settled when a guest starts.
    fn tell_who_waits(&self, context: &Context, host: &VmHost) -> Result<(), Failure> {
        let (id, read_only) = match (&self.modify, &self.delete) {
            (Some((id, Setting::ReadOnly(choice))), _) => (id, *choice),
            (_, Some(Deletion::Attribute(id, AttributeName::ReadOnly))) => (id, Choice::No),
            _ => return Ok(()),
        };
        let guests = running::started_otherwise(host, id.name(), read_only)?;
        if !guests.is_empty() {
            let guests: Vec<String> = guests.iter().map(|guest| format!("'{guest}'")).collect();
            let text = format!(
                "READONLY={} counts from the next start of each guest that runs with the disk, and changes nothing for it until then: {}",
                read_only.as_str(),
                guests.join(", ")
            );
            context.say.warning(None, &text);
        }
        Ok(())
    }

    fn make_disk(
        &self,
        context: &Context,
        host: &mut VmHost,
        actor: &Actor,
        size: Bytes,
        path: &Path,
    ) -> Result<(), Failure> {
        let room = if self.preallocate { Room::Now } else { Room::WhenWritten };
        let unknown = if self.raw { Unknown::Raw } else { Unknown::Undecided };
        let mode = mode(self.dry_run);
        let made = disk_file::make(host, actor, path, Wanted { size, room, unknown }, mode)?;
        let would = if mode == Mode::DryRun { "would be " } else { "" };
        let what = match made {
            Made::New => format!("{would}made"),
            Made::Extended { from } => format!("{would}extended from {} bytes", from.0),
            Made::AsItWas => "left as it was".to_owned(),
        };
        let path = path.display().to_string();
        let text = format!("'{}' {what}: {size}, {} bytes\n", printable(&path), size.0);
        print(&text)?;
        if let Made::Extended { .. } = made {
            for (guest, disk, sight) in running::sights(host, &path)? {
                let told = format!("`hpvmmodify -P {guest} -m {}`", quoted(&disk.to_string()));
                let when = match sight {
                    Sight::Told => format!("sees the new size after {told}"),
                    Sight::ToldAfterReset => format!(
                        "gets the disk at its next reset as long as it was, and sees the new size after {told} then"
                    ),
                    Sight::WithStart => "gets the disk with its next start".to_owned(),
                    Sight::Never => {
                        "is to lose the disk, and does not see the new size before that".to_owned()
                    }
                };
                context.say.note(&format!("the running guest '{guest}' {when}"));
            }
        }
        Ok(())
    }

    /// A change that goes well is silent, as it always was; a dry run is for what it says.
    fn tell(&self, text: &str) -> Result<(), Failure> {
        match self.verbose || self.dry_run {
            true => Ok(print(text)?),
            false => Ok(()),
        }
    }
}

/// Problems of several guests, in one sentence.
fn whole(refusal: Refusal) -> Failure {
    match refusal {
        Refusal::Problems(problems) => {
            let errors = problems.iter().filter(|problem| problem.severity == Severity::Error);
            let texts: Vec<&str> = errors.map(|problem| problem.text.as_str()).collect();
            Failure::refused(texts.join("; "))
        }
        other => other.into(),
    }
}

/// Why a text is no size of a disk.
#[derive(Debug, thiserror::Error)]
enum DiskSizeError {
    #[error("'{0}' has no unit; the units are K, M, G, T and P: write {0}M or {0}G")]
    Unit(String),
    #[error(transparent)]
    Size(#[from] SizeError),
    #[error(transparent)]
    Refused(#[from] DiskRefused),
}

#[derive(Debug, thiserror::Error)]
#[error("the path '{path}' cannot be made absolute")]
struct PathError {
    path: String,
    source: std::io::Error,
}

/// Size and path of `-S`. clap sees two words alike, so what is no size is found here.
fn disk(words: &[&str], context: &Context) -> Result<(Bytes, PathBuf), Failure> {
    let options = || Devmgmt::command().bin_name(context.say.command());
    let (size, path) = match words {
        [size, path] => (size, path),
        [_, _, more, ..] => {
            return Err(usage::failure(usage::means_nothing(&shown(more)), options()));
        }
        _ => return Err(usage::failure(usage::values_apart("-S SIZE FILE"), options())),
    };
    let wrong = |error: DiskSizeError| usage::failure(format!("-S: {error}"), options());
    let size = disk_size(size).map_err(wrong)?;
    let path =
        std::path::absolute(path).map_err(|source| PathError { path: shown(path), source })?;
    Ok((size, path))
}

fn disk_size(text: &str) -> Result<Bytes, DiskSizeError> {
    let size = Bytes::parse(text, MIB)?;
    if size.0 == 0 {
        return Err(DiskRefused::Zero.into());
    }
    // Without a letter one would take it for bytes, another for megabytes.
    match text.ends_with(|c: char| c.is_ascii_alphabetic()) {
        true => Ok(size),
        false => Err(DiskSizeError::Unit(shown(text))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(size: &str) -> Result<u64, String> {
        disk_size(size).map(|size| size.0).map_err(|error| error.to_string())
    }

    /// Settles 78: sizes are taken as written, or refused.
    #[test]
    fn a_size_is_exact_or_refused() {
        assert_eq!(read("1.5G"), Ok(3 << 29));
        assert_eq!(read("1M"), Ok(1 << 20));
        for junk in ["", "1.5", "2048", "1.5Gx", "1,5G", "-1G", "G", "1 G", "0x1G", "0.1G"] {
            assert!(read(junk).is_err(), "{junk:?}");
        }
        assert!(read("2048").unwrap_err().contains("2048M"));
        for none in ["0", "0.0", "0M", "0K"] {
            assert_eq!(read(none), Err("a disk of no bytes is none".into()), "{none:?}");
        }
    }
}
