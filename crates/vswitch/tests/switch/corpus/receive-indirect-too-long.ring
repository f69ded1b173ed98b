# A table of buffers longer than the ring.
receive
descriptor 0 +0x2000000 4112 4 0
offer 0
expect IndirectLength
