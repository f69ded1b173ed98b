//! What installs hpvm: on a machine that cannot run it, it says what is missing, in one line, and touches nothing; elsewhere it
//! touches nothing that is not ours.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hpvm_testkit::vm_host::{Outcome, repository};
use hpvm_testkit::write_script;

use crate::Test;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_machine_that_is_too_old_is_left_alone,
    an_installation_touches_nothing_that_is_not_ours,
    units_name_what_is_installed,
];

/// Where a shell finds the plain tools it uses.
const TOOLS: [&str; 9] = ["sh", "sed", "cut", "sort", "head", "dirname", "grep", "id", "cat"];

/// Settles 9: neither a Rust that is not there nor one that is too old lets a package be asked for.
fn a_machine_that_is_too_old_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    for tool in TOOLS {
        let real = ["/bin", "/usr/bin"].map(|place| Path::new(place).join(tool));
        let real = real.into_iter().find(|path| path.exists()).expect("a tool of every Debian");
        symlink(real, folder.path().join(tool)).expect("linked");
    }
    let touched = folder.path().join("touched");
    for changer in ["apt-get", "sudo", "dpkg-query"] {
        write_script(
            &folder.path().join(changer),
            &format!("echo {changer} >>{}", touched.display()),
        );
    }
    for cargo in [None, Some("cargo 1.60.0 (d1fd9fe2c 2022-03-01)")] {
        if let Some(version) = cargo {
            write_script(&folder.path().join("cargo"), &format!("echo '{version}'"));
        }
        let mut command = Command::new("/bin/sh");
        command.arg(repository().join("scripts/install-deps")).arg("demo").env_clear();
        command.env("PATH", folder.path()).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let outcome = Outcome::of("install-deps", command, b"");
        assert_eq!(outcome.status.code(), Some(1), "{outcome}");
        assert_eq!(outcome.stderr.lines().count(), 1, "{outcome}");
        assert!(outcome.stderr.contains("is needed"), "{outcome}");
        assert!(!touched.exists(), "{}", fs::read_to_string(&touched).unwrap_or_default());
    }
}

/// What others have where our files go, and where multipath products have theirs.
const FOREIGN: [&str; 8] = [
    "etc/multipath.conf",
    "etc/multipath/bindings",
    "etc/multipath/conf.d/array.conf",
    "etc/opt/hpvm/hpvmconf",
    "etc/udev/rules.d/60-multipath.rules",
    "usr/lib/udev/rules.d/60-multipath.rules",
    "usr/lib/systemd/system/multipathd.service",
    "opt/other/bin/hpvmstatus",
];

/// Settles 151: what was there is as it was, also when it is done again, and each file that is new bears our name or lies in a
/// folder that does.
fn an_installation_touches_nothing_that_is_not_ours() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path();
    for name in FOREIGN {
        let path = root.join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(&path, format!("the settings of {name}\n")).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("its mode");
    }
    let before = all_below(root);
    let mut installed = BTreeMap::new();
    for round in ["once", "again"] {
        install_below(root);
        let after = all_below(root);
        for (path, known) in &before {
            assert_eq!(after.get(path), Some(known), "{}, {round}", path.display());
        }
        installed = after;
    }
    installed.retain(|path, _| !before.contains_key(path));
    assert!(installed.len() > 20, "{installed:?}");
    for path in installed.keys() {
        let is_ours = |name: &Path| name.to_string_lossy().contains("hpvm");
        let in_ours = path.starts_with("opt/hpvm");
        let named = path.file_name().is_some_and(|name| is_ours(Path::new(name)));
        assert!(in_ours || named, "{} is new", path.display());
    }
}

/// The manual pages that they document themselves by, and the programs that they run.
fn units_name_what_is_installed() {
    let folder = tempfile::tempdir().expect("a folder");
    install_below(folder.path());
    let installed = all_below(folder.path());
    let man = Path::new("opt/hpvm/share/man");
    let mut named = BTreeSet::new();
    for (unit, (.., content)) in &installed {
        if !unit.extension().is_some_and(|ending| ending == "service" || ending == "path") {
            continue;
        }
        let text = String::from_utf8(content.clone()).expect("a text");
        for word in text.split([' ', '=', '\n', '\'', '"']) {
            let page = word.strip_prefix("man:").map(|page| {
                let (name, section) = page.split_once('(').expect("a section");
                let section = section.strip_suffix(')').expect("a section");
                man.join(format!("man{section}/{name}.{section}"))
            });
            let program =
                word.strip_prefix("/opt/hpvm/").map(|below| Path::new("opt/hpvm").join(below));
            for path in page.into_iter().chain(program) {
                assert!(installed.contains_key(&path), "{}: {}", unit.display(), path.display());
                named.insert(path);
            }
        }
    }
    assert!(named.len() >= 5, "{named:?}");
}

fn install_below(root: &Path) {
    let mut make = Command::new("make");
    make.args(["--silent", "--no-print-directory", "install-built"]).current_dir(repository());
    let built = repository().join("target/debug");
    make.arg(format!("BUILT={}", built.display()));
    make.arg("HPVM_ROOT=").arg(format!("DESTDIR={}", root.display()));
    // Links take no time and no room.
    make.arg("INSTALL_PROGRAM=ln -sf");
    make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL").stdin(Stdio::null());
    make.stdout(Stdio::piped()).stderr(Stdio::piped());
    let outcome = Outcome::of("make", make, b"");
    assert!(outcome.status.success(), "{outcome}");
}

/// Each file below a folder that is no folder itself: its mode, its size, where it leads, and what is in it where that is little.
fn all_below(root: &Path) -> BTreeMap<PathBuf, (u32, u64, Option<PathBuf>, Vec<u8>)> {
    let (mut found, mut todo) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(folder) = todo.pop() {
        for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry")) {
            let path = entry.path();
            let status = path.symlink_metadata().expect("it is there");
            if status.is_dir() {
                todo.push(path);
                continue;
            }
            let content = match status.is_file() && status.len() < 1 << 16 {
                true => fs::read(&path).expect("it is read"),
                false => Vec::new(),
            };
            let below = path.strip_prefix(root).expect("it lies below").to_owned();
            let known = (status.mode(), status.len(), fs::read_link(&path).ok(), content);
            found.insert(below, known);
        }
    }
    found
}
