# In a table a buffer to write into is marked for reading.
receive
table +0x3000000 0 +0x2000000 12 3 1
table +0x3000000 1 +0x2001000 2048 0 0
descriptor 0 +0x3000000 32 4 0
offer 0
expect ReadOnly
