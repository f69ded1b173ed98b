# A buffer to write into is marked for reading.
receive
descriptor 0 +0x2000000 2048 0 0
offer 0
expect ReadOnly
