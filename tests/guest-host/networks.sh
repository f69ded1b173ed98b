# LANs around the guest-host, and somebody on the port of a switch: shell functions for tests.
#
#   room            another machine, network namespace `room`, with a server at 192.0.2.1 on its bridge `room0`; gone, with
#                   whatever else is named here, when the script ends
#   plugged NAME    an interface of that name, connected with the room's bridge; its other end there is far-NAME
#   serve           the same server on this machine, for whatever interface has 192.0.2.1
#   up NAME         sets an interface up and waits for its link
#   running SWITCH WIRE…   makes and boots a switch, and starts guest `web`, whose NIC is on it
#   talk SWITCH [VLAN]     a station with address 192.0.2.9 on port 400 of a switch that runs, which talks with the server
#   said HOW WORD   the talk goes on now by HOW (udp, tcp), see crates/testkit/src/talker.rs
#   talk_over       ends it and prints what it said
#   log_of SWITCH   prints the switch's log

lines=/run/talk-lines
talked=/run/talked
server=

room() {
    trap gone EXIT
    modprobe -a veth bonding 8021q bridge tun
    ip netns add room
    ip -n room link set lo up
    ip -n room link add room0 type bridge
    ip -n room link set room0 up
    ip -n room address add 192.0.2.1/24 dev room0
    ip netns exec room /opt/guest-host/bin/hpvm-talker serve 0.0.0.0:7 </dev/null >/dev/null 2>&1 &
    server=$!
}

serve() {
    trap gone EXIT
    /opt/guest-host/bin/hpvm-talker serve 0.0.0.0:7 </dev/null >/dev/null 2>&1 &
    server=$!
}

plugged() {
    ip link add "$1" type veth peer name "far-$1" netns room
    ip -n room link set "far-$1" master room0 up
}

has_link() { test "$(cat "/sys/class/net/$1/carrier" 2>/dev/null)" = 1; }

up() {
    ip link set "$1" up
    await has_link "$1"
}

number_of() { hpvmnet | awk -v name="$1" '$1 == name { print $2 }'; }

log_of() { cat "/var/opt/hpvm/common/vswitch-$(number_of "$1").log"; }

running() {
    switch=$1
    shift
    hpvmnet -c -S "$switch" "$@"
    hpvmnet -S "$switch" -b
    hpvmcreate -P web -r 64M -a "network:avio_lan:0,1:vswitch:$switch"
    hpvmstart -P web >/dev/null
}

talk() {
    rm -f $lines $talked
    mkfifo $lines
    /opt/guest-host/bin/hpvm-talker talk "/run/hpvm/net/$(number_of "$1")/control" 192.0.2.9 192.0.2.1:7 ${2:-} \
        <$lines >$talked 2>&1 &
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

gone() {
    exec 9>&-
    set +e
    test -z "$server" || kill $server
    hpvmstop -P web -h -F >/dev/null
    hpvmremove -P web -F --purge
    hpvmnet -S sw1 -d -F
    for name in bond0 part0 part1 trunk0; do ip link delete $name; done
    ip netns delete room
    rm -f $lines $talked
} 2>/dev/null
