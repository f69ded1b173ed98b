# Pieces in a table that come round again.
receive
table +0x3000000 0 +0x2000000 12 3 1
table +0x3000000 1 +0x2001000 12 3 0
descriptor 0 +0x3000000 32 4 0
offer 0
expect Chain
