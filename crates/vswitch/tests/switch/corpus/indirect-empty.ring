# A table of no descriptors.
transmit
descriptor 0 +0x2000000 0 4 0
offer 0
expect IndirectLength
