//! How stores of every kind are used: whole disks, volumes and files.

use super::{Turn, units};
use crate::Test;

pub(crate) const TESTS: &[Test] = crate::tests![; long:
    every_kind_of_store_is_used_directly,
    a_volume_that_falls_silent_is_shown,
];

/// `direct STORE`: whether the engine of guest 'direct' has the store open past the memory of the host (O_DIRECT, 040000), each
/// time it has.
const FUNCTIONS: &str = r#"
direct() {
    for link in /proc/$(engine direct)/fd/*; do
        [ "$(readlink "$link")" = "$(readlink --canonicalize "$1")" ] || continue
        flags=$(sed -n 's/^flags:\t//p' "${link%/fd/*}/fdinfo/${link##*/}")
        if [ $((flags & 040000)) = 0 ]; then echo no; else echo yes; fi
    done | sort --unique
}
"#;

/// A volume becomes longer under the guest, which is offered that, and shorter, which it is not; nobody makes it longer again.
/// What a change would say of its size is compared with what the guest's engine has.
const GROWTH: &str = r#"
volume=disk:avio_stor:0,0,1:lv:/dev/plain/volume
grown() { hpvmmodify -P direct --dry-run -m $volume 2>&1 | grep 'storage 0,0,1 size' | tr --squeeze-repeats ' '; }
test -z "$(grown)"
lvextend --quiet --size 48M /dev/plain/volume >/dev/null
test "$(grown)" = 'storage 0,0,1 size 32 MB 48 MB now'
test "$(hpvmmodify -P direct -m $volume 2>&1)" = 'hpvmmodify: storage 0,0,1 size: 48 MB now, 32 MB before'
test -z "$(grown)"
lvreduce --quiet --force --yes --size 40M /dev/plain/volume >/dev/null 2>&1
for again in first second; do
    hpvmmodify -P direct -m $volume 2>&1 | grep -q 'has become shorter than the disk at 0,0,1: 40 MB of 48 MB'
done
test "$(blockdev --getsize64 /dev/plain/volume)" = $((40 << 20))
"#;

/// Nothing is left to make a volume or a file slower than the disk it lies on but the volume and the file system themselves,
/// which `tests/guest-host/measure_stores.sh` measures. A volume grows under the guest and is never cut. Settles 142, 149.
fn every_kind_of_store_is_used_directly() {
    let mut host = Turn::take();
    let mut ok = |commands: &str| host.ok(&format!("{}{FUNCTIONS}{commands}", units::FUNCTIONS));
    ok("pvcreate --quiet $(spare 6) >/dev/null
        vgcreate --quiet plain $(spare 6) >/dev/null
        lvcreate --quiet --size 32M --name volume --wipesignatures n plain >/dev/null
        truncate --size 32M /root/file.img
        hpvmcreate -P direct -r 64M -a disk:avio_stor:0,0,0:disk:$(spare 7) \
            -a disk:avio_stor:0,0,1:lv:/dev/plain/volume -a disk:avio_stor:0,0,2:file:/root/file.img
        hpvmstart -P direct");
    let opened = ok("direct $(spare 7); direct /dev/plain/volume; direct /root/file.img");
    assert_eq!(opened, "yes\nyes\nyes");
    let line =
        ok("tr '\\0' '\\n' </proc/$(engine direct)/cmdline | grep '^driver=.*node-name=medium'");
    assert_eq!(line.matches("cache.direct=on,aio=io_uring").count(), 3, "{line}");
    assert!(!line.contains("no-flush"), "{line}");
    ok(GROWTH);
    ok("hpvmstop -P direct -h -F
        hpvmremove -P direct -F --purge
        rm /root/file.img
        vgremove --quiet --yes plain >/dev/null
        pvremove --quiet $(spare 6) >/dev/null");
}

/// A volume that is suspended answers nothing, the guest is shown so, and no command waits for it: it would for ever. A second
/// is what one takes here, where the VM Host is emulated itself, and several on a machine that does something else.
const SUSPENDED: &str = r#"
pvcreate --quiet $(spare 6) >/dev/null
vgcreate --quiet plain $(spare 6) >/dev/null
lvcreate --quiet --size 32M --name volume --wipesignatures n plain >/dev/null
hpvmcreate -P silent -r 64M -a disk:scsi:0,0,0:lv:/dev/plain/volume
hpvmstart -P silent >/dev/null 2>&1
test "$(state silent)" = 'On (EFI)'
told="'/dev/plain/volume', which backs the disk at 0,0,0,"
dmsetup suspend --noflush --nolockfs plain-volume
shown() { hpvmstatus -P silent | grep -qF "$told does not answer"; }
await shown
test "$(state silent)" = 'On (ATTN)'
timeout 20 hpvmmodify -P silent -l 'changed meanwhile'
timeout 20 hpvm why silent >/dev/null
dmsetup resume plain-volume
is_back() { test "$(state silent)" = 'On (EFI)'; }
await is_back
hpvmstatus -P silent -e | grep -F "$told answers again" | wc --lines
hpvmstop -P silent -h -F
hpvmremove -P silent -F --purge
vgremove --quiet --yes plain >/dev/null
pvremove --quiet $(spare 6) >/dev/null
"#;

/// A block device is opened in another way than a file. Settles 136.
fn a_volume_that_falls_silent_is_shown() {
    assert_eq!(units::ok(&mut Turn::take(), SUSPENDED), "1");
}
