# Lets go of one disk of a Linux guest. $1: its NAA name, 16 hex digits; $2: how long that may take, in seconds.
# Status 0: written out and gone. 3: in use, and what is printed says by whom. Any other: cannot be done here.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
LC_ALL=C
export PATH LC_ALL

cannot() { echo "$1"; exit 4; }
refuse() { echo "$1"; exit 3; }

[ -r /proc/self/mountinfo ] && [ -d /sys/class/block ] || cannot "this system has no /sys and /proc as Linux has"
read -r now rest </proc/uptime
end=$((${now%%.*} + $2))

disk=
for device in /sys/class/block/*/device; do
    [ -r "$device/wwid" ] || continue
    read -r wwid <"$device/wwid"
    if [ "$wwid" = "naa.$1" ]; then
        disk=${device%/device}
        break
    fi
done
[ -n "$disk" ] || cannot "the system knows no disk naa.$1"
name=${disk##*/}

# Prints who uses the disk or a part of it, if anybody does. Of the mounts those of every process count: a container's are
# its own.
user() {
    mounts=$(cat /proc/[0-9]*/mountinfo 2>/dev/null | sort -u)
    [ -n "$mounts" ] || echo "nobody knows what is mounted"
    for part in "$disk" "$disk/$name"*; do
        [ -r "$part/dev" ] || continue
        node=/dev/${part##*/}
        read -r number <"$part/dev"
        for holder in "$part"/holders/*; do
            [ -e "$holder" ] && echo "$node is held by ${holder##*/}" && return
        done
        # Behind the dash: type and source, which btrfs tells better than the number.
        point=$(printf '%s\n' "$mounts" | while read -r id parent at root point rest; do
            source=${rest##* - }
            source=${source#* }
            source=${source%% *}
            [ "$at" = "$number" ] || [ "$source" = "$node" ] || continue
            echo "$point"
            break
        done)
        [ -n "$point" ] && echo "$node is mounted on $point" && return
        for loop in /sys/class/block/loop*/loop; do
            [ -r "$loop/backing_file" ] || continue
            read -r file <"$loop/backing_file"
            loop=${loop%/loop}
            [ "$file" = "$node" ] && echo "$node is attached to ${loop##*/}" && return
        done
        for member in /sys/fs/btrfs/*/devices/"${part##*/}"; do
            [ -e "$member" ] && echo "$node is a part of a btrfs file system in use" && return
        done
        while read -r swap rest; do
            [ "$swap" = "$node" ] && echo "$node is in use as swap" && return
        done </proc/swaps
    done
    ls -l /proc/[0-9]*/fd 2>/dev/null | grep -qE " -> /dev/$name(p?[0-9]+)?\$" &&
        echo "a process has /dev/$name open"
}

# Whoever looks at a disk that was just written is soon gone again.
for try in 1 2 3; do
    who=$(user)
    [ -n "$who" ] || break
    case $who in *" open") sleep 1 ;; *) break ;; esac
done
[ -z "$who" ] || refuse "$who"

read -r read_only <"$disk/ro"
if [ "$read_only" = 0 ]; then
    for part in "$disk/$name"* "$disk"; do
        [ -r "$part/dev" ] || continue
        node=/dev/${part##*/}
        failed=$(dd if=/dev/null of="$node" conv=fsync,notrunc 2>&1) || refuse "$node cannot be written out: $failed"
    done
fi

read -r now rest </proc/uptime
[ "${now%%.*}" -lt "$end" ] || refuse "writing out what the guest holds of $name took too long"
echo 1 >"$disk/device/delete" || cannot "the system does not let /dev/$name go"
