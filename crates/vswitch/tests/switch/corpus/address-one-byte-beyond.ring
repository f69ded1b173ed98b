# A buffer's last byte is the first behind the memory.
transmit
descriptor 0 +0x3ffffc1 64 0 0
offer 0
expect Address
