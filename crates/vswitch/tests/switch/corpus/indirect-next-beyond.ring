# A chain goes on behind its own table's end.
transmit
table +0x2000000 0 +0x2001000 40 1 2
descriptor 0 +0x2000000 32 4 0
offer 0
expect Index
