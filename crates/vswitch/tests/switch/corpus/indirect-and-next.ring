# A table, and a chain that goes on.
transmit
descriptor 0 +0x2000000 32 5 1
offer 0
expect IndirectNested
