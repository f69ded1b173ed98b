//! The wires of virtual switches over what the kernels of small machines lack: bonds and VLAN interfaces.

use super::Turn;
use crate::Test;

pub(crate) const TESTS: &[Test] = crate::tests![wires_over_every_kind_of_interface];

/// What the library's own tests say where the kernel has it all. Settles 31, 109, 118, 119: a bond one of whose parts fails, a
/// VLAN interface as the wire, and the VM Host in a VLAN with a guest, with nothing turned off. The kernel leaves checksums
/// open and segments long on its way to the guest, whose stack takes neither and looks at each checksum.
fn wires_over_every_kind_of_interface() {
    let mut host = Turn::take();
    let told = host.ok("modprobe -a dummy veth bonding 8021q bridge tun
         /opt/guest-host/bin/wires-* --test-threads 1 2>&1");
    assert!(told.contains(" 0 failed; 0 ignored;"), "{told}");
    for kind in ["bond", "vlan"] {
        assert!(told.contains(&format!("[{kind}]")), "{told}");
    }
}
