# LANs around the guest-host, and somebody on the port of a switch who talks: shell functions for tests.
#
#   room            another machine, network namespace `room`, whose server is 192.0.2.1 on its bridge `room0`
#   plugged NAME    an interface of that name, connected with the room's bridge; its other end there is far-NAME
#   plugged NAME VLAN      the same for one VLAN: far-NAME.VLAN is at the bridge, what has no tag or another gets nowhere
#   serve           the same server on this machine, at whatever interface has an address
#   bond NAME       of part0 and part1, which must be there: one of them in use, links looked at each 10 ms
#   up NAME         sets an interface up and waits for its link
#   configured LINE...     is all that hpvmconf says; without machines guests start at once, by HPVMQEMU=$no_machine
#   talk NUMBER LAN        a talker at NIC 1,NUMBER of guest `talks`, which has no machine: MAC address 56a10000000NUMBER, IP
#                          address LAN.9, talks with the server LAN.1
#   said HOW WORD   the talk goes on now by HOW (udp, tcp), see crates/testkit/src/talker.rs
#   talk_over       ends it and prints what it said
#   heard_at NAME MAC      the room's bridge has had a frame of that station from its interface NAME
#   without_wire SWITCH    its process knows that the interface is gone
#   number_of SWITCH, log_of SWITCH
#   pids_of PROGRAM        prints the numbers of all processes of that name
#
# What `room` and what follows it bring about ends with the script, and with it every interface; `removed` removes all guests and switches.

lines=/run/talk-lines
talked=/run/talked
no_machine=/opt/guest-host/bin/fake-qemu

ends_cleanly() {
    # What a script left that was ended by force.
    (gone)
    trap gone EXIT
    trap 'exit 143' TERM
}

room() {
    ends_cleanly
    modprobe -a veth bonding 8021q bridge tun
    ip netns add room
    ip -n room link set lo up
    ip -n room link add room0 type bridge
    ip -n room link set room0 up
    ip -n room address add 192.0.2.1/24 dev room0
    ip netns exec room /opt/guest-host/bin/hpvm-talker serve 0.0.0.0:7 </dev/null >/dev/null 2>&1 &
}

serve() {
    /opt/guest-host/bin/hpvm-talker serve 0.0.0.0:7 </dev/null >/dev/null 2>&1 &
}

plugged() {
    ip link add "$1" type veth peer name "far-$1" netns room
    ip -n room link set "far-$1" up
    if [ $# -gt 1 ]; then
        ip -n room link add link "far-$1" name "far-$1.$2" type vlan id "$2"
        ip -n room link set "far-$1.$2" master room0 up
    else
        ip -n room link set "far-$1" master room0
    fi
}

bond() {
    ip link add "$1" type bond mode active-backup miimon 10
    for part in part0 part1; do
        ip link set $part down
        ip link set $part master "$1"
    done
    up "$1"
}

has_link() { test "$(cat "/sys/class/net/$1/carrier" 2>/dev/null)" = 1; }

up() {
    ip link set "$1" up
    await has_link "$1"
}

number_of() { hpvmnet | awk -v name="$1" '$1 == name { print $2 }'; }

log_of() { cat "/var/opt/hpvm/common/vswitch-$(number_of "$1").log"; }

without_wire() { grep --quiet missing "/run/hpvm/net/$(number_of "$1")/wire"; }

heard_at() { bridge -n room fdb show br room0 | grep --quiet "^$2 dev $1 "; }

pids_of() { grep --files-with-matches --line-regexp "$1" /proc/[0-9]*/comm 2>/dev/null | cut -d/ -f3; }

configured() {
    mkdir -p /etc/opt/hpvm
    printf '%s\n' "$@" >/etc/opt/hpvm/hpvmconf
}

talk() {
    rm -f $lines $talked
    mkfifo $lines
    guest=$(hpvmstatus | awk '$1 == "talks" { print $2 }')
    /opt/guest-host/bin/hpvm-talker talk "/run/hpvm/$guest/net/1-$1" "$1" "$2.9" "$2.1:7" <$lines >$talked 2>&1 &
    talker=$!
    exec 9>$lines
    heard talking
}

# Until the talker says so; one that ended will not.
heard() {
    until grep --quiet "^$1" $talked; do
        if ! kill -0 $talker 2>/dev/null; then
            cat $talked
            return 1
        fi
        sleep 0.1
    done
}

said() {
    echo "$1 $2" >&9
    heard "$2 "
}

talk_over() {
    exec 9>&-
    wait $talker
    cat $talked
}

removed() {
    for guest in $(hpvmstatus | awk '$2 ~ /^[0-9]+$/ { print $1 }'); do
        # One that is off already refuses.
        hpvmstop -P "$guest" -h -F >/dev/null 2>&1 || true
        hpvmremove -P "$guest" -F --purge
    done
    for switch in $(hpvmnet | awk '/^sw/ { print $1 }'); do hpvmnet -S "$switch" -d -F; done
    rm -f /etc/opt/hpvm/hpvmconf
}

gone() {
    exec 9>&-
    set +e
    for pid in $(pids_of hpvm-talker); do kill "$pid"; done
    # The room itself ends later than the command that ends it, and would take the pairs along only then.
    for end in $(ip -n room -o link show type veth | cut -d' ' -f2 | cut -d@ -f1); do ip -n room link delete "$end"; done
    ip netns delete room
    ip link delete bond0
    rm -f $lines $talked
} 2>/dev/null
