# A table of buffers where there is no memory.
receive
descriptor 0 0x10 32 4 0
offer 0
expect Address
