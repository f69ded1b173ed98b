//! The trial of KVM: a loop in 16-bit real mode that leaves the guest every few thousand turns.
//!
//! Where the processor runs it, all rounds take a few milliseconds; where the kernel emulates it, not even one in a
//! hundred is done in time. Its thread is left behind when the bound has passed, since nothing can be trusted to end it.

#![allow(unsafe_code)]

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

const PAGE: usize = 4096;
const CODE_AT: u64 = 0x1000;
const ROUNDS: u32 = 64;
/// The version of the interface, unchanged since 2007.
const API_VERSION: i32 = 12;

/// `mov cx, 0x4000; loop $; out 0x10, al; jmp` to the first: 16,384 turns, then out to us.
const CODE: [u8; 9] = [0xb9, 0x00, 0x40, 0xe2, 0xfe, 0xe6, 0x10, 0xeb, 0xf7];

/// Runs the trial; the error is the reason, for people, why KVM is no good here.
pub(super) fn run(bound: Duration) -> Result<(), String> {
    let (done, outcome) = channel();
    let attempt = move || {
        // Nobody listens any more when the bound has passed.
        let _ = done.send(attempt());
    };
    thread::Builder::new()
        .name("kvm-trial".to_owned())
        .spawn(attempt)
        .map_err(|error| format!("the trial of KVM cannot be run: {error}"))?;
    match outcome.recv_timeout(bound) {
        Ok(outcome) => outcome,
        Err(RecvTimeoutError::Timeout) => {
            Err(format!("a trial of KVM was not done within {} ms", bound.as_millis()))
        }
        Err(RecvTimeoutError::Disconnected) => Err("the trial of KVM broke off".to_owned()),
    }
}

fn attempt() -> Result<(), String> {
    let kvm = Kvm::new().map_err(|error| format!("/dev/kvm cannot be used: {error}"))?;
    match kvm.get_api_version() {
        API_VERSION => {}
        other => return Err(format!("/dev/kvm answers version {other} instead of {API_VERSION}")),
    }
    let page = Page::with_code()?;
    let refused = |error| format!("KVM refuses the trial: {error}");
    let vm = kvm.create_vm().map_err(refused)?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: CODE_AT,
        memory_size: PAGE as u64,
        userspace_addr: page.0 as u64,
    };
    // SAFETY: the page is mapped, of this size, and outlives the machine: both end with this function, the machine first.
    unsafe { vm.set_user_memory_region(region) }.map_err(refused)?;
    let mut vcpu = vm.create_vcpu(0).map_err(refused)?;
    let mut segments = vcpu.get_sregs().map_err(refused)?;
    segments.cs.base = 0;
    segments.cs.selector = 0;
    vcpu.set_sregs(&segments).map_err(refused)?;
    let mut registers = vcpu.get_regs().map_err(refused)?;
    registers.rip = CODE_AT;
    registers.rflags = 2;
    vcpu.set_regs(&registers).map_err(refused)?;
    for _ in 0..ROUNDS {
        match vcpu.run().map_err(refused)? {
            VcpuExit::IoOut(0x10, _) => {}
            other => return Err(format!("KVM left the trial by {other:?}")),
        }
    }
    Ok(())
}

/// One page of guest memory with the loop in it.
struct Page(*mut std::ffi::c_void);

impl Page {
    fn with_code() -> Result<Page, String> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory that anybody has.
        let mapped =
            unsafe { mmap_anonymous(std::ptr::null_mut(), PAGE, protection, MapFlags::PRIVATE) }
                .map_err(|error| format!("no page for the trial of KVM: {error}"))?;
        // SAFETY: the mapping is writable, ours alone, and longer than the code.
        unsafe { mapped.cast::<u8>().copy_from_nonoverlapping(CODE.as_ptr(), CODE.len()) };
        Ok(Page(mapped))
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: mapped by `with_code` with this size, and nobody uses it any more. It cannot fail for a whole mapping.
        let _ = unsafe { munmap(self.0, PAGE) };
    }
}
