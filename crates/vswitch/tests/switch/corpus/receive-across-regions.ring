# A buffer that lies in two regions takes a frame.
receive
descriptor 0 +0x1ffffe0 2048 2 0
offer 0
expect nothing
