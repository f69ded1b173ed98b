//! hpvm under systemd: the unit that starts guests with the VM Host, and what becomes of guests when units, sessions and the
//! machine end.

use super::Turn;
use crate::Test;

pub(crate) const TESTS: &[Test] = crate::tests![; long:
    a_guest_outlives_the_session_that_started_it,
    a_boot_starts_auto_guests_and_a_restart_of_the_product_changes_none,
];

/// `state GUEST`, as hpvmstatus prints it; `engine GUEST`: the process number of its QEMU, which must live.
pub(super) const FUNCTIONS: &str = r#"
state() { hpvmstatus | grep "^$1 " | cut -c36-44 | sed 's/ *$//'; }
engine() {
    pid=$(sed -n 's/.*"qemu":{"pid":\([0-9]*\).*/\1/p' "/run/hpvm/$(hpvmstatus | awk "\$1 == \"$1\" { print \$2 }")/status")
    readlink "/proc/$pid/exe" | grep --quiet /qemu-system
    echo "$pid"
}
"#;

#[track_caller]
pub(super) fn ok(host: &mut Turn, commands: &str) -> String {
    host.ok(&format!("{FUNCTIONS}\n{commands}"))
}

/// Settles 35.
fn a_boot_starts_auto_guests_and_a_restart_of_the_product_changes_none() {
    let mut host = Turn::take();
    ok(
        &mut host,
        "hpvmcreate -P auto -r 64M -B auto
         hpvmcreate -P manual -r 64M -B manual
         systemctl enable --quiet hpvm.service",
    );
    host.reboot();
    let is_active = "systemctl is-active hpvm.service || { journalctl --no-pager --unit=hpvm.service; exit 1; }";
    assert_eq!(ok(&mut host, is_active), "active");
    assert_eq!(ok(&mut host, "state auto; state manual"), "On (EFI)\nOff");
    let engine = ok(&mut host, "engine auto");
    let group = ok(&mut host, "cat /proc/$(engine auto)/cgroup");
    assert_eq!(group, "0::/system.slice/hpvm.service");

    // Neither a restart, as after an upgrade, nor a stop ends a guest.
    ok(&mut host, "systemctl restart hpvm.service");
    assert_eq!(ok(&mut host, "engine auto"), engine);
    ok(&mut host, "systemctl stop hpvm.service");
    assert_eq!(ok(&mut host, "state auto; engine auto"), format!("On (EFI)\n{engine}"));

    // What was stopped on purpose stays so until the next boot.
    ok(&mut host, "hpvmstop -P auto -F; systemctl start hpvm.service");
    assert_eq!(ok(&mut host, "state auto; state manual"), "Off\nOff");
    ok(
        &mut host,
        "systemctl disable --quiet --now hpvm.service
         systemctl stop hpvm-hostrdev.path
         hpvmremove -P auto -F --purge
         hpvmremove -P manual -F --purge",
    );
}

/// A session as sshd and login make it, by PAM: logind ends it with its first process.
fn a_guest_outlives_the_session_that_started_it() {
    let mut host = Turn::take();
    ok(&mut host, "hpvmcreate -P web -r 64M");
    let group = ok(
        &mut host,
        "systemd-run --quiet --wait --pipe --property=PAMName=login --property=User=root \
             --property=StandardInput=null sh -c '/opt/hpvm/bin/hpvmstart -P web >/dev/null; cat /proc/self/cgroup'",
    );
    assert!(group.contains("/session-") && group.ends_with(".scope"), "no session: {group}");
    let scope = group.rsplit('/').next().expect("a last part");
    ok(&mut host, &format!("await test -z \"$(loginctl show-session {scope} 2>/dev/null)\""));
    assert_eq!(ok(&mut host, "state web"), "On (EFI)");
    ok(&mut host, "engine web; hpvm doctor; hpvmstop -P web -F; hpvmremove -P web -F --purge");
}
