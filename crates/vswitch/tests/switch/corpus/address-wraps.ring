# A buffer's end is before its start.
transmit
descriptor 0 0xffffffffffffffc0 128 0 0
offer 0
expect Address
