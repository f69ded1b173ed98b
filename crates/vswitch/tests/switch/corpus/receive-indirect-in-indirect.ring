# A table of buffers in a table.
receive
table +0x3000000 0 +0x3001000 32 4 0
descriptor 0 +0x3000000 16 4 0
offer 0
expect IndirectNested
