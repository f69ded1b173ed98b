# A table where there is no memory.
transmit
descriptor 0 0x10 32 4 0
offer 0
expect Address
