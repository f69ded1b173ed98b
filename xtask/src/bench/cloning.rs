//! The rows about clones: hpvmclone, `cp`, `qemu-img convert` and, where libvirt is there, `virsh vol-clone` copy the same disk
//! in turn, each until the copy is on the disk; then clones of it that share its blocks, and linked ones, in turn with the tools
//! that make the copies alone.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Effort;
use super::house::House;
use super::peer::Peer;
use super::process::timed;
use super::reflink::{KINDS, Lacking, SharingFileSystem};
use super::report::{Row, Verdict};
use super::statistics::Series;

const DISK_BYTES: u64 = 4 << 30;
const DATA_BYTES: u64 = 1 << 30;
const PIECES: u64 = 64;
const OVER_CP: f64 = 0.8;
const AT_ONCE_MS: f64 = 15.0;

pub(super) fn measure(effort: &Effort) -> Result<Vec<Row>> {
    let house = House::new()?;
    let folder = house.root.join("volumes");
    fs::create_dir(&folder)?;
    let disk = folder.join("source.img");
    fill(&disk)?;
    let statement = format!("disk:avio_stor:0,1,0:file:{}", disk.display());
    house.run(&["hpvmcreate", "-P", "source", "-a", &statement])?;
    let copy = folder.join("copy.img");
    let peer = Peer::start()?;
    peer.as_ref().map(|peer| peer.keep_volumes(&folder)).transpose()?;
    let [mut ours, mut cp, mut convert, mut volume] = [(); 4].map(|()| Series::default());
    for turn in 0..=effort.runs(7) {
        let turns = [
            our_copy(&house, turn, &copy)?,
            copied_by(&["cp", "--sparse=auto"], &disk, &copy)?,
            copied_by(&["qemu-img", "convert", "-f", "raw", "-O", "raw"], &disk, &copy)?,
        ];
        let by_peer = peer.as_ref().map(|peer| volume_copied(peer, &disk, &copy)).transpose()?;
        // The first of each reads the disk into memory.
        if turn > 0 {
            [&mut ours, &mut cp, &mut convert, &mut volume]
                .into_iter()
                .zip(turns.into_iter().chain(by_peer))
                .for_each(|(series, time)| series.push(time));
        }
    }
    // The last of the others went when ours was timed, so ours is made once more to be looked at.
    our_copy(&house, effort.runs(7) + 1, &copy)?;
    is_same_with_holes(&disk, &copy)?;
    drop(peer);
    let [on_xfs, on_btrfs] = KINDS.map(|kind| by_reflink(effort, &house, &disk, kind));
    let [mut linked, mut overlay] = [(); 2].map(|()| Series::default());
    for turn in 0..=effort.runs(31) {
        let name = format!("linked{turn}");
        let took = house.time(&["hpvmclone", "-P", "source", "-N", &name, "--linked"])?;
        let create = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"];
        let image = copied_by(&[&["qemu-img"][..], &create].concat(), &disk, &copy)?;
        if turn > 0 {
            linked.push(took);
            overlay.push(image);
        }
    }
    Ok(vec![
        Row {
            what: "clone of a 4 GiB disk file with 1 GiB of data, until it is on the disk".into(),
            peer: match volume.is_empty() {
                true => format!("`qemu-img convert` and sync {convert}"),
                false => {
                    format!("`virsh vol-clone` and sync {volume}; `qemu-img convert` {convert}")
                }
            },
            target: "4/5 of `cp --sparse=auto` and sync",
            measured: format!("{ours}; cp {cp}"),
            verdict: Verdict::of(ours.median() <= OVER_CP * cp.median()),
        },
        on_xfs?,
        on_btrfs?,
        Row {
            what: "the same by `--linked`".into(),
            peer: format!("`qemu-img create -b` and sync of the image alone {overlay}"),
            target: "15 ms",
            measured: linked.to_string(),
            verdict: Verdict::of(linked.median() <= AT_ONCE_MS),
        },
    ])
}

/// A copy holds what its disk does, and takes no more room.
fn is_same_with_holes(disk: &Path, copy: &Path) -> Result<()> {
    timed(Command::new("cmp").args([disk, copy])).context("the copy is another")?;
    let blocks = |path: &Path| fs::metadata(path).map(|file| file.blocks());
    let (had, has) = (blocks(disk)?, blocks(copy)?);
    // Both are told in 512 bytes; a file system may need some for its own map of a file.
    ensure!(has <= had + had / 100, "of a disk of {had} blocks the copy takes {has}");
    Ok(())
}

/// The whole command, on a file system where a copy shares its disk's blocks.
fn by_reflink(effort: &Effort, house: &House, disk: &Path, kind: &str) -> Result<Row> {
    let row = |peer, measured: String, verdict| Row {
        what: format!("the same by reflink ({kind}), the whole command"),
        peer,
        target: "15 ms",
        measured,
        verdict,
    };
    let system = match SharingFileSystem::in_folder(&house.root, kind)? {
        Ok(system) => system,
        Err(Lacking(reason)) => {
            return Ok(row(String::new(), format!("– ({reason})"), Verdict::Unmeasured));
        }
    };
    let source = system.mount.join("source.img");
    timed(Command::new("cp").arg("--sparse=always").args([disk, &source]))?;
    let at = |path: &Path| format!("disk:avio_stor:0,1,0:file:{}", path.display());
    let sharing = format!("on-{kind}");
    house.run(&["hpvmcreate", "-P", &sharing, "-a", &at(&source)])?;
    let copy = system.mount.join("copy.img");
    let [mut series, mut cp] = [(); 2].map(|()| Series::default());
    for turn in 0..=effort.runs(31) {
        let by_cp = copied_by(&["cp", "--reflink=always"], &source, &copy)?;
        quiet(&copy)?;
        let name = format!("{kind}{turn}");
        let took = house.time(&["hpvmclone", "-P", &sharing, "-N", &name, "-b", &at(&copy)])?;
        house.run(&["hpvmremove", "-P", &name, "-F", "--purge"])?;
        if turn > 0 {
            series.push(took);
            cp.push(by_cp);
        }
    }
    is_same_with_holes(&source, &copy)?;
    let verdict = Verdict::of(series.median() <= AT_ONCE_MS);
    Ok(row(format!("`cp --reflink` and sync of the copy alone {cp}"), series.to_string(), verdict))
}

/// Data in pieces of 16 MiB with holes of 48 MiB between them, like a disk that is in use.
fn fill(disk: &Path) -> Result<()> {
    let file = File::create(disk)?;
    file.set_len(DISK_BYTES)?;
    let mut random = 1u64;
    let length = usize::try_from(DATA_BYTES / PIECES)?;
    for piece in 0..PIECES {
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            bytes.extend(random.to_be_bytes());
        }
        file.write_all_at(&bytes, piece * (DISK_BYTES / PIECES))?;
    }
    Ok(file.sync_all()?)
}

fn our_copy(house: &House, turn: usize, copy: &Path) -> Result<Duration> {
    let name = format!("copy{turn}");
    let statement = format!("disk:avio_stor:0,1,0:file:{}", copy.display());
    quiet(copy)?;
    let took = house.time(&["hpvmclone", "-P", "source", "-N", &name, "-b", &statement])?;
    house.run(&["hpvmremove", "-P", &name, "-F", "--purge"])?;
    Ok(took)
}

fn copied_by(line: &[&str], disk: &Path, copy: &Path) -> Result<Duration> {
    quiet(copy)?;
    let (_, copying) = timed(Command::new(line[0]).args(&line[1..]).args([disk, copy]))?;
    let (_, syncing) = timed(Command::new("sync").arg(copy))?;
    Ok(copying + syncing)
}

fn volume_copied(peer: &Peer, disk: &Path, copy: &Path) -> Result<Duration> {
    quiet(copy)?;
    let copying = peer.clone_volume(disk, copy)?;
    let (_, syncing) = timed(Command::new("sync").arg(copy))?;
    Ok(copying + syncing)
}

/// The last copy is gone, and nobody's writing is left over.
fn quiet(copy: &Path) -> Result<()> {
    if copy.exists() {
        fs::remove_file(copy).context("removing the last copy")?;
    }
    timed(&mut Command::new("sync")).map(drop)
}
