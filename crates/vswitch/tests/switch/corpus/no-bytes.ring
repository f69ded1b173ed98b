# A chain of no bytes.
transmit
descriptor 0 +0x2000000 0 0 0
offer 0
expect Empty
