//! Copies of disks: the content is the same, holes stay holes, and who gives up is obeyed at once.

use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use hpvm_host::copy::{Progress, Target, copy};
use hpvm_host::qcow2::{Base, Format, disk_size, write_empty, write_overlay};
use proptest::prelude::*;
use rustix::fs::SeekFrom;

const MIB: u64 = 1 << 20;

/// A file that has data at these places, 64 KiB each, and is so long.
fn disk(path: &Path, data: &[u64], length: u64) -> File {
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    file.set_len(length).unwrap();
    for place in data {
        let piece: Vec<u8> = (0..65_536u64).map(|n| (n * 7 + place / 4096) as u8 | 1).collect();
        let room = length.saturating_sub(*place).min(65_536) as usize;
        file.write_all_at(&piece[..room], *place).unwrap();
    }
    file
}

fn fresh(path: &Path) -> File {
    File::options().read(true).write(true).create_new(true).open(path).unwrap()
}

/// Where a file has data, as the file system tells.
fn map(file: &File) -> Vec<(u64, u64)> {
    let (mut map, mut at) = (Vec::new(), 0);
    while let Ok(begin) = rustix::fs::seek(file, SeekFrom::Data(at)) {
        let end = rustix::fs::seek(file, SeekFrom::Hole(begin)).unwrap();
        map.push((begin, end));
        at = end;
    }
    map
}

fn on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn content_and_holes_are_the_sources(
        mut places in prop::collection::btree_set(0u64..512, 0..12),
        tail in 0u64..9000,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let length = 32 * MIB + tail;
        // The last block of all is a partial one.
        if tail % 2 == 0 { places.insert(512); }
        let data: Vec<u64> = places.iter().map(|place| place * 65_536).collect();
        let source = disk(&folder.path().join("source"), &data, length);
        source.sync_all().unwrap();
        let target = fresh(&folder.path().join("target"));
        copy(&source, &Target::new(&target), &mut on).unwrap();
        prop_assert_eq!(target.metadata().unwrap().len(), length);
        prop_assert_eq!(map(&target), map(&source));
        let read = |name: &str| fs::read(folder.path().join(name)).unwrap();
        prop_assert!(read("source") == read("target"), "the content differs");
    }
}

#[test]
fn a_copy_of_nothing_takes_no_room() {
    let folder = tempfile::tempdir().unwrap();
    for length in [0, 1, 4096, 64 * MIB] {
        let source = disk(&folder.path().join(format!("source{length}")), &[], length);
        let target = fresh(&folder.path().join(format!("target{length}")));
        copy(&source, &Target::new(&target), &mut on).unwrap();
        let made = target.metadata().unwrap();
        assert_eq!((made.len(), made.blocks()), (length, 0));
    }
}

#[test]
fn who_gives_up_is_obeyed() {
    let folder = tempfile::tempdir().unwrap();
    let data: Vec<u64> = (0..512).map(|n| n * 65_536).collect();
    let source = disk(&folder.path().join("source"), &data, 32 * MIB);
    let target = fresh(&folder.path().join("target"));
    let mut seen = Vec::new();
    let mut give_up = |progress: Progress| {
        seen.push(progress);
        ControlFlow::Break(())
    };
    let given_up = copy(&source, &Target::new(&target), &mut give_up).unwrap_err();
    assert_eq!(given_up.kind(), io::ErrorKind::Interrupted);
    assert!(seen.iter().all(|progress| progress.done < progress.whole), "{seen:?}");
}

#[test]
fn an_overlay_tells_its_size() {
    let folder = tempfile::tempdir().unwrap();
    for (n, size) in [0, 512, MIB + 1, 4 << 30, 5 << 40].into_iter().enumerate() {
        let image = fresh(&folder.path().join(n.to_string()));
        let base = Base { path: Path::new("/srv/base.img"), format: Format::Raw, size };
        write_overlay(&image, &base).unwrap();
        assert_eq!(disk_size(&image).unwrap(), Some(size.next_multiple_of(512)));
        let mut head = [0; 256];
        image.read_exact_at(&mut head, 0).unwrap();
        assert!(head.windows(13).any(|window| window == b"/srv/base.img"));
    }
    let no_image = disk(&folder.path().join("none"), &[0], MIB);
    assert_eq!(disk_size(&no_image).unwrap(), None);
    let image = fresh(&folder.path().join("large"));
    let base = Base { path: Path::new("/b"), format: Format::Raw, size: 1 << 62 };
    assert!(write_overlay(&image, &base).is_err(), "QEMU takes no such table");
}

/// QEMU finds nothing wrong with it, and nothing in it.
#[test]
fn an_empty_image_is_one_to_qemu() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    write_empty(&fresh(&path), 5 << 30).unwrap();
    for line in [&["check", "-f", "qcow2"][..], &["map", "-f", "qcow2", "--output=json"]] {
        let done = Command::new("qemu-img").args(line).arg(&path).output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success(), "{line:?}: {said}");
        let is_map = line[0] == "map";
        assert!(!is_map || said.contains(r#""length": 5368709120"#), "{said}");
        assert!(!is_map || said.contains(r#""data": false"#) && !said.contains(r#""data": true"#));
    }
    assert!(!fs::read(&path).unwrap().windows(4).any(|window| window == b"raw\0"));
}
