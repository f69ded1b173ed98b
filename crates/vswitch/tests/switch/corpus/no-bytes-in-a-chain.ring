# A frame, and a descriptor of no bytes behind it.
transmit
descriptor 0 +0x2000000 72 1 1
descriptor 1 +0x2000000 0 0 0
offer 0
expect Empty
