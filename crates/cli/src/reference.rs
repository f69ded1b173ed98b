//! Manual pages and completions, made from the tables of options. Called at installation only.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgGroup};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use hpvm_host::conf::{TUNABLES, Tunable};

use crate::dispatch::{COMMANDS, Entry, Origin};

/// A file to be written: its path in the folder and its content.
pub(crate) type Page = (String, Vec<u8>);

#[derive(Debug, thiserror::Error)]
#[error("{} could not be written", path.display())]
pub(crate) struct WriteError {
    path: PathBuf,
    #[source]
    cause: io::Error,
}

pub(crate) fn write_all(folder: &Path, pages: &[Page]) -> Result<(), WriteError> {
    for (name, content) in pages {
        let path = folder.join(name);
        // The folder itself is the caller's to make.
        let made = match path.parent() {
            Some(section) if section != folder && folder.is_dir() => fs::create_dir_all(section),
            _ => Ok(()),
        };
        made.and_then(|()| fs::write(&path, content))
            .map_err(|cause| WriteError { path, cause })?;
    }
    Ok(())
}

fn shown() -> impl Iterator<Item = &'static Entry> {
    COMMANDS.iter().filter(|entry| entry.origin != Origin::Hidden)
}

/// `man1/hpvmcreate.1`, `man1/hpvm-why.1`, …, `man1/hpvm.1`, `man5/hpvmconf.5`, `man5/hpvmresources.5`.
pub(crate) fn manual_pages() -> io::Result<Vec<Page>> {
    let commands =
        shown().map(|entry| Ok((format!("man1/{}.1", entry.page()), manual_page(entry)?)));
    let others = [
        ("hpvm", 1, whole_page()),
        ("hpvmconf", 5, conf_page()),
        ("hpvmresources", 5, resources_page()),
    ];
    let others = others.map(|(name, section, page)| {
        let mut text = title(name, section);
        page.to_writer(&mut text)?;
        Ok((format!("man{section}/{name}.{section}"), text))
    });
    commands.chain(others).collect()
}

const SOURCE: &str = concat!("hpvm ", env!("CARGO_PKG_VERSION"));
const MANUAL: &str = "Virtual Machines";

/// The line that makes a page's head and foot. Its date is empty, which is to be seen: roff's writer leaves an empty argument out,
/// and each that follows takes the place of the one before.
fn title(page: &str, section: u8) -> Vec<u8> {
    format!(".TH {page} {section} \"\" \"{SOURCE}\" \"{MANUAL}\"\n").into_bytes()
}

/// What a program looks at beside its command line and hpvmconf; docs/files.md has the same table.
const ENVIRONMENT: &[(&str, &str)] = &[
    (
        "HPVM_ROOT",
        "the folder below which the whole VM Host lies, in place of / (of an ordinary user, of one in the home folder)",
    ),
    (
        "HPVM_ACCEL",
        "what guests are started with: kvm, and refused where that does not work, or tcg; if it is not set, KVM where a trial of it succeeds, and TCG elsewhere, as hpvmstatus -s tells",
    ),
];

/// What `man hpvm` shows: where all the other pages are.
fn whole_page() -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["NAME"]);
    roff.text([roman("hpvm - virtual machines with the interface of HP Integrity VM A.03.50")]);
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([bold("hpvm"), roman(" COMMAND [OPTIONS]")]);
    roff.control("SH", ["DESCRIPTION"]);
    roff.text([roman(
        "One program, of which hpvmcreate, hpvmmodify and the others that have a name of their own are links: \"hpvm status\" is hpvmstatus. \"hpvm help COMMAND\" tells a command's options, and so does the command with --help.",
    )]);
    let abouts = shown().map(|entry| {
        let about = entry.options().get_about().map(ToString::to_string).unwrap_or_default();
        (format!("{}(1)", entry.page()), about)
    });
    let abouts: Vec<(String, String)> = abouts.collect();
    let abouts: Vec<(&str, &str)> = abouts.iter().map(|(p, a)| (p.as_str(), a.as_str())).collect();
    terms_section(&mut roff, "COMMANDS", &abouts);
    terms_section(&mut roff, "ENVIRONMENT", ENVIRONMENT);
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman("hpvmconf(5), hpvmresources(5)")]);
    roff
}

/// The tunables, by the table that they are read by.
fn conf_page() -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["NAME"]);
    roff.text([roman("hpvmconf - tunables of hpvm")]);
    roff.control("SH", ["DESCRIPTION"]);
    roff.text([roman(
        "/etc/opt/hpvm/hpvmconf and, from older times, /etc/rc.config.d/hpvmconf, both below HPVM_ROOT: NAME=value in a shell's syntax, one a line. The newer file wins. None of them has to exist. A value that cannot be stops the commands that need it, and these say in which line it is; hpvm doctor tells of all, and of lines that mean nothing.",
    )]);
    roff.control("SH", ["TUNABLES"]);
    for Tunable { name, says, otherwise, .. } in TUNABLES {
        roff.control("TP", []);
        roff.text([bold(name)]);
        let text = format!("{says} (if it is not set: {otherwise})");
        roff.text([roman(text.replace('`', ""))]);
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman("hpvm-doctor(1), hpvmstart(1)")]);
    roff
}

fn resources_page() -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["NAME"]);
    roff.text([roman("hpvmresources - statements by which guests are given devices")]);
    roff.control("SH", ["DESCRIPTION"]);
    roff.text([roman(
        "What hpvmcreate, hpvmmodify and hpvmclone take with -a, -m and -d, and hpvmstatus -d prints. Addresses, limits and the storage that each kind of device can have are told in resources.md, which is installed with the product.",
    )]);
    statement_sections(&mut roff);
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman("hpvmcreate(1), hpvmmodify(1), hpvmclone(1), hpvmdevmgmt(1), hpvmnet(1)")]);
    roff
}

fn statement_sections(roff: &mut Roff) {
    terms_section(roff, "RESOURCE STATEMENTS", STATEMENTS);
    terms_section(roff, "EXAMPLES OF STATEMENTS", EXAMPLES);
}

fn terms_section(roff: &mut Roff, title: &str, lines: &[(&str, &str)]) {
    roff.control("SH", [title]);
    for (term, meaning) in lines {
        roff.control("TP", []);
        roff.text([bold(*term)]);
        roff.text([roman(*meaning)]);
    }
}

fn manual_page(entry: &Entry) -> io::Result<Vec<u8>> {
    let page = Man::new(entry.shown_options());
    let mut text = title(&entry.page(), 1);
    page.render_name_section(&mut text)?;
    synopsis_section(entry).to_writer(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    closing_sections(entry).to_writer(&mut text)?;
    Ok(text)
}

fn synopsis_section(entry: &Entry) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([bold(entry.name()), roman(format!(" {}", synopsis(&entry.options())))]);
    roff
}

/// As A.03.50 writes it: `{-P NAME | -p NUMBER} [-c NUMBER] [-a STATEMENT]... [-F]`.
pub(crate) fn synopsis(options: &clap::Command) -> String {
    let groups: Vec<&ArgGroup> =
        options.get_groups().filter(|group| group.is_required_set()).collect();
    let member = |id: &clap::Id| options.get_arguments().find(|option| option.get_id() == id);
    let is_in_group =
        |option: &&Arg| groups.iter().any(|group| group.get_args().any(|id| id == option.get_id()));
    let first = options.get_arguments().take_while(|option| !is_in_group(option));
    let verbs: Vec<&Arg> = first.filter(|option| option.is_positional()).collect();
    let mut parts: Vec<String> = verbs.iter().copied().map(typed).collect();
    parts.extend(groups.iter().map(|group| {
        let members: Vec<String> = group.get_args().filter_map(member).map(typed).collect();
        format!("{{{}}}", members.join(" | "))
    }));
    let others = options.get_arguments().filter(|option| !option.is_hide_set());
    let others = others.filter(|option| !is_in_group(option) && !verbs.contains(option));
    for option in others {
        parts.push(match (option.is_required_set(), option.get_action()) {
            (true, _) => typed(option),
            (false, ArgAction::Append) => format!("[{}]...", typed(option)),
            (false, _) => format!("[{}]", typed(option)),
        });
    }
    parts.join(" ")
}

/// An option as it is typed, by its letter where it has one.
fn typed(option: &Arg) -> String {
    let name = match (option.get_short(), option.get_long()) {
        (Some(letter), _) => format!("-{letter} "),
        (None, Some(long)) => format!("--{long} "),
        (None, None) => String::new(),
    };
    let values = option.get_value_names().filter(|_| option.get_action().takes_values());
    let value = values.map_or(String::new(), |names| names.join(" "));
    format!("{name}{value}").trim_end().to_owned()
}

/// What a statement of an option is made of, as A.03.50's hpvmresources had it.
const STATEMENTS: &[(&str, &str)] = &[
    (
        "device:adapter:[bus,device,target]:storage:location",
        "A storage device: disk, dvd, tape, changer or burner, on scsi (VIO) or avio_stor (AVIO). Without an address -a gives it the next that is free. -d needs no storage and location; what is said must be true of the device.",
    ),
    ("file:PATH", "A disk in a file, or the ISO image of a dvd."),
    ("qcow2:PATH", "An image of that format; --layer says what lies under a new one."),
    (
        "disk:DEVICE",
        "A block device of the VM Host, for a dvd its drive. Names below /dev/disk/by-id stay.",
    ),
    ("lv:DEVICE", "A logical volume."),
    (
        "null:FOLDER",
        "An empty dvd; its media are the ISO images in that folder, for hpvmmodify -m and the console's IN.",
    ),
    (
        "attach:DEVICE",
        "For tape, changer and burner: the generic node of a SCSI device, such as /dev/sg3.",
    ),
    (
        "network:adapter:[bus,device,mac]:vswitch:NAME[:portid:NUMBER]",
        "A NIC on a virtual switch: lan (VIO) or avio_lan (AVIO).",
    ),
];

/// As they are typed, with what they do.
const EXAMPLES: &[(&str, &str)] = &[
    ("-a disk:avio_stor::file:/srv/web.img", "a disk, at the next free address"),
    ("-a dvd:scsi:0,1,0:null:/srv/isos", "an empty drive"),
    ("-m dvd:scsi:0,1,0:file:/srv/isos/debian.iso", "puts a medium in"),
    ("-a network:avio_lan::vswitch:localnet", "a NIC"),
    ("-d disk:avio_stor:0,0,1", "takes what is there away"),
];

fn closing_sections(entry: &Entry) -> Roff {
    let mut roff = Roff::new();
    if entry.options().get_arguments().any(|option| typed(option).ends_with("STATEMENT")) {
        statement_sections(&mut roff);
    }
    terms_section(&mut roff, "EXIT STATUS", &exit_statuses(entry));
    roff.control("SH", ["SEE ALSO"]);
    let others: Vec<String> = shown()
        .filter(|other| other.word != entry.word)
        .map(|other| format!("{}(1)", other.page()))
        .chain(["hpvm(1)", "hpvmconf(5)", "hpvmresources(5)"].map(str::to_owned))
        .collect();
    roff.text([roman(others.join(", "))]);
    roff
}

fn exit_statuses(entry: &Entry) -> Vec<(&'static str, &'static str)> {
    let (done, refused) = match entry.word {
        "status" | "why" => ("What was asked for was shown.", "It could not be found or read."),
        "doctor" => (
            "Nothing is wrong, or all of it was repaired.",
            "Something is wrong and was told, or could not be repaired.",
        ),
        "console" => (
            "The session ended as asked, or the command was carried out.",
            "There is no such guest, it is not yours to use, or the command failed.",
        ),
        "stop" => (
            "The guest is off, also when it was before.",
            "Refused, answered with no, or the guest did not stop; it runs on.",
        ),
        "autostart" => (
            "All guests that start with the VM Host run.",
            "At least one did not start; the reasons were told.",
        ),
        _ => (
            "Done; warnings may have been told.",
            "Refused, failed, or answered with no; nothing changed but what was told.",
        ),
    };
    let mut statuses =
        vec![("0", done), ("1", refused), ("2", "The command line is wrong; nothing was tried.")];
    let changes = entry.options().get_arguments().any(|o| o.get_long() == Some("dry-run"));
    if changes {
        statuses.push((
            "129, 130, 143",
            "Interrupted by SIGHUP, SIGINT or SIGTERM; one line told what is left.",
        ));
    }
    statuses
}

/// For each shell the completions of every program, and of `hpvm` itself.
pub(crate) fn completions() -> Vec<Page> {
    let mut pages = Vec::new();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        for entry in COMMANDS.iter().filter(|entry| entry.is_program()) {
            pages.push(completion(shell, entry.options(), &entry.page()));
        }
        pages.push(completion(shell, whole(), "hpvm"));
    }
    pages
}

fn completion(shell: Shell, mut options: clap::Command, program: &str) -> Page {
    use clap_complete::Generator as _;
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut options, program, &mut script);
    (shell.file_name(program), script)
}

/// `hpvm` with every command below it.
fn whole() -> clap::Command {
    let commands = shown()
        .map(|entry| entry.options().name(entry.word).bin_name(format!("hpvm {}", entry.word)));
    clap::Command::new("hpvm").disable_help_subcommand(true).subcommands(commands)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn text(page: &Page) -> &str {
        std::str::from_utf8(&page.1).unwrap()
    }

    #[test]
    fn every_page_tells_all_options_and_the_exit_status() {
        let pages = manual_pages().unwrap();
        for (entry, page) in shown().zip(&pages) {
            let (name, text) = (&page.0, text(page));
            for heading in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "SEE ALSO"]
            {
                let found =
                    text.lines().any(|line| line.replace('"', "") == format!(".SH {heading}"));
                assert!(found, "{name} has no {heading}");
            }
            for long in entry.options().get_arguments().filter_map(clap::Arg::get_long) {
                let long = format!("\\-\\-{}", long.replace('-', "\\-"));
                assert!(text.contains(&long), "{name} does not tell {long}");
            }
        }
        assert_eq!(pages[0].0, "man1/hpvmcreate.1");
    }

    #[test]
    fn the_tunables_have_a_page() {
        let pages = manual_pages().unwrap();
        let page = pages.iter().find(|(name, _)| name == "man5/hpvmconf.5").unwrap();
        for tunable in TUNABLES {
            assert!(text(page).contains(&format!("\\fB{}\\fR", tunable.name)), "{}", tunable.name);
        }
        let head = format!(".TH hpvmconf 5 \"\" \"{SOURCE}\" \"{MANUAL}\"\n");
        assert!(text(page).starts_with(&head));
    }

    /// Where a look at the manual begins.
    #[test]
    fn the_whole_has_a_page() {
        let pages = manual_pages().unwrap();
        let page = pages.iter().find(|(name, _)| name == "man1/hpvm.1").unwrap();
        for entry in shown() {
            let name = format!("\\fB{}(1)\\fR", entry.page().replace('-', "\\-"));
            assert!(text(page).contains(&name), "{name}");
        }
        let documented = include_str!("../../../docs/files.md");
        for (variable, says) in ENVIRONMENT {
            assert!(text(page).contains(&format!("\\fB{variable}\\fR")), "{variable}");
            let row = format!("| `{variable}` | {says} |\n");
            assert!(documented.contains(&row), "docs/files.md should have {row}");
        }
    }

    #[test]
    fn the_statements_have_a_page() {
        let pages = manual_pages().unwrap();
        let page = pages.iter().find(|(name, _)| name == "man5/hpvmresources.5").unwrap();
        let first_words = STATEMENTS.iter().map(|(term, _)| term.split(':').next().unwrap());
        for word in first_words {
            assert!(text(page).contains(&format!("\\fB{word}")), "{word}");
        }
    }

    #[test]
    fn what_changes_something_tells_how_it_ends_when_interrupted() {
        let told: Vec<&str> = shown()
            .filter(|entry| exit_statuses(entry).iter().any(|(status, _)| status.contains("143")))
            .map(|entry| entry.word)
            .collect();
        for word in ["create", "modify", "clone", "remove", "start", "stop", "devmgmt", "net"] {
            assert!(told.contains(&word), "{word} is not among {told:?}");
        }
        assert!(!told.contains(&"status"));
    }

    #[test]
    fn synopses_are_written_as_in_the_manual() {
        let of = |word: &str| {
            let entry = COMMANDS.iter().find(|entry| entry.word == word).unwrap();
            synopsis(&entry.options())
        };
        assert_eq!(
            of("remove"),
            "{-P NAME | -p NUMBER} [-F] [--purge] [--dry-run] [--reason TEXT] [--help]"
        );
        assert!(of("create").starts_with("-P NAME [-O TYPE[:VERSION]] [-c NUMBER] "));
        assert!(of("create").contains(" [-a STATEMENT]... "));
        assert!(of("stop").starts_with("{-P NAME | -p NUMBER | -a} [-h] [-g] "));
        assert!(of("status").starts_with("[-P NAME] [-p NUMBER] [-V] "));
    }

    #[test]
    fn pages_of_hidden_commands_are_not_made() {
        let pages = manual_pages().unwrap();
        assert!(pages.iter().all(|(name, _)| !name.contains("crash")));
    }

    #[test]
    fn completions_are_scripts_that_know_the_options() {
        let folder = tempfile::tempdir().unwrap();
        let pages = completions();
        write_all(folder.path(), &pages).unwrap();
        for page in pages.iter().filter(|(name, _)| name.ends_with(".bash")) {
            let status = Command::new("bash").arg("-n").arg(folder.path().join(&page.0)).status();
            assert!(status.unwrap().success(), "{}", page.0);
        }
        let modify = pages.iter().find(|(name, _)| name == "hpvmmodify.bash").unwrap();
        assert!(text(modify).contains("--new-name"));
        let whole = pages.iter().find(|(name, _)| name == "hpvm.bash").unwrap();
        assert!(text(whole).contains("undelete"));
    }

    /// What bash offers for the last word of a line.
    fn completed(folder: &Path, line: &[&str]) -> Vec<String> {
        const COMPLETE: &str = r#"
            . "$1"
            shift
            COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
            "_$1" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
            printf '%s\n' "${COMPREPLY[@]}"
        "#;
        let script = folder.join(format!("{}.bash", line[0]));
        let shell =
            Command::new("bash").args(["-c", COMPLETE, "bash"]).arg(script).args(line).output();
        let shell = shell.unwrap();
        assert!(shell.status.success(), "{}", String::from_utf8_lossy(&shell.stderr));
        String::from_utf8(shell.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn bash_completes_the_options_of_each_command() {
        let folder = tempfile::tempdir().unwrap();
        write_all(folder.path(), &completions()).unwrap();
        let completed = |line: &[&str]| completed(folder.path(), line);
        assert_eq!(completed(&["hpvm", "do"]), ["doctor"]);
        assert_eq!(completed(&["hpvm", "doctor", "--reb"]), ["--rebuild"]);
        for entry in shown() {
            let offered = completed(&["hpvm", entry.word, "-"]);
            let options = entry.options();
            for long in options.get_arguments().filter_map(clap::Arg::get_long) {
                assert!(offered.contains(&format!("--{long}")), "{}: {offered:?}", entry.word);
            }
            if entry.is_program() {
                assert_eq!(completed(&[&entry.name(), "-"]), offered);
            }
        }
    }

    #[test]
    fn a_folder_that_is_missing_is_named() {
        let error = write_all(Path::new("/nonexistent"), &completions()).unwrap_err();
        assert!(error.to_string().starts_with("/nonexistent/hpvmcreate.bash"), "{error}");
    }
}
