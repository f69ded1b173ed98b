//! Running guests that tests share. A test leases one, leaves it running and as it found it, and gives it back; a test that
//! fails takes its guest with it.

use crate::statements::disk_at;
use std::path::PathBuf;
use std::sync::Mutex;

use hpvm_testkit::guest::Console;
use hpvm_testkit::processors;
use hpvm_testkit::vm_host::{Engine, VmHost, repository};

/// A VM Host with one running Linux guest, `pool`, number 1, whose shell waits at its console.
pub(crate) struct Leased {
    running: Option<Running>,
}

struct Running {
    host: VmHost,
    console: Console,
}

static IDLE: Mutex<Vec<Running>> = Mutex::new(Vec::new());

impl Leased {
    /// A guest at its shell: an idle one, or one that is booted now.
    pub(crate) fn take() -> Leased {
        processors::take();
        let idle = IDLE.lock().expect("no test panics while it holds the pool").pop();
        Leased { running: Some(idle.unwrap_or_else(boot)) }
    }

    pub(crate) fn host(&self) -> &VmHost {
        &self.running.as_ref().expect("leased").host
    }

    /// For its tunables, which whoever leases it next must find as they were.
    pub(crate) fn host_mut(&mut self) -> &mut VmHost {
        &mut self.running.as_mut().expect("leased").host
    }

    pub(crate) fn console(&mut self) -> &mut Console {
        &mut self.running.as_mut().expect("leased").console
    }

    /// Attaches to the console anew, after the worker was replaced.
    pub(crate) fn attach_again(&mut self) {
        let running = self.running.as_mut().expect("leased");
        running.console = Console::attach(&running.host.run_dir(1));
        running.console.type_in("\n");
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        if let (Some(running), Ok(mut idle)) = (self.running.take(), IDLE.lock()) {
            idle.push(running);
        }
    }
}

/// Ends the guests nobody uses any more.
pub(crate) fn end() {
    if let Ok(mut idle) = IDLE.lock() {
        idle.clear();
    }
}

fn boot() -> Running {
    let host = VmHost::new(Engine::Real);
    let disk = host.copy_of(&image("test-cloud"), "pool.img");
    let statement = disk_at("0,0,0", &disk);
    host.ok(&["hpvmcreate", "-P", "pool", "-O", "linux", "-r", "512M", "-a", &statement]);
    host.ok(&["hpvmstart", "-P", "pool"]);
    let mut console = Console::attach(&host.run_dir(1));
    console.wait_for_shell();
    Running { host, console }
}

/// A guest image by its name; `make guests` builds them all.
pub(crate) fn image(name: &str) -> PathBuf {
    let path = repository().join(format!(".cache/images/{name}.img"));
    assert!(path.exists(), "{} is not there; `make guests` builds it", path.display());
    path
}
