//! Which files of a folder of images are offered and opened.

use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};

use hpvm_host::image_lock;
use hpvm_host::media_folder::{ImageError, images, namesakes, open};
use jiff::Timestamp;

/// A folder with everything that may lie in one, and a secret beside it.
fn folder() -> (tempfile::TempDir, File) {
    let place = tempfile::tempdir().expect("a folder");
    let folder = place.path().join("images");
    fs::create_dir_all(folder.join("older")).expect("folders");
    fs::write(place.path().join("secret"), "not yours").expect("a secret");
    let file = |name: &str, mode: u32| {
        let path = folder.join(name);
        fs::write(&path, name).expect(name);
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect(name);
    };
    file("b.iso", 0o644);
    file("a disc.iso", 0o640);
    file("anybody.iso", 0o646);
    file(".hidden", 0o644);
    file("older/c.iso", 0o644);
    symlink("older/c.iso", folder.join("link.iso")).expect("a link");
    symlink("../secret", folder.join("out.iso")).expect("a link");
    symlink("/etc/passwd", folder.join("passwd.iso")).expect("a link");
    symlink("nowhere", folder.join("dangling.iso")).expect("a link");
    symlink("loop.iso", folder.join("loop.iso")).expect("a link");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        folder.join("pipe.iso"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o644),
        0,
    )
    .expect("a pipe");
    let opened = File::open(&folder).expect("the folder");
    (place, opened)
}

#[test]
fn images_are_regular_files_that_not_everybody_writes() {
    let (_place, folder) = folder();
    assert_eq!(
        images(folder.as_fd(), Timestamp::now()).unwrap(),
        ["a disc.iso", "b.iso", "link.iso"]
    );
}

/// Whose file it is was not looked at, when it got a name after that.
#[test]
fn what_got_another_name_since_the_folder_was_judged_is_not_offered() {
    let (place, folder) = folder();
    let judged = Timestamp::UNIX_EPOCH;
    fs::hard_link(place.path().join("secret"), place.path().join("images/late.iso"))
        .expect("a name");
    let offered = images(folder.as_fd(), judged).unwrap();
    assert_eq!(offered, ["a disc.iso", "b.iso", "link.iso"]);
    let refused = open(folder.as_fd(), "late.iso", judged);
    assert!(matches!(refused, Err(ImageError::Renamed(_))), "{refused:?}");
    let judged = Timestamp::now();
    assert!(images(folder.as_fd(), judged).unwrap().contains(&"late.iso".to_owned()));
}

/// Also of those that the worker may not read, and of what a link within the folder leads to.
#[test]
fn images_with_other_names_are_told() {
    let (place, folder) = folder();
    let at = |name: &str| place.path().join("images").join(name);
    for (of, other) in
        [("b.iso", "../elsewhere"), ("older/c.iso", "../deeper"), (".hidden", ".too")]
    {
        fs::hard_link(at(of), at(other)).expect(of);
    }
    fs::hard_link(place.path().join("secret"), at("secret.iso")).expect("a secret");
    fs::set_permissions(place.path().join("secret"), Permissions::from_mode(0o600)).expect("ours");
    fs::hard_link(place.path().join("elsewhere"), place.path().join("third")).expect("a name");
    let told = namesakes(&place.path().join("images")).unwrap();
    let told: Vec<(&str, u32)> = told.iter().map(|image| (&*image.name, image.names)).collect();
    assert_eq!(told, [("b.iso", 3), ("link.iso", 2), ("secret.iso", 2)]);
    drop(folder);
}

#[test]
fn a_disk_that_somebody_writes_to_is_no_image_meanwhile() {
    let (place, folder) = folder();
    let disk = File::open(place.path().join("images/b.iso")).expect("the disk");
    assert!(image_lock::keep_others_out(&disk).expect("a lock"));
    assert_eq!(images(folder.as_fd(), Timestamp::now()).unwrap(), ["a disc.iso", "link.iso"]);
    assert!(matches!(open(folder.as_fd(), "b.iso", Timestamp::now()), Err(ImageError::Written(_))));
    image_lock::let_others_in(&disk).expect("no lock");
    assert_eq!(
        images(folder.as_fd(), Timestamp::now()).unwrap(),
        ["a disc.iso", "b.iso", "link.iso"]
    );
}

#[test]
fn an_image_is_opened_by_its_name_within_the_folder() {
    let (_place, folder) = folder();
    for (name, content) in [("b.iso", "b.iso"), ("link.iso", "older/c.iso")] {
        let (file, metadata) = open(folder.as_fd(), name, Timestamp::now()).expect(name);
        let mut text = String::new();
        File::from(file).read_to_string(&mut text).expect(name);
        assert_eq!(text, content);
        assert_eq!(metadata.len(), content.len() as u64);
    }
}

#[test]
fn nothing_leads_out_of_the_folder() {
    let (_place, folder) = folder();
    for name in
        ["../secret", "/etc/passwd", "out.iso", "passwd.iso", "older/../../secret", "loop.iso"]
    {
        let refused = open(folder.as_fd(), name, Timestamp::now());
        assert!(matches!(refused, Err(ImageError::Outside(_))), "{name}: {refused:?}");
    }
}

#[test]
fn what_is_no_image_is_refused_with_the_reason() {
    let (_place, folder) = folder();
    let refused =
        |name: &str| open(folder.as_fd(), name, Timestamp::now()).expect_err(name).to_string();
    assert!(refused("anybody.iso").contains("written by everyone"));
    assert!(refused("pipe.iso").contains("no regular file"));
    assert!(refused("older").contains("no regular file"));
    assert!(refused("dangling.iso").contains("there is no"));
    assert!(refused("none.iso").contains("there is no"));
    assert!(refused("").contains("there is no"));
    assert!(refused("older/c.iso").contains("not in the folder of images itself"));
}
