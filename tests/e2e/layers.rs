//! Images over other images, added to a guest that runs: the guest sees the whole chain, only the uppermost is written, and when
//! it goes QEMU lets all of it go.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;

use crate::Test;
use crate::devices::{SEEN_BOUND, holds, wait_for, wait_gone};
use crate::pool::Leased;
use crate::refusals::refused;
use crate::statements::disk_at;

pub(crate) const TESTS: &[Test] = crate::tests![
    an_image_over_others_comes_to_a_running_guest_and_goes,
    what_cannot_lie_under_an_image_is_refused,
    an_image_that_cannot_be_used_is_told_when_it_is_named,
];

const STATUS: &[&str] = &["hpvmstatus", "-P", "pool", "-V"];

/// A store with a text, an image over it, and an image over that.
struct Chain {
    base: PathBuf,
    middle: PathBuf,
    top: PathBuf,
}

impl Chain {
    fn new(host: &VmHost) -> Chain {
        let base = host.disk("base.img", 8 << 20);
        let mut content = vec![0; 8 << 20];
        content[..9].copy_from_slice(b"the base\n");
        fs::write(&base, content).expect("the base");
        let (middle, top) = (host.path("middle.qcow2"), host.path("top.qcow2"));
        image_over(&base, "raw", &middle);
        image_over(&middle, "qcow2", &top);
        Chain { base, middle, top }
    }

    fn statement(&self, place: &str) -> String {
        format!("disk:{place}:qcow2:{}", self.top.display())
    }

    fn layers(&self) -> [String; 2] {
        [format!("qcow2:{}", self.middle.display()), format!("file:{}", self.base.display())]
    }

    fn is_held(&self, host: &VmHost) -> bool {
        [&self.base, &self.middle, &self.top].into_iter().any(|file| holds(host, file))
    }
}

pub(crate) fn image_over(below: &Path, format: &str, image: &Path) {
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", format, "-b"])
        .args([below, image])
        .status();
    assert!(made.expect("qemu-img").success(), "{}", image.display());
}

fn an_image_over_others_comes_to_a_running_guest_and_goes() {
    let mut guest = Leased::take();
    let chain = Chain::new(guest.host());
    let [middle, base] = chain.layers();
    let unwritten = [&chain.base, &chain.middle].map(|file| fs::read(file).expect("a layer"));
    let mut expected = "the base".to_owned();
    for place in ["avio_stor:0,5,0", "avio_stor:0,5,0", "avio_stor:0,4,7"] {
        let disk = chain.statement(place);
        let add = ["hpvmmodify", "-P", "pool", "-a", &disk, "--layer", &middle, "--layer", &base];
        guest.host().ok(&add);
        // The adapter that left before may be just being noted as gone, and the disk comes when it is.
        let layers = || guest.host().ok(STATUS).matches("Physical layer").count();
        wait_until(SEEN_BOUND, "both layers are shown", || layers() == 2);
        assert!(chain.is_held(guest.host()));
        let console = guest.console();
        wait_for(console, "sdb");
        assert_eq!(console.run("head -n 1 /dev/sdb"), expected);
        expected = format!("written at {place}");
        console.run(&format!("echo {expected} | dd of=/dev/sdb conv=sync,fsync"));
        guest.host().ok(&["hpvmmodify", "-P", "pool", "-F", "-d", &disk]);
        wait_gone(guest.console(), "sdb");
        let gone = || !chain.is_held(guest.host());
        wait_until(SEEN_BOUND, "QEMU has let the chain go", gone);
    }
    for (file, unwritten) in [&chain.base, &chain.middle].into_iter().zip(unwritten) {
        assert!(fs::read(file).expect("a layer") == unwritten, "{} was written", file.display());
    }
    // A layer that QEMU cannot open: what came before it goes again, and the guest keeps what it has.
    let garbage = guest.host().path("garbage.img");
    image_over(&chain.base, "raw", &garbage);
    let file = fs::OpenOptions::new().write(true).open(&garbage);
    // The first of its extensions, behind the header proper, is longer than the cluster.
    file.and_then(|file| file.write_all_at(&[0xff; 8], 112)).expect("an extension of no use");
    let garbage = format!("qcow2:{}", garbage.display());
    let disk = chain.statement("avio_stor:0,5,0");
    let add = ["hpvmmodify", "-P", "pool", "-a", &disk, "--layer", &garbage, "--layer", &base];
    let said = refused(guest.host(), &add);
    assert!(said.contains("extension too large"), "{said}");
    assert!(!chain.is_held(guest.host()));
}

fn what_cannot_lie_under_an_image_is_refused() {
    let guest = Leased::take();
    let host = guest.host();
    let chain = Chain::new(host);
    let [middle, base] = chain.layers();
    let (top, raw) = (chain.statement("avio_stor:0,5,0"), host.disk("raw.img", 1 << 20));
    let raw = disk_at("0,5,1", &raw);
    let base_itself = disk_at("0,5,1", &chain.base);
    let kept = host.path("kept");
    fs::create_dir(&kept).expect("a folder");
    fs::write(kept.join("secret.img"), [0; 512]).expect("a file");
    host.ok(&["hpvmdevmgmt", "-a", &format!("rdev:{}", kept.display())]);
    let secret = format!("file:{}", kept.join("secret.img").display());
    let folder = format!("file:{}", host.path("var").display());
    let none = format!("file:{}", host.path("none.img").display());
    let alone = host.path("alone.qcow2");
    make_image(&alone);
    let alone = format!("disk:avio_stor:0,5,0:qcow2:{}", alone.display());
    for (line, words) in [
        (vec!["-a", &top], "needs a backing file"),
        (vec!["-a", &top, "--layer", &middle], "needs a backing file"),
        (vec!["-a", &alone, "--layer", &base], "says that nothing lies below it"),
        (vec!["-a", &raw, "--layer", &base], "exactly one -a of storage type qcow2"),
        (vec!["--layer", &base], "exactly one -a of storage type qcow2"),
        (vec!["-a", &top, "--layer", &base, "--layer", &middle], "nothing lies under it"),
        (vec!["-a", &top, "--layer", &middle, "--layer", &secret], "is restricted"),
        (vec!["-a", &top, "--layer", &none], "does not exist"),
        (vec!["-a", &top, "--layer", &folder], "is a folder"),
        (vec!["-a", &top, "--layer", "disk:/dev/zero"], "storage type disk needs a block device"),
        (vec!["-a", &top, "-a", &base_itself, "--layer", &base], "would write to it"),
    ] {
        let line: Vec<&str> = ["hpvmmodify", "-P", "pool"].into_iter().chain(line).collect();
        let said = refused(host, &line);
        assert!(said.contains(words), "{line:?}: {said}");
        assert!(!chain.is_held(host), "{line:?}");
    }
    host.ok(&["hpvmdevmgmt", "-d", &format!("rdev:{}", kept.display())]);
    fs::remove_dir_all(kept).expect("the folder");
}

fn an_image_that_cannot_be_used_is_told_when_it_is_named() {
    let host = VmHost::new(Engine::Fake);
    let image = host.path("image.qcow2");
    make_image(&image);
    let statement = |storage: &str| format!("disk:avio_stor:0,0,0:{storage}:{}", image.display());
    let [disk, raw] = ["qcow2", "file"].map(statement);
    host.ok(&["hpvmcreate", "-P", "good", "-r", "64M", "-a", &disk]);
    host.ok(&["hpvmmodify", "-P", "good", "-d", &disk]);
    let warned = host.run(&["hpvmmodify", "-P", "good", "-a", &raw]);
    assert!(warned.status.success(), "{warned}");
    assert!(warned.stderr.contains("holds a qcow2 image"), "{warned}");
    let quiet = host.run(&["hpvmmodify", "-P", "good", "-r", "128M"]);
    assert!(quiet.status.success() && quiet.stderr.is_empty(), "it was not named: {quiet}");
    let file = fs::OpenOptions::new().write(true).open(&image).expect("the image");
    file.write_all_at(&[0, 0, 0, 9], 4).expect("another version");
    let refused = host.refused(&["hpvmcreate", "-P", "bad", "-r", "64M", "-a", &disk]);
    let told = format!("the image '{}' cannot be used: it is of version 9", image.display());
    assert!(refused.contains(&told), "{refused}");
    assert!(!host.ok(&["hpvmstatus"]).contains("bad"), "nothing was made");
}

fn make_image(path: &Path) {
    let create = ["create", "-q", "-f", "qcow2"];
    let made = Command::new("qemu-img").args(create).arg(path).arg("1M").status();
    assert!(made.expect("qemu-img").success());
}
