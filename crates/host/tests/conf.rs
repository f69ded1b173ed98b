//! hpvmconf as administrators and shells write it.

use std::fs;
use std::path::{Path, PathBuf};

use hpvm_host::Root;
use hpvm_host::conf::{Conf, ConfError};
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
fn every_tunable_is_documented() {
    let documented = include_str!("../../../docs/files.md");
    let is_name = |text: &&str| {
        text.starts_with("HPVM") && text.chars().all(|letter| letter.is_ascii_uppercase())
    };
    let names: Vec<&str> = include_str!("../src/conf.rs").split('"').filter(is_name).collect();
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        assert!(documented.contains(&format!("`{name}`")), "{name} is not in docs/files.md");
    }
}
