# A piece that is behind the end of its table.
receive
table +0x3000000 0 +0x2000000 12 3 2
descriptor 0 +0x3000000 32 4 0
offer 0
expect Index
