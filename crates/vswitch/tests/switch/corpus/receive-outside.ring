# A buffer lies where there is no memory.
receive
descriptor 0 0x10 2048 2 0
offer 0
expect Address
