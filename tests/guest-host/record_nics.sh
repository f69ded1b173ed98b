# Records what the kernel tells of network interfaces of every kind, as base64 of an archive:
#
#   cargo build -p hpvm-host --example record_nics
#   cargo xtask guest-host run --with target/debug/examples/record_nics tests/guest-host/record_nics.sh |
#       base64 --decode | tar --extract --gzip --directory crates/host/tests/trees/nics
modprobe -a dummy bonding 8021q bridge tun veth >&2
ip link add member0 type dummy >&2
ip link add member1 type dummy >&2
ip link add bond7 type bond >&2
ip link set member0 master bond7 >&2
ip link set member1 master bond7 >&2
ip link set member0 up >&2
ip link set member1 up >&2
ip link set bond7 mtu 9000 up >&2
ip link add link bond7 name bond7.42 type vlan id 42 >&2
ip link set bond7.42 mtu 1500 up >&2
ip address add 192.0.2.7/24 dev bond7.42 >&2
ip link add bridge3 type bridge >&2
ip tuntap add tap5 mode tap >&2
ip tuntap add tun6 mode tun >&2
ip link set tap5 master bridge3 >&2
ip link add pair0 type veth peer name pair1 >&2
folder=$(mktemp -d)
/opt/guest-host/bin/record_nics "$folder" >&2
tar --create --gzip --directory="$folder" . | base64
for name in pair0 tun6 tap5 bridge3 bond7.42 bond7 member0 member1; do ip link delete "$name" >&2; done
rm --recursive "$folder"
