# A table in a chain's middle.
transmit
descriptor 0 +0x2000000 40 1 1
descriptor 1 +0x2000000 32 4 0
offer 0
expect IndirectNested
