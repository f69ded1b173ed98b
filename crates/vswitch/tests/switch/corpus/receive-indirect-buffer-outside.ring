# In a table a buffer lies where there is no memory.
receive
table +0x3000000 0 0x10 2048 2 0
descriptor 0 +0x3000000 16 4 0
offer 0
expect Address
