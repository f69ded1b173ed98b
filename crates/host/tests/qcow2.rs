//! What an image's header is taken for: every image that qemu-img makes is one, and what is refused here QEMU would refuse too.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hpvm_host::qcow2::header::{Head, Header, HeaderFault, Table, judge};
use hpvm_host::qcow2::{Base, Format, head, write_overlay};
use hpvm_model::Below;
use proptest::prelude::*;

const ALONE: Head = Head::Image(Header { below: Below::Nothing });

fn qemu(program: &str, arguments: &[&str], image: &Path) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).arg(image).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("QEMU's tools").success()
}

/// Whether QEMU opens it to write to it. What lies below is left out, as for a guest.
fn opens(image: &Path) -> bool {
    qemu("qemu-io", &["-f", "qcow2", "-c", "write 0 512"], image)
}

#[test]
fn every_image_that_qemu_makes_is_one() {
    let folder = tempfile::tempdir().unwrap();
    for (number, options) in [
        "compat=0.10",
        "compat=1.1",
        "cluster_size=512",
        "cluster_size=2M",
        "cluster_size=16K,extended_l2=on",
        "compression_type=zstd",
        "lazy_refcounts=on",
        "refcount_bits=1",
        "refcount_bits=64",
        "preallocation=metadata",
    ]
    .iter()
    .enumerate()
    {
        for size in ["512", "64M", "3G"] {
            let path = folder.path().join(format!("{number}-{size}"));
            let made = Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2", "-o", options])
                .arg(&path)
                .arg(size)
                .status();
            assert!(made.unwrap().success(), "{options}");
            assert_eq!(head(&File::open(&path).unwrap()).unwrap(), ALONE, "{options} {size}");
        }
    }
    let over = folder.path().join("over");
    fs::write(folder.path().join("base"), [0; 512]).unwrap();
    let create = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base"];
    assert!(qemu("qemu-img", &create, &over));
    let named = Head::Image(Header { below: Below::Named });
    assert_eq!(head(&File::open(&over).unwrap()).unwrap(), named);
}

/// As they were once made over a base whose path is too long for a header, and whatever QEMU has made of the header since.
#[test]
fn an_image_that_names_only_the_format_of_what_is_below_is_over_it() {
    let folder = tempfile::tempdir().unwrap();
    let (image, base) = (folder.path().join("image"), folder.path().join("base"));
    File::create(&base).unwrap().set_len(1 << 20).unwrap();
    for format in [Format::Raw, Format::Qcow2] {
        let overlay = Base { path: &base, format, size: 1 << 20 };
        write_overlay(&File::create(&image).unwrap(), &overlay).unwrap();
        let named = Head::Image(Header { below: Below::Named });
        let nameless = File::options().read(true).write(true).open(&image).unwrap();
        nameless.write_all_at(&[0; 12], 8).unwrap();
        assert_eq!(head(&nameless).unwrap(), named, "{format:?}");
        assert!(opens(&image));
        // A bitmap that comes has the header written anew, longer.
        let mut bitmap = Command::new("qemu-img");
        bitmap.args(["bitmap", "--add", "-f", "qcow2"]).arg(&image).arg("marks");
        assert!(bitmap.status().unwrap().success());
        assert_eq!(fs::read(&image).unwrap()[100..104], [0, 0, 0, 112]);
        assert_eq!(head(&nameless).unwrap(), named, "{format:?}");
    }
    // What QEMU has made to stand alone says so.
    fs::remove_file(&image).unwrap();
    let over = format!("backing_file={},backing_fmt=raw", base.display());
    assert!(qemu("qemu-img", &["create", "-f", "qcow2", "-o", &over], &image));
    assert!(qemu("qemu-img", &["rebase", "-u", "-b", ""], &image));
    assert_eq!(head(&File::open(&image).unwrap()).unwrap(), ALONE);
}

/// A path may be longer than what a header has room for.
#[test]
fn an_image_over_another_says_so_whatever_the_path() {
    let folder = tempfile::tempdir().unwrap();
    for length in [9, 1022, 1023, 1024, 4000] {
        let path = PathBuf::from("/".repeat(length - 8) + "base.img");
        let image = folder.path().join(length.to_string());
        let base = Base { path: &path, format: Format::Raw, size: 1 << 20 };
        write_overlay(&File::create(&image).unwrap(), &base).unwrap();
        let named = Head::Image(Header { below: Below::Named });
        assert_eq!(head(&File::open(&image).unwrap()).unwrap(), named, "{length}");
        assert!(qemu("qemu-img", &["info", "-f", "qcow2"], &image), "{length}");
    }
}

/// A good image of 64 MiB.
fn image(folder: &Path) -> Vec<u8> {
    let path = folder.join("good");
    let create = ["create", "-q", "-f", "qcow2", "-o", "size=64M"];
    assert!(qemu("qemu-img", &create, &path));
    fs::read(path).unwrap()
}

/// The same with other bytes at a place.
fn with(good: &[u8], place: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = good.to_vec();
    image[place..place + bytes.len()].copy_from_slice(bytes);
    image
}

/// Each fault is told as what it is, and QEMU refuses each of these images.
#[test]
fn what_is_refused_qemu_refuses() {
    let folder = tempfile::tempdir().unwrap();
    let good = image(folder.path());
    let path = folder.path().join("image");
    let check = |image: &[u8], fault: HeaderFault| {
        File::create(&path).unwrap().write_all(image).unwrap();
        let found = head(&File::open(&path).unwrap()).unwrap();
        assert_eq!(found, Head::Unusable(fault.clone()));
        assert!(!opens(&path), "QEMU takes it: {fault}");
    };
    let (short, long) = (|number: u32| number.to_be_bytes(), |number: u64| number.to_be_bytes());
    check(&good[..50], HeaderFault::Short(50));
    check(&good[..103], HeaderFault::Short(103));
    for version in [0, 1, 4, 9, u32::MAX] {
        check(&with(&good, 4, &short(version)), HeaderFault::Version(version));
    }
    for bits in [0, 8, 22, 99, u32::MAX] {
        check(&with(&good, 20, &short(bits)), HeaderFault::ClusterBits(bits));
    }
    for length in [0, 72, 103, (1 << 16) + 1, u32::MAX] {
        check(&with(&good, 100, &short(length)), HeaderFault::HeaderLength(length));
    }
    check(&with(&good, 72, &long(1 << 5)), HeaderFault::Features(1 << 5));
    check(&with(&good, 72, &long(u64::MAX)), HeaderFault::Features(u64::MAX << 5));
    check(&with(&good, 72, &long(2)), HeaderFault::Corrupt);
    check(&with(&good, 72, &long(4)), HeaderFault::ExternalData);
    check(&with(&good, 72, &long(8)), HeaderFault::Compression);
    for method in [1, 2, 3] {
        check(&with(&good, 32, &short(method)), HeaderFault::Encrypted);
    }
    check(&with(&good, 96, &short(7)), HeaderFault::RefcountBits(7));
    check(&with(&good, 24, &long(u64::MAX)), HeaderFault::DiskSize(u64::MAX));
    check(&with(&good, 24, &long(1 << 40)), HeaderFault::FirstLevel(1 << 40));
    check(&with(&good, 36, &short(0)), HeaderFault::FirstLevel(64 << 20));
    check(&with(&good, 36, &short((4 << 20) + 1)), HeaderFault::Large(Table::FirstLevel));
    check(&with(&good, 40, &long(1 << 63)), HeaderFault::Place(Table::FirstLevel));
    check(&with(&good, 40, &long(0x30001)), HeaderFault::Place(Table::FirstLevel));
    check(&with(&good, 56, &short(0)), HeaderFault::NoRefcounts);
    check(&with(&good, 56, &short(129)), HeaderFault::Large(Table::Refcounts));
    check(&with(&good, 48, &long(3)), HeaderFault::Place(Table::Refcounts));
    check(&with(&good, 60, &short(u32::MAX)), HeaderFault::Large(Table::Snapshots));
    let snapshots = with(&with(&good, 60, &short(1)), 64, &long(7));
    check(&snapshots, HeaderFault::Place(Table::Snapshots));
    check(&with(&good, 8, &long(1 << 20)), HeaderFault::Name);
    check(&with(&with(&good, 8, &long(512)), 16, &short(1024)), HeaderFault::Name);
}

/// A table behind the end is refused though QEMU would read it as empty: an image that was cut short.
#[test]
fn an_image_that_was_cut_off_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let good = image(folder.path());
    let cut = Head::Unusable(HeaderFault::Place(Table::FirstLevel));
    assert_eq!(judge(&good, 2 << 16), cut);
    assert_eq!(judge(b"QFI", 3), Head::Other);
}

proptest! {
    #[test]
    fn any_bytes_are_something(
        bytes in prop::collection::vec(any::<u8>(), 0..160),
        length in any::<u64>(),
    ) {
        prop_assert_eq!(judge(&bytes, length) == Head::Other, !bytes.starts_with(b"QFI\xfb"));
        let image = [b"QFI\xfb\0\0\0\x03".as_slice(), &bytes].concat();
        prop_assert_ne!(judge(&image, length), Head::Other);
    }

    /// Whatever one number of a good header becomes: what passes has its tables in bounds that QEMU keeps.
    #[test]
    fn what_passes_is_within_bounds(
        place in (0usize..27).prop_map(|word| word * 4),
        number in any::<u32>(),
        bits in 0u32..32,
    ) {
        let mut header = [0u8; 112];
        header[..4].copy_from_slice(b"QFI\xfb");
        for (place, number) in
            [(4, 3), (20, 16), (28, 64 << 20), (36, 1), (44, 3 << 16), (52, 1 << 16), (56, 1), (96, 4), (100, 104)]
        {
            header[place..place + 4].copy_from_slice(&u32::to_be_bytes(number));
        }
        prop_assert_eq!(judge(&header, 1 << 20), ALONE);
        header[place..place + 4].copy_from_slice(&(number >> bits).to_be_bytes());
        if let Head::Image(_) = judge(&header, 1 << 20) {
            let at = |place: usize| u32::from_be_bytes(header[place..place + 4].try_into().unwrap());
            prop_assert!(at(4) == 2 || at(4) == 3);
            prop_assert!((9..=21).contains(&at(20)) && at(24) >> 31 == 0 && at(36) <= 4 << 20);
            prop_assert!(at(40) == 0 && at(44) < 1 << 20 && at(48) == 0 && at(52) < 1 << 20);
            prop_assert!(at(32) == 0 && at(56) > 0 && at(60) <= (64 << 20) / 40);
        }
    }
}
