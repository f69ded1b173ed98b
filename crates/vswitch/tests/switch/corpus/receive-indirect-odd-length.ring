# A table of half a descriptor more.
receive
table +0x3000000 0 +0x2000000 2048 2 0
descriptor 0 +0x3000000 24 4 0
offer 0
expect IndirectLength
