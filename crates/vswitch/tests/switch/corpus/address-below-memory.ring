# A buffer lies where there is no memory.
transmit
descriptor 0 0x0 60 0 0
offer 0
expect Address
