//! No command waits for a store that answers nobody, whether or not a guest has it.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command};

use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;

use super::{BOUND, DISK_BYTES, SILENT_AFTER, answered, ended, to_be_given};
use crate::Test;
use crate::file_server::FileServer;
use crate::loop_device::LoopDevice;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_file_system_that_hangs_holds_no_change_up,
    a_loop_device_on_a_silent_store_holds_nobody_up,
    a_store_that_falls_silent_while_it_is_opened_ends_the_command,
];

/// A file system whose server never answers, over a folder: as one whose server is out of reach.
pub(crate) struct Hung {
    server: Child,
    folder: PathBuf,
}

impl Hung {
    pub(crate) fn over(folder: PathBuf) -> Hung {
        let mount = "exec 3<>/dev/fuse; mount -i -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 hung \"$0\" && exec sleep 120";
        let mut command = Command::new("sh");
        let server = command.arg("-c").arg(mount).arg(&folder).spawn().expect("a shell");
        let hung = Hung { server, folder };
        let mounted = format!(" {} ", hung.folder.display());
        wait_until(BOUND, "it is mounted", || {
            fs::read_to_string("/proc/mounts").expect("mounts").contains(&mounted)
        });
        hung
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        // Without its server all who wait for it are told that it is gone.
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = Command::new("umount").arg("--lazy").arg(&self.folder).status();
    }
}

fn a_file_system_that_hangs_holds_no_change_up() {
    let host = VmHost::new(Engine::Fake);
    let folder = host.path("far");
    fs::create_dir(&folder).expect("a folder");
    let far = folder.join("far.img");
    File::create(&far).and_then(|file| file.set_len(DISK_BYTES)).expect("a disk");
    let far_path = far.display().to_string();
    let far = format!("disk:avio_stor:0,0,0:file:{far_path}");
    let near = host.disk("near.img", DISK_BYTES).display().to_string();
    let kept = format!("gdev:{far_path}:attr:PRESERVE=YES");
    let preserved = format!("gdev:{near}:attr:PRESERVE=YES");
    let near = format!("disk:avio_stor:0,0,1:file:{near}");
    host.ok(&["hpvmcreate", "-P", "web", "-a", &far]);
    let made = folder.join("made.img").display().to_string();
    let copy = format!("disk:avio_stor:0,0,0:file:{}", host.path("copy.img").display());
    let device = LoopDevice::on(&host.disk("device.img", DISK_BYTES), &[]);
    let copy_to_device = format!("disk:avio_stor:0,0,0:disk:{}", device.path().display());
    let hung = Hung::over(folder);
    for (command, status) in [
        (&["hpvmstatus", "-P", "web"][..], 0),
        (&["hpvmstart", "-P", "web"], 1),
        (&["hpvm", "why", "web"], 0),
        (&["hpvm", "doctor"], 0),
        (&["hpvmhostrdev"], 0),
        (&["hpvmclone", "-P", "web", "-N", "copy", "-b", &copy], 1),
        (&["hpvmclone", "-P", "web", "-N", "copy", "-b", &copy_to_device], 1),
        (&["hpvmdevmgmt", "-S", "8M", &made], 1),
        (&["hpvmmodify", "-P", "web", "-l", "changed meanwhile"], 0),
        (&["hpvmmodify", "-P", "web", "-a", &near], 0),
        (&["hpvmdevmgmt", "-l", "all"], 0),
        (&["hpvmdevmgmt", "-m", &preserved], 0),
        (&["hpvmdevmgmt", "-m", &kept], 0),
        (&["hpvmmodify", "-P", "web", "-d", &far], 0),
        (&["hpvmstart", "-P", "web"], 0),
    ] {
        let outcome = answered(&host, command, status);
        assert!(!outcome.stderr.contains("File size"), "nobody knows that: {outcome}");
    }
    to_be_given(&host, &far_path);
    drop(hung);
}

/// Every command looks at all loop devices, and so at what each is attached to. Its whole process is gone within the bound, with
/// all its locks, though the server lets nobody go who asked.
fn a_loop_device_on_a_silent_store_holds_nobody_up() {
    let host = VmHost::new(Engine::Fake);
    let server = FileServer::over(&host.path("far"), DISK_BYTES);
    let far = server.file.display().to_string();
    let device = LoopDevice::on(&server.file, &[]);
    let disk = |path: &str| format!("disk:avio_stor:0,0,0:file:{path}");
    let beside = host.disk("beside.img", DISK_BYTES).display().to_string();
    // Whoever asks for the file itself is told that a guest has the device, although it lies elsewhere.
    host.ok(&["hpvmcreate", "-P", "device", "-a", &device.disk()]);
    let told = host.run(&["hpvmcreate", "-P", "web", "-r", "64M", "-a", &disk(&far)]);
    assert!(told.stderr.contains("is also configured in guest 'device'"), "{told}");
    host.ok(&["hpvmremove", "-P", "device", "-F"]);
    host.ok(&["hpvmcreate", "-P", "beside", "-r", "64M", "-a", &disk(&beside)]);
    host.ok(&["hpvmstart", "-P", "beside"]);
    host.ok(&["hpvmdevmgmt", "-a", &format!("gdev:{beside}")]);
    let [more, third] = ["more.img", "third.img"]
        .map(|name| disk(&host.disk(name, DISK_BYTES).display().to_string()));
    host.ok(&["hpvmcreate", "-P", "third", "-r", "64M", "-a", &third]);
    let copy = |name: &str| disk(&host.path(name).display().to_string());
    let (beside, preserved) = (format!("gdev:{beside}"), "attr:PRESERVE=YES");
    server.leave_unanswered(|silence| &silence.looking);
    server.leave_unanswered(|silence| &silence.interrupts);
    // The disk of a guest that lies on another file system has nothing to do with it, and nobody waits for an answer.
    let outcome = ended(&host, &["hpvmmodify", "-P", "third", "-l", "changed"], SILENT_AFTER);
    assert!(outcome.status.success(), "{outcome}");
    together(
        &host,
        &[
            (&["hpvmcreate", "-P", "more", "-r", "64M", "-a", &more], 0),
            (&["hpvmmodify", "-P", "beside", "-l", "changed meanwhile"], 0),
            (&["hpvmmodify", "-P", "web", "-l", "changed meanwhile"], 0),
            (&["hpvmdevmgmt", "-m", &format!("{beside}:{preserved}")], 0),
            (&["hpvmhostrdev", "-u"], 0),
            (&["hpvm", "why", "web"], 0),
        ],
    );
    together(
        &host,
        &[
            (&["hpvmstatus"], 0),
            (&["hpvmstatus", "-P", "web", "-V"], 0),
            (&["hpvmdevmgmt", "-l", "all"], 0),
            (&["hpvmdevmgmt", "-m", &format!("gdev:{far}:{preserved}")], 0),
            (&["hpvmdevmgmt", "-d", &format!("{beside}:attr:PRESERVE")], 0),
            (&["hpvm", "doctor"], 0),
        ],
    );
    together(
        &host,
        &[
            (&["hpvmdevmgmt", "-d", &format!("gdev:{far}")], 1),
            (&["hpvmclone", "-P", "web", "-N", "one", "-b", &copy("one.img")], 1),
            (&["hpvmclone", "-P", "more", "-N", "two", "-b", &copy("two.img")], 0),
            (&["hpvmclone", "-P", "third", "-N", "three", "-b", &disk(&far)], 1),
            (&["hpvmcreate", "-P", "new", "-r", "64M", "-a", &disk(&far)], 1),
            (&["hpvmhostrdev"], 0),
        ],
    );
    together(
        &host,
        &[
            (&["hpvmstart", "-P", "more"], 0),
            (&["hpvm", "gvsdmgr", "get_info", "-P", "beside"], 0),
            (&["hpvm", "gvsdmgr", "get_info", "-P", "web"], 0),
        ],
    );
    // What it is attached to cannot be compared with anything.
    let given = answered(&host, &["hpvmcreate", "-P", "new", "-a", &device.disk()], 1);
    assert!(given.stderr.contains("does not answer, so nobody knows"), "{given}");
}

/// The same of several commands at once, since most of their time is the wait for what is silent.
#[track_caller]
fn together(host: &VmHost, commands: &[(&[&str], i32)]) {
    std::thread::scope(|scope| {
        for (command, status) in commands {
            scope.spawn(move || answered(host, command, *status));
        }
    });
}

/// From the look at it to its opening no time passes, and yet it may hang just then, or for those alone who would write. The
/// command is gone within the bound, with all its locks, though the server lets nobody go who asked.
fn a_store_that_falls_silent_while_it_is_opened_ends_the_command() {
    let host = VmHost::new(Engine::Fake);
    let server = FileServer::over(&host.path("far"), DISK_BYTES);
    let disk = format!("disk:avio_stor:0,0,0:file:{}", server.file.display());
    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M", "-a", &disk]);
    host.ok(&["hpvmcreate", "-P", "beside", "-r", "64M"]);
    host.ok(&["hpvmstart", "-P", "beside"]);
    server.leave_unanswered(|silence| &silence.opening);
    server.leave_unanswered(|silence| &silence.interrupts);
    let told = format!(
        "cannot open '{}': its file system has not answered for 2 s",
        server.file.display()
    );
    for command in [&["hpvmstart", "-P", "web"][..], &["hpvmmodify", "-P", "beside", "-a", &disk]] {
        let refused = answered(&host, command, 1);
        assert!(refused.stderr.contains(&told), "{refused}");
    }
    let extend = ["hpvmdevmgmt", "-S", "16M", &server.file.display().to_string()];
    let refused = answered(&host, &extend, 1);
    assert!(refused.stderr.contains("has not answered for 2 s"), "{refused}");
    assert_eq!(host.state("web"), "Off");
    host.ok(&["hpvmmodify", "-P", "web", "-d", &disk]);
    host.ok(&["hpvmstart", "-P", "web"]);
}
