# A buffer's chain comes back to its start.
receive
descriptor 0 +0x2000000 1 3 0
offer 0
expect Chain
