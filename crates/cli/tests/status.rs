//! What hpvmstatus prints, as text files to be read at review, and the promises that programs rely on.
//! `SNAPSHOTS=overwrite` writes the files anew.

use std::time::Duration;

use hpvm_app::snapshot::{Agent, Crash, Ending};
use hpvm_cli::status::list::{self, Listed};
use hpvm_cli::status::{
    Gathered, Moment, Shown, devices, entitlements, events, json, machine, sections, server,
    verbose, xml,
};
use hpvm_model::*;
use hpvm_operations::processor_use::{Lately, ProcessorUse};
use hpvm_operations::view::{GuestView, HostView};
use hpvm_plan::difference::waiting;
use hpvm_plan::facts::Engine;
use hpvm_plan::record::{Access, AgentChannel, Attached, BootRecord, FORMAT, Machine};
use snapbox::data::DataFormat;
use snapbox::{Data, assert_data_eq};

const MHZ: u32 = 1600;

/// A kept output, compared byte by byte: snapbox would otherwise take a `\\` for a path's separator.
fn golden(file: &str) -> Data {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/status/");
    Data::read_from(std::path::Path::new(&format!("{folder}{file}")), Some(DataFormat::Text)).raw()
}

fn device(statement: &str, id: u64) -> StorageDevice {
    let statement = Statement::parse(statement, StatementForm::Modify).unwrap();
    StorageDevice {
        kind: statement.kind,
        adapter: statement.adapter,
        address: statement.address.unwrap(),
        backing: statement.backing.unwrap(),
        layers: Vec::new(),
        id: DiskId::from_random(id),
    }
}

fn config(number: u32, name: &str, storage: &[&str]) -> GuestConfig {
    GuestConfig {
        uuid: GuestUuid(uuid::Uuid::from_u128(
            0x58d0_3f5d_79ed_41d9_b720_17c0_97e9_0000 + u128::from(number),
        )),
        number: GuestNumber::new(number).unwrap(),
        name: name.parse().unwrap(),
        serial_number: format!("VM{number:08}"),
        label: Label::default(),
        os: OsType::UNKNOWN,
        vcpus: Vcpus::ONE,
        entitlement: Entitlement::DEFAULT,
        memory: Memory::at_least(Bytes(2 << 30)).unwrap(),
        auto_start: AutoStart::Manual,
        runnable: Runnable::Enabled,
        storage: storage.iter().zip(1..).map(|(statement, id)| device(statement, id)).collect(),
        nics: Vec::new(),
        ports: Vec::new(),
    }
}

fn boot(config: &GuestConfig) -> Machine {
    let storage = config.storage.iter().cloned();
    Machine::new(BootRecord {
        format: FORMAT,
        uuid: config.uuid,
        number: config.number,
        name: config.name.clone(),
        serial_number: config.serial_number.clone(),
        boot_id: "0f6b7a52-5d5a-4b8e-9d0b-0d6c8e3e4f10".into(),
        started_at: "2026-11-24T08:00:00Z".into(),
        engine: Engine { program: "/usr/bin/qemu-system-x86_64".into(), version: "10.0.2".into() },
        machine_type: "pc-q35-10.0".into(),
        accelerator: Accelerator::Tcg,
        vcpus: config.vcpus,
        memory: config.memory,
        firmware_code: "/usr/share/OVMF/OVMF_CODE_4M.fd".into(),
        option_rom: None,
        lan_rom: None,
        ports: Vec::new(),
        storage: storage.map(Attached::of).collect(),
        nics: Vec::new(),
        agent: AgentChannel::Present,
        avio_service: AvioService::Processor,
        reservations: None,
        owner: None,
    })
}

/// Off, healthy, never started, without devices.
fn empty() -> GuestView {
    GuestView {
        config: config(8, "empty", &[]),
        state: RunState::Off,
        since: None,
        read_only: std::collections::BTreeSet::new(),
        empty_drives: Vec::new(),
        health: Vec::new(),
        agent: None,
        machine: None,
        heard: std::collections::BTreeMap::new(),
        waiting: Vec::new(),
        last_ending: None,
    }
}

/// Runs, is not well, and something waits for its next start, from which on its disk may be written.
fn running() -> GuestView {
    let mut config = config(
        1,
        "web1",
        &["disk:avio_stor:0,0,0:file:/guests/web1/root.img", "dvd:scsi:0,1,0:null:/iso images"],
    );
    config.label = "web server 1.0".parse().unwrap();
    config.os = "linux:12".parse().unwrap();
    config.vcpus = Vcpus::try_from(2).unwrap();
    config.entitlement = Entitlement::parse_cycles("200:800").unwrap();
    config.auto_start = AutoStart::Auto;
    let mut machine = boot(&config);
    machine.storage[0].access = Access::ReadOnly;
    config.vcpus = Vcpus::try_from(4).unwrap();
    config.memory = Memory::at_least(Bytes(1536 << 20)).unwrap();
    config.storage.pop();
    config.storage.push(device("disk:avio_stor:6,7,127:file:/guests/a&b<\u{202e}>.img", 9));
    GuestView {
        heard: std::collections::BTreeMap::new(),
        waiting: waiting(&config, &machine),
        config,
        state: RunState::On(Occupant::Os),
        since: Some("2026-11-24T08:00:12Z".into()),
        read_only: std::collections::BTreeSet::new(),
        empty_drives: Vec::new(),
        health: vec!["the guest is held still: the disk of \u{1b}[31m'/guests' is full".into()],
        agent: Some(Agent::Answers { since: "2026-11-24T08:00:09Z".into() }),
        machine: Some(machine),
        last_ending: None,
    }
}

/// Crashed, its name is longer than the column, and its disk is only read.
fn crashed() -> GuestView {
    let cause = Crash::Killed { signal: 9 };
    GuestView {
        since: Some("2026-11-24T09:30:00Z".into()),
        last_ending: Some(("2026-11-24T09:30:00Z".into(), Ending::Crashed { cause })),
        config: config(
            12345,
            "a-name-of-more-than-twenty-characters",
            &["disk:scsi:0,0,7:file:/d"],
        ),
        read_only: ["0,0,7".parse().unwrap()].into(),
        ..empty()
    }
}

fn host() -> HostView {
    HostView {
        processor_mhz: MHZ,
        memory_total_mib: 16363,
        memory_available_mib: 5926,
        swap_available_mib: 8183,
        processors: 4,
        accelerator: "tcg".into(),
        accelerator_reason: "the processor offers no virtualization".into(),
        engine: Ok(Engine {
            program: "/usr/bin/qemu-system-x86_64".into(),
            version: "10.0.2".into(),
        }),
        vcpus_max: [288, 288, 288],
    }
}

fn listed(view: &GuestView) -> Listed<'_> {
    let config = &view.config;
    Listed {
        name: &config.name,
        number: config.number,
        os: config.os.family,
        state: view.state,
        vcpus: config.vcpus,
        nics: 0,
        storage_devices: u32::try_from(config.storage.len()).unwrap(),
        memory: config.memory,
    }
}

fn now(view: &GuestView) -> Shown<'_> {
    Shown::new(view, Moment::Now, MHZ)
}

#[test]
fn the_list() {
    let views = [running(), empty(), crashed()];
    let attention = GuestView { state: RunState::Attention, ..empty() };
    let firmware = GuestView { state: RunState::On(Occupant::Firmware), ..empty() };
    let views = views.iter().chain([&attention, &firmware]).collect::<Vec<_>>();
    assert_data_eq!(list::render(views.iter().map(|v| listed(v))), golden("list.txt"));
    assert_data_eq!(list::render([].into_iter()), golden("list-empty.txt"));
}

/// The other tables here have a guest whose name is longer, and a column as wide.
#[test]
fn names_that_fit_their_column_leave_it_as_a03_50_has_it() {
    let views = [running(), empty()];
    assert_eq!(
        list::render(views.iter().map(listed)),
        "\
[Virtual Machines]
Virtual Machine Name VM #  OS Type State     #VCPUs #Devs #Nets Memory  Runsysid
==================== ===== ======= ========= ====== ===== ===== ======= ========
web1                     1 LINUX   On (OS)        4     2     0 1536 MB        0
empty                    8 UNKNOWN Off            1     0     0    2 GB        0
"
    );
    let used = views.iter().map(|view| (now(view), ProcessorUse::default()));
    let text = entitlements::all(&used.collect::<Vec<_>>());
    assert_eq!(
        text.lines().skip(2).collect::<Vec<_>>(),
        [
            "                                                      Percent       Cumulative",
            "Virtual Machine Name VM #  #VCPUs Entitlement Maximum   Usage            Usage",
            "==================== ===== ====== =========== ======= ======= ================",
            "web1                     1      2       12.5%   50.0%    0.0%                0",
            "empty                    8      1       10.0%  100.0%    0.0%                0",
        ]
    );
}

#[test]
fn one_guest_in_sections() {
    assert_data_eq!(sections::render(&now(&running())), golden("running.txt"));
    assert_data_eq!(sections::render(&now(&empty())), golden("off.txt"));
    assert_data_eq!(sections::render(&now(&crashed())), golden("crashed.txt"));
}

#[test]
fn one_guest_at_its_next_start() {
    let view = running();
    let next = Shown::new(&view, Moment::NextStart, MHZ);
    assert_data_eq!(sections::render(&next), golden("next.txt"));
}

#[test]
fn devices_as_statements() {
    assert_data_eq!(devices::render(&now(&running())), golden("devices.txt"));
    assert_data_eq!(devices::render(&now(&empty())), golden("devices-none.txt"));
}

#[test]
fn every_field() {
    let views = [running(), empty()];
    assert_data_eq!(verbose::one(&now(&crashed())), golden("verbose-one.txt"));
    let shown: Vec<Shown<'_>> = views.iter().map(now).collect();
    assert_data_eq!(verbose::all(&shown), golden("verbose-all.txt"));
}

#[test]
fn entitlements_and_use() {
    let (running, crashed) = (running(), crashed());
    let (time, within) = (Duration::from_millis(350), Duration::from_millis(500));
    let used = ProcessorUse {
        total: Duration::from_millis(21_611_866),
        lately: Lately::Used { time, within, processors: 4 },
    };
    let unknown = ProcessorUse { lately: Lately::Unknown, ..used };
    let all =
        [(now(&running), used), (now(&running), unknown), (now(&crashed), ProcessorUse::default())];
    assert_data_eq!(entitlements::all(&all), golden("entitlements.txt"));
    let one = entitlements::one(&now(&running), &used, 2_000);
    assert_data_eq!(one, golden("entitlements-one.txt"));
    let one = entitlements::one(&now(&running), &unknown, 2_000);
    assert!(one.ends_with("         10805933       -       -        -           -\n"), "{one}");
}

#[test]
fn the_vm_host() {
    assert_data_eq!(server::render(&host()), golden("server.txt"));
    let broken = HostView { engine: Err("no QEMU was found".into()), ..host() };
    assert!(server::render(&broken).contains("\nEngine = none: no QEMU was found\n"));
    assert_data_eq!(json::server(&host()).unwrap(), golden("server.json"));
}

#[test]
fn a_log_commands_no_terminal() {
    let log = b"2026-11-24T08:00:00Z started\n2026-11-24T08:00:01Z guest said \x1b]0;x\x07\xff\n";
    assert_eq!(
        events::render(log),
        "2026-11-24T08:00:00Z started\n2026-11-24T08:00:01Z guest said \\u{1b}]0;x\\u{7}\u{fffd}\n"
    );
}

#[test]
fn for_programs() {
    let views = [running(), empty(), crashed()];
    let shown: Vec<Shown<'_>> = views.iter().map(now).collect();
    assert_data_eq!(machine::render(&shown), golden("machine.txt"));
    assert_data_eq!(xml::render(&shown), golden("guests.xml"));
    assert_data_eq!(json::guests(&views, MHZ).unwrap(), golden("guests.json"));
}

/// Each option reaches the layout it names, and asks for no more than that needs.
#[test]
fn options_choose_the_layout() {
    use clap::Parser;
    use hpvm_cli::commands::{Status, Subject};
    let gathered = Gathered { view: running(), usage: ProcessorUse::default() };
    for (line, subject, beginning) in [
        ("", Subject::List, ""),
        ("-V", Subject::Guests, "[Virtual Machines]\nVirtual Machine Name  "),
        ("-r", Subject::Guests, "[Virtual Machine Resource Entitlement]"),
        ("-X", Subject::Guests, "<?xml"),
        ("-M", Subject::Guests, "web1:"),
        ("--json", Subject::Guests, "{"),
        ("-s", Subject::Server, ""),
        ("-s --json", Subject::Server, ""),
        ("-e", Subject::Events, ""),
        ("-e -P web1", Subject::Events, ""),
        ("-v", Subject::Version, ""),
        ("-P web1", Subject::Guest, "[Virtual Machine Details]\nVirtual Machine Name VM #"),
        ("-p 1 -V", Subject::Guest, "[Virtual Machine Details]\nVirtual Machine Name  "),
        ("-P web1 -d", Subject::Guest, "[Virtual Machine Devices]"),
        ("-P web1 -D", Subject::Guest, "[Virtual Machine Details]"),
        ("-P web1 -r", Subject::Guest, "[Virtual Machine entitlements]"),
        ("-P web1 -X", Subject::Guest, "<?xml"),
        ("-P web1 -M", Subject::Guest, "web1:"),
        ("-P web1 --json", Subject::Guest, "{"),
    ] {
        let words = ["hpvmstatus"].into_iter().chain(line.split_whitespace());
        let status =
            Status::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!(status.subject(), subject, "{line}");
        let text = match subject {
            Subject::Guest => status.guest_text(&gathered, MHZ).unwrap(),
            Subject::Guests => status.guests_text(std::slice::from_ref(&gathered), MHZ).unwrap(),
            _ => continue,
        };
        assert!(text.starts_with(beginning), "{line}: {text}");
    }
}

/// Devices of the next start: what was configured since is there, what was taken away is not.
#[test]
fn next_goes_with_devices_and_with_every_field() {
    use clap::Parser;
    use hpvm_cli::commands::Status;
    let gathered = Gathered { view: running(), usage: ProcessorUse::default() };
    for layout in ["-d", "-V"] {
        let status = Status::try_parse_from(["hpvmstatus", "-P", "web1", "-D", layout]).unwrap();
        let text = status.guest_text(&gathered, MHZ).unwrap();
        assert!(text.contains("/guests/a&b<") && !text.contains("/iso images"), "{layout}: {text}");
    }
}

/// The positions that programs written for A.03.50 take from a line of -M.
#[test]
fn fields_for_programs_stand_where_they_are_counted() {
    let views = [running(), empty()];
    let shown: Vec<Shown<'_>> = views.iter().map(now).collect();
    let text = machine::render(&shown);
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(':').collect()).collect();
    assert!(lines.iter().all(|fields| fields.len() == 21), "{text}");
    assert_eq!((lines[0][0], lines[0][2], lines[1][3]), ("web1", "1", ""));
    assert!(lines[0][4].starts_with("Integrity"));
    assert_eq!((lines[0][10], lines[1][10]), ("On", "Off"));
    assert_eq!((lines[0][11], lines[1][11]), ("Auto", "Manual"));
    assert_eq!(lines[0][19].split(';').next(), Some("2"));
    assert_eq!(lines[1][20].split(';').next(), Some("2GB"));
}

/// Scripts drop the heading by two words and cut the rest by column.
#[test]
fn the_list_can_be_cut_by_column() {
    let views = [running(), empty()];
    let text = list::render(views.iter().map(listed));
    let rows: Vec<&str> = text
        .lines()
        .filter(|line| !line.contains("Virtual Machine") && !line.contains("====="))
        .collect();
    assert_eq!(rows.len(), 2);
    let ruler = text.lines().nth(2).unwrap();
    for row in rows {
        assert_eq!(row.len(), ruler.len());
        for (index, _) in ruler.match_indices(' ') {
            assert_eq!(&row[index..=index], " ", "{row}");
        }
    }
}

/// Nothing that an administrator or a guest wrote reaches a terminal as a control character.
#[test]
fn no_layout_has_control_characters() {
    let views = [running(), crashed()];
    let shown: Vec<Shown<'_>> = views.iter().map(now).collect();
    for text in [
        sections::render(&shown[0]),
        devices::render(&shown[0]),
        verbose::all(&shown),
        machine::render(&shown),
        xml::render(&shown),
        json::guests(&views, MHZ).unwrap(),
    ] {
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    }
}

/// The binary over a real registry of guests that are off.
mod on_a_vm_host {
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Output};

    use hpvm_registry::{Access, Identities, Registry};

    use super::*;

    fn vm_host(guests: &[GuestConfig]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let state = root.path().join("var/opt/hpvm");
        std::fs::create_dir_all(&state).unwrap();
        let mut registry = Registry::open(&state.join("hpvm.db"), Access::ReadWrite).unwrap();
        let change = registry.change().unwrap();
        for guest in guests {
            change.insert(guest, &Identities::new()).unwrap();
        }
        change.commit().unwrap();
        root
    }

    fn hpvmstatus(root: &tempfile::TempDir, options: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_hpvm"))
            .arg0("hpvmstatus")
            .args(options)
            .env("HPVM_ROOT", root.path())
            .output()
            .unwrap()
    }

    fn text(output: &Output) -> &str {
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        assert_eq!(output.status.code(), Some(0));
        std::str::from_utf8(&output.stdout).unwrap()
    }

    fn refusal(output: &Output) -> String {
        let errors = String::from_utf8(output.stderr.clone()).unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
        assert!(errors.starts_with("hpvmstatus: ERROR: "), "{errors}");
        errors
    }

    #[test]
    fn every_layout_is_served() {
        let guest = config(8, "web", &["disk:scsi:0,0,7:file:/d"]);
        let root = vm_host(&[guest, config(3, "db", &[])]);
        let list = hpvmstatus(&root, &[]);
        let names: Vec<&str> = text(&list).lines().skip(3).map(|line| &line[..26]).collect();
        assert_eq!(names, ["db                       3", "web                      8"]);
        for layout in ["-V", "-r", "-X", "-M", "--json"] {
            let all = hpvmstatus(&root, &[layout]);
            assert!(text(&all).contains("web") && text(&all).contains("db"), "{layout}");
            let one = hpvmstatus(&root, &[layout, "-p", "8"]);
            assert!(!text(&one).contains("db"), "{layout}");
        }
        assert!(text(&hpvmstatus(&root, &["-P", "web"])).starts_with("[Virtual Machine Details]"));
        let devices = hpvmstatus(&root, &["-P", "web", "-d"]);
        assert!(text(&devices).contains("\ndisk:scsi:0,0,7:file:/d\n"));
        assert_eq!(text(&hpvmstatus(&root, &["-P", "web", "-e"])), "", "no log was begun");
        assert!(text(&hpvmstatus(&root, &["-s"])).starts_with("[HPVM Server System Resources]"));
    }

    #[test]
    fn a_guest_that_is_not_there_is_named() {
        let root = vm_host(&[]);
        let errors = refusal(&hpvmstatus(&root, &["-P", "nobody"]));
        assert!(errors.contains("No Guest by that name or number") && errors.contains("nobody"));
        // A name may be digits, and who means a number is told how to say so.
        let root = vm_host(&[config(8, "web", &[]), config(9, "17", &[])]);
        let errors = refusal(&hpvmstatus(&root, &["-P", "8"]));
        assert!(errors.ends_with("number: '8'; -p 8 is guest 'web'\n"), "{errors}");
        let errors = refusal(&hpvmstatus(&root, &["-p", "17"]));
        assert!(errors.ends_with("number: '17'; -P 17 is guest number 9\n"), "{errors}");
    }

    #[test]
    fn a_registry_that_is_none_is_told() {
        let root = vm_host(&[]);
        std::fs::write(root.path().join("var/opt/hpvm/hpvm.db"), "no database ".repeat(999))
            .unwrap();
        refusal(&hpvmstatus(&root, &[]));
    }

    #[test]
    fn a_host_without_a_registry_has_no_guests() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(text(&hpvmstatus(&root, &[])).lines().count(), 3);
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0, "looking makes nothing");
    }
}
