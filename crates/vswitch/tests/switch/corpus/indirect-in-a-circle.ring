# A chain in a table comes back to its start.
transmit
table +0x2000000 0 +0x2001000 40 1 1
table +0x2000000 1 +0x2001000 40 1 0
descriptor 0 +0x2000000 32 4 0
offer 0
expect Chain
