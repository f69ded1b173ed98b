# A table without leave.
without indirect
transmit
table +0x2000000 0 +0x2001000 72 0 0
descriptor 0 +0x2000000 16 4 0
offer 0
expect IndirectRefused
