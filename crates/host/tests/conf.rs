//! hpvmconf as administrators and shells write it.

use std::fs;
use std::path::{Path, PathBuf};

use hpvm_host::Root;
use hpvm_host::conf::{Conf, ConfError, TUNABLES, Tunable};
use hpvm_model::AvioService;
use hpvm_model::limits::LimitsTable;
use tempfile::TempDir;

/// A root with these lines in hpvmconf. It is never made, so it leaves nothing outside of its folder.
fn root_with(lines: &str) -> (TempDir, Root) {
    let folder = tempfile::tempdir().expect("a folder");
    let root = Root::at(folder.path()).expect("a root");
    write(&root.conf(), lines);
    (folder, root)
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    fs::write(path, text).expect("written");
}

fn conf(lines: &str) -> Conf {
    let (_folder, root) = root_with(lines);
    Conf::load(&root).expect("read")
}

#[test]
fn without_a_file_everything_has_its_default() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = Root::at(folder.path()).expect("a root");
    let conf = Conf::load(&root).expect("read");
    assert_eq!(conf.keep_removed_days().expect("days"), 7);
    assert_eq!(conf.limits().expect("limits"), LimitsTable::Host);
    assert_eq!(conf.firmware(), Path::new("/usr/share/OVMF/OVMF_CODE_4M.fd"));
    assert_eq!(conf.pristine_nvram(), Path::new("/usr/share/OVMF/OVMF_VARS_4M.fd"));
    assert_eq!(conf.scsi_rom(), root.guest_images().join("common/mptsas1068.rom"));
    assert_eq!(conf.lan_rom(), Path::new("/usr/lib/ipxe/qemu/efi-e1000.rom"));
    assert_eq!(conf.uid_base().expect("an id"), 1_000_000);
    assert!(conf.enabled().expect("yes or no"));
    assert_eq!(conf.mac_probe_rounds().expect("rounds"), 3);
}

#[test]
fn the_check_of_mac_addresses_goes_by_both_its_names() {
    for (line, rounds) in
        [("HPVMACADDRFRAMES=0", 0), ("HPVMMACADDRFRAMES=30", 30), ("HPVMACADDRFRAMES=", 3)]
    {
        assert_eq!(conf(line).mac_probe_rounds().expect(line), rounds);
    }
    for line in ["HPVMACADDRFRAMES=31", "HPVMMACADDRFRAMES=-1", "HPVMACADDRFRAMES=256"] {
        let error = conf(line).mac_probe_rounds().expect_err(line).to_string();
        assert!(
            error.contains("it should be a number of frames from 0 (no check) to 30"),
            "{error}"
        );
    }
}

#[test]
fn avio_is_served_as_the_administrator_chooses() {
    for (line, service) in [
        ("HPVMAVIOSERVICE=thread", Some(AvioService::Thread)),
        ("HPVMAVIOSERVICE=processor", Some(AvioService::Processor)),
        ("HPVMAVIOSERVICE=", None),
        ("", None),
    ] {
        assert_eq!(conf(line).avio_service().expect(line), service);
    }
    for line in ["HPVMAVIOSERVICE=Thread", "HPVMAVIOSERVICE=main_loop", "HPVMAVIOSERVICE=1"] {
        let conf = conf(line);
        let error = conf.avio_service().expect_err(line).to_string();
        assert!(error.ends_with("line 1; it should be processor or thread"), "{error}");
        assert_eq!(conf.faults(), [error]);
    }
}

#[test]
fn values_are_taken_as_a_shell_takes_them() {
    for (line, path) in [
        ("HPVMFIRMWARE=/a/b", "/a/b"),
        ("export HPVMFIRMWARE=/a/b   # why", "/a/b"),
        ("  HPVMFIRMWARE='/a b#c'", "/a b#c"),
        ("HPVMFIRMWARE=\"/a \\\"b\\\"\"", "/a \"b\""),
        ("HPVMFIRMWARE=/a\\ b; # two", "/a b"),
        ("HPVMFIRMWARE=/x\nHPVMFIRMWARE=/y", "/y"),
        ("# HPVMFIRMWARE=/x\nHPVMFIRMWARE=/a#b", "/a#b"),
    ] {
        assert_eq!(conf(line).firmware(), Path::new(path), "{line}");
    }
}

#[test]
fn what_is_no_assignment_is_passed_over() {
    for line in [
        "HPVMFIRMWARE=/a other",
        "HPVMFIRMWARE = /a",
        "HPVMFIRMWARE='/a",
        "HPVMFIRMWARE=$(which x)",
        "if [ -f /x ]; then HPVMFIRMWARE=/a; fi",
        "2HPVMFIRMWARE=/a",
    ] {
        assert_eq!(conf(line).firmware(), Path::new("/usr/share/OVMF/OVMF_CODE_4M.fd"), "{line}");
    }
}

#[test]
fn a_wrong_value_is_refused_with_its_place() {
    let conf =
        conf("# days\nHPVMKEEPREMOVED=soon\nHPVMLIMITS=A.04\nHPVMUIDBASE=0\nHPVMENABLE=yes\n");
    let error = conf.keep_removed_days().expect_err("no number");
    let said = error.to_string();
    assert!(said.starts_with("HPVMKEEPREMOVED is 'soon' in "), "{said}");
    assert!(said.ends_with("line 2; it should be a number of days, 36500 at most"), "{said}");
    assert!(matches!(conf.limits(), Err(ConfError::Value { line: 3, .. })));
    assert!(matches!(conf.uid_base(), Err(ConfError::Value { line: 4, .. })));
    assert!(matches!(conf.enabled(), Err(ConfError::Value { line: 5, .. })));
}

#[test]
fn the_old_place_is_honoured_and_the_new_one_wins() {
    let (_folder, root) = root_with("HPVMLIMITS=A.03.50\n");
    write(&root.old_conf(), "HPVMLIMITS=\nHPVMKEEPREMOVED=30\n");
    let conf = Conf::load(&root).expect("read");
    assert_eq!(conf.limits().expect("limits"), LimitsTable::A0350);
    assert_eq!(conf.keep_removed_days().expect("days"), 30);
}

#[test]
fn paths_are_real_ones_unless_relative_to_the_guest_images() {
    let (_folder, root) = root_with("HPVMFIRMWARE=fw/code.fd\nHPVMQEMU=/opt/qemu\n");
    write(&root.guest_images().join("common/nvram"), "pristine");
    let conf = Conf::load(&root).expect("read");
    assert_eq!(conf.firmware(), root.guest_images().join("fw/code.fd"));
    assert_eq!(conf.pristine_nvram(), root.guest_images().join("common/nvram"));
    assert_eq!(conf.qemu().expect("a path"), PathBuf::from("/opt/qemu"));
}

#[test]
fn a_program_is_looked_for_in_path() {
    let found = conf("HPVMQEMU=sh\n").qemu().expect("every host has one");
    assert!(found.is_absolute() && found.ends_with("sh"));
    let error = conf("HPVMQEMU=no-such-qemu\n").qemu().expect_err("missing");
    assert!(matches!(error, ConfError::NotInPath { name } if name == "no-such-qemu"));
}

#[test]
fn what_is_no_hpvmconf_is_refused_or_harmless() {
    let (_folder, root) = root_with("");
    fs::write(root.conf(), b"\xff\xfe HPVMX=\n\0HPVMKEEPREMOVED=3\nHPVMKEEPREMOVED=4\n")
        .expect("written");
    assert_eq!(Conf::load(&root).expect("read").keep_removed_days().expect("days"), 4);
    fs::write(root.conf(), vec![b'#'; 2 << 20]).expect("written");
    assert!(matches!(Conf::load(&root), Err(ConfError::Size { .. })));
    fs::remove_file(root.conf()).expect("removed");
    fs::create_dir(root.conf()).expect("a folder");
    assert!(matches!(Conf::load(&root), Err(ConfError::NoFile { .. })));
}

#[test]
fn the_table_of_tunables_is_that_of_the_documents() {
    let documented = include_str!("../../../docs/files.md");
    let rows: String = TUNABLES
        .iter()
        .map(|Tunable { name, says, otherwise, .. }| {
            format!("| `{name}` | {says} | {otherwise} |\n")
        })
        .collect();
    assert!(documented.contains(&rows), "docs/files.md should have\n{rows}");
}

#[test]
fn all_that_is_wrong_is_told_with_its_place() {
    let text = "HPVMSTOP=abc\n# good\nFOO=1\n\nblah blah\nexport HPVMACADDRFRAMES=31\nHPVMQEMU=x\n";
    let (_folder, root) = root_with(text);
    let file = root.conf().display().to_string();
    let found = Conf::load(&root).expect("read").faults();
    assert_eq!(
        found,
        [
            format!("{file}, line 3: FOO is no tunable of hpvm, see hpvmconf(5)"),
            format!("{file}, line 5: 'blah blah' is no NAME=value, and is passed over"),
            format!(
                "HPVMSTOP is 'abc' in {file}, line 1; it should be a number of seconds from 1 to 3600"
            ),
            format!(
                "HPVMACADDRFRAMES is '31' in {file}, line 6; it should be a number of frames from 0 (no check) to 30"
            ),
        ]
    );
    assert_eq!(conf("HPVMKEEPREMOVED=3\n\n  # why\n").faults(), Vec::<String>::new());
}
