# A descriptor of no bytes between a header and a frame, in a table.
transmit
table +0x10000 0 +0x2000000 12 1 1
table +0x10000 1 +0x2000000 0 1 2
table +0x10000 2 +0x2000000 60 0 0
descriptor 0 +0x10000 48 4 0
offer 0
expect Empty
