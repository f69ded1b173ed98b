//! The end of a VM Host under systemd: guests are ended in an orderly way, whoever started them, and only by that end.

use super::{Turn, units};
use crate::Test;

pub(crate) const TESTS: &[Test] = crate::tests![; long:
    a_shutdown_ends_all_guests_and_a_restart_of_units_none,
];

/// One guest is started by hand from a session, one by the boot; there is no operating system in them, so that they are asked
/// for as long as hpvmconf says and then ended by force. What they are told is in their logs after the boot.
fn a_shutdown_ends_all_guests_and_a_restart_of_units_none() {
    let mut host = Turn::take();
    let ok =
        |host: &mut Turn, commands: &str| host.ok(&format!("{}\n{commands}", units::FUNCTIONS));
    ok(
        &mut host,
        "mkdir -p /etc/opt/hpvm; echo HPVMAUTOSTOP=2 >/etc/opt/hpvm/hpvmconf
         hpvmcreate -P auto -r 64M -B auto
         hpvmcreate -P manual -r 64M
         systemctl enable --quiet --now hpvm.service
         systemctl is-enabled --quiet hpvm-guests.service
         systemctl start hpvm-guests.service
         systemd-run --quiet --wait --pipe --property=PAMName=login --property=User=root \\
             --property=StandardInput=null sh -c '/opt/hpvm/bin/hpvmstart -P manual >/dev/null; cat /proc/self/cgroup' |
             grep --quiet /session-",
    );
    assert_eq!(ok(&mut host, "state auto; state manual"), "On (EFI)\nOn (EFI)");
    let group = ok(&mut host, "cat /proc/$(engine manual)/cgroup");
    assert_eq!(group, "0::/system.slice/hpvm-guests.service");
    // The session can end now, since nothing of the guest is in it.
    ok(&mut host, "await test -z \"$(loginctl list-sessions --no-legend | grep -v tty)\"");

    let engines = ok(&mut host, "engine auto; engine manual");
    ok(
        &mut host,
        "systemctl restart hpvm-guests.service hpvm.service; systemctl stop hpvm-guests.service",
    );
    assert_eq!(ok(&mut host, "engine auto; engine manual"), engines);
    ok(&mut host, "systemctl start hpvm-guests.service");

    host.reboot();
    assert_eq!(ok(&mut host, "state auto; state manual"), "On (EFI)\nOff");
    for name in ["auto", "manual"] {
        let log = ok(&mut host, &format!("cat /var/opt/hpvm/guests/{name}/log"));
        for told in ["asked to shut down", "stopped hard"] {
            assert!(log.contains(told), "{name} was not {told}:\n{log}");
        }
    }
    ok(
        &mut host,
        "systemctl disable --quiet --now hpvm.service hpvm-guests.service
         hpvmstop -P auto -F
         for name in auto manual; do hpvmremove -P $name -F --purge; done
         rm /etc/opt/hpvm/hpvmconf",
    );
}
