//! The device database on a host with real block devices: what is listed, what counts that is not running, and that a path
//! is not its disk.

use super::Turn;
use crate::Test;

pub(crate) const TESTS: &[Test] = crate::tests![; long:
    what_the_host_uses_is_listed_and_no_more,
    device_events_keep_the_list_current,
    a_signature_counts_where_no_guest_has_the_device,
    a_guest_starts_on_the_disk_it_was_given,
    two_paths_to_one_disk_are_one_disk,
];

/// Settles 1: of a disk the host swaps to a partition of, the other partition is a guest's all the same, before and after
/// hpvmhostrdev looked; a guest that has what the host uses by now is named, with the command.
fn what_the_host_uses_is_listed_and_no_more() {
    let mut host = Turn::take();
    // A boot of the guest-host may have listed what it uses before.
    host.ok("hpvmhostrdev -d");
    host.ok("printf ',32M,S\n,32M\n' | settled sfdisk --quiet $(spare 0)
         await test -e $(spare 0)-part2
         mkswap --quiet $(spare 0)-part1
         swapon $(spare 0)-part1");
    host.ok("hpvmcreate -P g -O linux -r 512M -a disk:avio_stor::disk:$(spare 0)-part2");
    let done = host.ok("hpvmhostrdev -u");
    for (device, used) in
        [("$(spare 0)", true), ("$(spare 0)-part1", true), ("$(spare 0)-part2", false)]
    {
        let name = host.ok(&format!("readlink -f {device}"));
        let line = format!("+ rdev:{name}: ");
        assert_eq!(done.lines().any(|listed| listed.starts_with(&line)), used, "{device}: {done}");
    }
    assert!(done.contains("is swap space") && done.contains("is mounted at /"), "{done}");
    let efi = "it is an EFI system partition of a disk that this VM Host uses";
    assert!(done.lines().any(|line| line.starts_with("+ rdev:/dev/vda2: ") && line.contains(efi)));
    // Where there is no udev the partition table says it.
    let said = host.run("unshare --mount sh -c 'mount -t tmpfs none /run/udev; exec hpvmcreate -P other -a disk:avio_stor::disk:/dev/vda2' 2>&1");
    assert!(said.status == 1 && said.output.contains(efi), "{}", said.output);
    let said = host.ok("hpvmmodify -P g -l changed 2>&1");
    assert!(!said.contains("restricted"), "{said}");
    let script = host.ok("hpvmdevmgmt -r");
    assert!(script.contains("nothing to repair"), "{script}");
    let said = host.run("hpvmdevmgmt -d rdev:$(readlink -f $(spare 0)-part1) 2>&1");
    assert!(said.status == 1 && said.output.contains("is swap space"), "{}", said.output);
    host.ok("mkswap --quiet $(spare 0)-part2; swapon $(spare 0)-part2");
    let said = host.run("hpvmstart -P g -F 2>&1");
    assert!(said.status == 1 && said.output.contains("in use by this VM Host"), "{}", said.output);
    let told = host.ok("hpvmhostrdev -u 2>&1");
    assert!(told.contains("WARNING (g): it has") && told.contains("`hpvmdevmgmt -r`"), "{told}");
    let script = host.ok("hpvmdevmgmt -r");
    assert!(script.contains("guest 'g' has") && script.contains("hpvmmodify -P g -d"), "{script}");
    host.ok("swapoff $(spare 0)-part2; swapoff $(spare 0)-part1");
    let gone = host.ok("hpvmhostrdev -u");
    assert!(gone.lines().any(|line| line.starts_with("- rdev:")), "{gone}");
    what_the_table_names_is_the_hosts(&mut host);
    what_units_and_crypttab_name_is_the_hosts(&mut host);
    host.ok("hpvmhostrdev -d; settled wipefs --quiet --all --force $(spare 0)");
}

/// A partition that /etc/fstab names and nothing mounts: by its UUID, which a guest can write, once no guest has it and it is
/// listed; by a path at once.
fn what_the_table_names_is_the_hosts(host: &mut Turn) {
    let (listed, refused) = (
        "listed() { hpvmhostrdev -u | grep \"rdev:$(readlink -f $(spare 0)-part2): .*is to be swap space, says /etc/fstab\"; }",
        "refused() { ! said=$(hpvmcreate -P other -a disk:avio_stor::disk:$(spare 0)-part2 2>&1) && case \"$said\" in *\"$1\"*) ;; *) false ;; esac; }",
    );
    host.ok(&format!(
        "{listed}
         {refused}
         cp /etc/fstab /run/fstab
         udevadm trigger --settle --action=change $(readlink -f $(spare 0)-part2)
         echo UUID=$(blkid -s UUID -o value $(spare 0)-part2) none swap sw >>/etc/fstab
         listed && exit 1
         hpvmremove -P g -F --purge
         listed
         refused 'is to be swap space, says /etc/fstab'
         hpvmhostrdev -d
         cp /run/fstab /etc/fstab
         echo $(spare 0)-part2 /backup ext4 noauto >>/etc/fstab
         refused 'in use by this VM Host and is not given to a guest: it is to be mounted at /backup, says /etc/fstab'
         cp /run/fstab /etc/fstab
         hpvmcreate -P other -a disk:avio_stor::disk:$(spare 0)-part2
         hpvmremove -P other -F --purge"
    ));
}

/// A partition that systemd mounts or swaps on, or cryptsetup opens, when the host starts.
fn what_units_and_crypttab_name_is_the_hosts(host: &mut Turn) {
    host.ok(
        "refused() { ! said=$(hpvmcreate -P other -a disk:avio_stor::disk:$(spare 0)-part2 2>&1) && case \"$said\" in *\"$1\"*) ;; *) false ;; esac; }
         given() { hpvmcreate -P other -a disk:avio_stor::disk:$(spare 0)-part2 && hpvmremove -P other -F --purge; }
         unit=/etc/systemd/system/backup.mount
         printf '[Mount]\nWhat=%s\nWhere=/backup\n[Install]\nWantedBy=multi-user.target\n' $(spare 0)-part2 >$unit
         given
         systemctl --quiet enable backup.mount
         refused 'it is to be mounted at /backup, says backup.mount'
         systemctl --quiet disable backup.mount
         rm $unit
         given
         swap=$(systemd-escape --path --suffix=swap $(spare 0)-part2)
         printf '[Swap]\nWhat=%s\n[Install]\nWantedBy=swap.target\n' $(spare 0)-part2 >\"/etc/systemd/system/$swap\"
         systemctl --quiet enable \"$swap\"
         refused 'is to be swap space, says '
         systemctl --quiet disable \"$swap\"
         rm \"/etc/systemd/system/$swap\"
         given
         cp /etc/crypttab /run/crypttab 2>/dev/null || : >/run/crypttab
         echo box $(spare 0)-part2 none luks,noauto >>/etc/crypttab
         refused 'it is to be opened as the encrypted volume box, says /etc/crypttab'
         cp /run/crypttab /etc/crypttab
         given",
    );
}

/// Nobody says a word to hpvm between what is done to the disks and the look at the list.
fn device_events_keep_the_list_current() {
    let mut host = Turn::take();
    host.ok("hpvmhostrdev -u; systemctl start hpvm-hostrdev.path");
    let listed = "listed() { hpvmdevmgmt -l rdev:$(readlink -f $(spare 5)) 2>/dev/null | grep -q AUTORDEV=YES; }
         unlisted() { ! listed; }";
    let done = host.run(&format!(
        "{listed}
         unlisted
         vgcreate --quiet events $(spare 5) && lvcreate --quiet --yes --size 16M --name one events
         await listed
         hpvmcreate -P g -O linux -r 512M -a disk:avio_stor::disk:$(spare 5) 2>&1"
    ));
    assert!(done.status == 1 && done.output.contains("events"), "{}", done.output);
    // More of them than systemd would start a unit for in that time, and the last one counts.
    host.ok(&format!(
        "{listed}
         for n in 1 2 3 4 5 6 7 8; do udevadm trigger --settle $(readlink -f $(spare 6)); done
         settled vgremove --quiet --yes events
         await unlisted
         systemctl is-active --quiet hpvm-hostrdev.path
         systemctl stop hpvm-hostrdev.path
         hpvmhostrdev -d; settled wipefs --quiet --all $(spare 5)"
    ));
}

fn a_signature_counts_where_no_guest_has_the_device() {
    let mut host = Turn::take();
    host.ok("hpvmcreate -P owner -O linux -r 512M -a disk:avio_stor::disk:$(spare 6)");
    host.ok("mkswap --quiet $(spare 5); mkswap --quiet $(spare 6)");
    let known = host.ok("hpvmhostrdev -u");
    let disk = host.ok("readlink -f $(spare 5)");
    assert!(!known.contains(&format!("{disk}:")), "{known}");
    let read = host.ok("hpvmhostrdev");
    assert!(read.contains(&format!("+ rdev:{disk}: it holds swap space")), "{read}");
    let of_guest = host.ok("readlink -f $(spare 6)");
    assert!(!read.contains(&format!("{of_guest}:")), "a guest may have written that: {read}");
    let create = "hpvmcreate -P g -O linux -r 512M -a disk:avio_stor::disk:$(spare 5) 2>&1";
    let refused = host.run(create);
    assert!(
        refused.status == 1 && refused.output.contains("holds swap space"),
        "{}",
        refused.output
    );
    assert_eq!(host.ok("hpvmhostrdev -u"), "nothing changed", "what was read stays on record");
    host.ok("hpvmdevmgmt -d rdev:$(readlink -f $(spare 5))");
    host.ok(create);
    assert_eq!(host.ok("hpvmhostrdev"), "nothing changed", "it is a guest's now");
    host.ok("hpvmremove -P g -F --purge; hpvmremove -P owner -F --purge; hpvmhostrdev -d
         settled wipefs --quiet --all $(spare 5) $(spare 6)");
}

/// Settles 154: the identity of the disk is kept when the guest gets it; where the path leads to another one later, the
/// start is refused with the command that accepts it, and the answer is on record.
fn a_guest_starts_on_the_disk_it_was_given() {
    let mut host = Turn::take();
    host.ok("ln -sfn $(spare 7) /root/disk; hpvmcreate -P g -O linux -r 512M -a disk:avio_stor::disk:/root/disk");
    let listed = host.ok("hpvmdevmgmt -l gdev:/root/disk");
    assert!(
        listed.starts_with("/root/disk:CONFIG=gdev,EXIST=YES,DEVTYPE=DISK,SHARE=NO:g:"),
        "{listed}"
    );
    assert!(!listed.ends_with(':'), "by what it is known again: {listed}");
    let start = "hpvmstart -P g -s 2>&1";
    assert!(!host.run(start).output.contains("another device"));
    host.ok("ln -sfn $(spare 6) /root/disk");
    let said = host.run(start).output;
    assert!(
        said.contains("'/root/disk' is another device than the one the guest was given"),
        "{said}"
    );
    assert_eq!(host.run("hpvmstart -P g 2>&1").status, 1);
    let why = host.ok("hpvm why g");
    assert!(why.contains("hpvmdevmgmt -m gdev:/root/disk:attr:IDENTIFIER=ACCEPT"), "{why}");
    host.ok("hpvmdevmgmt -m gdev:/root/disk:attr:IDENTIFIER=ACCEPT --reason 'the old one died'");
    assert!(!host.run(start).output.contains("another device"));
    host.ok("ln -sfn $(spare 7) /root/disk");
    assert!(
        host.run(start).output.contains("another device"),
        "the answer was about that one disk"
    );
    // The verb of A.03.50's own tool does the same, after a question.
    let replace = "gvsdmgr replace_dsk -P g -D 0,0 -q lun=0";
    let asked = host.run(&format!("{replace} </dev/null 2>&1"));
    assert!(asked.status != 0 && asked.output.contains("Accept the device"), "{}", asked.output);
    assert!(host.run(start).output.contains("another device"), "nobody has answered");
    host.ok(&format!("{replace} -f --reason 'it is back'; hpvmstatus -e | grep -q 'it is back'"));
    assert!(!host.run(start).output.contains("another device"));
    host.ok("hpvmremove -P g -F --purge; test -z \"$(hpvmdevmgmt -l gdev | grep /root/disk)\"; rm /root/disk");
}

/// Two hosts serve the same disk, and no multipath joins the two paths: who has one of them keeps others from the second, and
/// from its parts.
fn two_paths_to_one_disk_are_one_disk() {
    let mut host = Turn::take();
    let paths = host.ok("two_ways");
    let paths: Vec<&str> = paths.lines().collect();
    let [one, other] = paths[..] else { panic!("two paths: {paths:?}") };
    host.ok(&format!(
        "printf ',8M\\n,\\n' | settled sfdisk --quiet {one}; settled blockdev --rereadpt {other}
         hpvmcreate -P first -r 64M -a disk:avio_stor::disk:{one}2"
    ));
    let create =
        |store: &str| format!("hpvmcreate -P other -r 64M -a disk:avio_stor::disk:{store} 2>&1");
    for (store, meets) in
        [(other.to_owned(), true), (format!("{other}2"), true), (format!("{other}1"), false)]
    {
        let said = host.ok(&create(&store));
        assert_eq!(said.contains("configured in guest 'first' (0,0,0)"), meets, "{store}: {said}");
        host.ok("hpvmstart -P first");
        let start = host.run("hpvmstart -P other 2>&1");
        let is_refused =
            start.status == 1 && start.output.contains("in use by the running guest 'first'");
        assert_eq!(is_refused, meets, "{store}: {}", start.output);
        host.ok("hpvmstop -P first -F; hpvmstop -P other -F 2>&1 || true; hpvmremove -P other -F --purge");
    }
    host.ok("hpvmremove -P first -F --purge; modprobe --remove scsi_debug");
}
