# In a table a buffer to read from is marked for writing.
transmit
table +0x3000000 0 +0x2000000 72 2 0
descriptor 0 +0x3000000 16 4 0
offer 0
expect Writable
