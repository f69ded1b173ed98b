# A buffer shorter than a header.
receive
descriptor 0 +0x2000000 11 2 0
offer 0
expect Header
