# A buffer's last byte is the first behind the memory.
receive
descriptor 0 +0x3fff801 2048 2 0
offer 0
expect Address
