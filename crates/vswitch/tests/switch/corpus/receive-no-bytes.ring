# A buffer of no bytes.
receive
descriptor 0 +0x2000000 0 2 0
offer 0
expect Empty
