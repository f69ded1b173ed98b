//! `cargo xtask scsi-target`: a server of SCSI devices for tests, and QEMU's driver for them.
//!
//! Small machines have no SCSI devices to give to a guest. tgt serves disks, tapes, changers and burners by iSCSI on the
//! loopback interface, and QEMU's iscsi driver, which Debian has in a package of its own, hands them to a guest as it would a
//! device of the machine. sg_persist, to reserve a disk, and cdrskin, to burn a disc, are for the guest. Installed, tgt would
//! start a service of the machine; so the files are unpacked into an archive that a test unpacks where it wants them. What
//! they are linked with and is not in the archive comes with QEMU.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::apt;
use crate::cache::{self, Key, Scratch};
use crate::tool::{output, perform, phase, tool};

const RECIPE: &str = include_str!("scsi_target.rs");
const QUICK: Duration = Duration::from_secs(60);

const PACKAGES: [&str; 6] =
    ["tgt", "libiscsi7", "sg3-utils", "libsgutils2-1.46-2", "cdrskin", "libburn4"];

/// What is in the archive, by its name there, and where the packages have it.
const FILES: [(&str, &str); 9] = [
    ("tgtd", "usr/sbin/tgtd"),
    ("tgtadm", "usr/sbin/tgtadm"),
    ("tgtimg", "usr/sbin/tgtimg"),
    ("block-iscsi.so", "usr/lib/x86_64-linux-gnu/qemu/block-iscsi.so"),
    ("libiscsi.so.7", "usr/lib/x86_64-linux-gnu/libiscsi.so.7"),
    ("sg_persist", "usr/bin/sg_persist"),
    ("libsgutils2-1.46.so.2", "usr/lib/x86_64-linux-gnu/libsgutils2-1.46.so.2"),
    ("cdrskin", "usr/bin/cdrskin"),
    ("libburn.so.4", "usr/lib/x86_64-linux-gnu/libburn.so.4"),
];

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    if !arguments.is_empty() {
        bail!("usage: cargo xtask scsi-target");
    }
    let mut versions = apt::versions(&PACKAGES)?;
    // QEMU loads no module but those of its own build.
    versions.insert("qemu-block-extra".into(), installed("qemu-system-x86")?);
    let named = versions.iter().flat_map(|(package, version)| [package.as_str(), version]);
    let key = Key::of([RECIPE].into_iter().chain(named));
    let archive = cache::product("scsi-target", "tar", &key, |scratch| {
        let tree = scratch.join("tree");
        phase("unpack the packages", || {
            versions.iter().try_for_each(|(package, version)| apt::unpack(package, version, &tree))
        })?;
        pack(scratch, &tree)
    })?;
    println!("{}", archive.display());
    Ok(())
}

fn installed(package: &str) -> Result<String> {
    let mut query = tool("dpkg-query", QUICK);
    query.args(["--show", "--showformat", "${Version}", package]);
    Ok(output(&mut query)?.trim().to_owned())
}

fn pack(scratch: &Scratch, tree: &Path) -> Result<PathBuf> {
    let folder = scratch.join("files");
    fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
    for (name, path) in FILES {
        let from = tree.join(path);
        fs::copy(&from, folder.join(name))
            .with_context(|| format!("copying {}", from.display()))?;
    }
    let archive = scratch.join("scsi-target.tar");
    let mut tar = tool("tar", QUICK);
    tar.args(["--create", "--owner=0", "--group=0", "--file"]).arg(&archive);
    perform(tar.arg("--directory").arg(&folder).arg("."))?;
    Ok(archive)
}
