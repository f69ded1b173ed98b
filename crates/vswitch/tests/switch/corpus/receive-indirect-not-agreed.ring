# A table of buffers that nobody agreed on.
without indirect
receive
table +0x3000000 0 +0x2000000 2048 2 0
descriptor 0 +0x3000000 16 4 0
offer 0
expect IndirectRefused
