# A chain comes back to its start.
transmit
descriptor 0 +0x2000000 40 1 1
descriptor 1 +0x2000000 40 1 0
offer 0
expect Chain
