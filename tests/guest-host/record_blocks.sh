# Records what the host's block devices look like with all the trees of blocks.sh, as base64 of an archive:
#
#   cargo build -p hpvm-host --example record_blocks
#   cargo xtask guest-host run --with target/debug/examples/record_blocks tests/guest-host/record_blocks.sh |
#       base64 --decode | tar --extract --gzip --directory crates/host/tests/trees/guest-host
. /opt/guest-host/blocks.sh
all_blocks >/dev/null
/opt/guest-host/bin/record_blocks /root/tree >&2
tar --create --gzip --directory=/root/tree . | base64
all_blocks_gone >/dev/null
