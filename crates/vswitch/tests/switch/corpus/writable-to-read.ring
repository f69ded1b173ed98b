# A buffer to read from is marked for writing.
transmit
descriptor 0 +0x2000000 72 2 0
offer 0
expect Writable
