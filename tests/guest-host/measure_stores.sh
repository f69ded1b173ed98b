# Measures each kind of store beside a whole disk, as QEMU reads and writes it for a guest (direct I/O, io_uring), on disks of
# the guest-host that are all alike:
#
#   cargo xtask guest-host run --with /usr/bin/qemu-img tests/guest-host/measure_stores.sh
#
# Prints for reading and writing 4 KiB all over the store, 16 at once, and for 1 MiB in sequence, how long each kind takes in
# parts of what the whole disk takes: the median of rounds, in each of which all take their turn. Bounded by the one who runs it.
. /opt/guest-host/blocks.sh
rounds=11

prepare() {
    pvcreate --quiet "$(spare 1)" >/dev/null
    vgcreate --quiet measured "$(spare 1)" >/dev/null
    lvcreate --quiet --extents 100%FREE --name volume --wipesignatures n measured >/dev/null
    for n in 2 3; do
        formatted "$(spare $n)"
        mounted_at "$(spare $n)" "/srv/measured$n"
    done
    # What is written into has found its blocks before, here and below the disks.
    for store in "$(spare 0)" /dev/measured/volume; do
        dd if=/dev/zero of="$store" bs=1M count="$mib" conv=fsync status=none
    done
    dd if=/dev/zero of=/srv/measured2/file.img bs=1M count="$mib" conv=fsync status=none
    qemu-img create -q -f qcow2 /srv/measured3/image.qcow2 "${mib}M"
    qemu-img bench -q -w -t none -f qcow2 -s 1048576 -S 1048576 -c "$mib" -d 1 /srv/measured3/image.qcow2 >/dev/null
}

gone() {
    umount /srv/measured2 /srv/measured3
    vgremove --quiet --yes measured >/dev/null
    pvremove --quiet "$(spare 1)" >/dev/null
}

node() {
    direct=cache.direct=on,aio=io_uring
    case $1 in
        disk) echo "driver=host_device,filename=$(readlink --canonicalize "$(spare 0)"),$direct" ;;
        lv) echo "driver=host_device,filename=/dev/measured/volume,$direct" ;;
        file) echo "driver=file,filename=/srv/measured2/file.img,$direct" ;;
        qcow2)
            echo "driver=qcow2,file.driver=file,file.filename=/srv/measured3/image.qcow2,file.cache.direct=on,file.aio=io_uring" ;;
    esac
}

# Seconds that some requests take.
took() {
    kind=$1
    shift
    qemu-img bench -t none --image-opts "$@" "$(node "$kind")" | sed -n 's/Run completed in \([0-9.]*\) seconds./\1/p'
}

median() { sort --general-numeric-sort | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

# Each round's time of each kind, over the disk's of the same round.
compare() {
    name=$1
    shift
    rm -f /root/ratio.*
    for round in $(seq $rounds); do
        order='disk lv file qcow2'
        [ $((round % 2)) = 0 ] || order='qcow2 file lv disk'
        for kind in $order; do took "$kind" "$@" >"/root/took.$kind"; done
        for kind in lv file qcow2; do
            paste "/root/took.$kind" /root/took.disk | awk '{ printf "%.3f\n", $1 / $2 }' >>"/root/ratio.$kind"
        done
    done
    for kind in lv file qcow2; do echo "$name $kind $(median <"/root/ratio.$kind")"; done
}

export PATH=/opt/guest-host/bin:$PATH
mib=$(($(blockdev --getsize64 "$(spare 0)") / 1048576 * 3 / 4))
prepare
# The step leads all over the store; it is no multiple of a cluster.
compare random-read -s 4096 -S 4198400 -d 16 -c 2000
compare random-write -w -s 4096 -S 4198400 -d 16 -c 2000
compare sequential-read -s 1048576 -d 4 -c 100
compare sequential-write -w -s 1048576 -d 4 -c 100
gone
