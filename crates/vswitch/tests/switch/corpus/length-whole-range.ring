# A buffer is as long as a length can be.
transmit
descriptor 0 +0x0 4294967295 0 0
offer 0
expect Address
