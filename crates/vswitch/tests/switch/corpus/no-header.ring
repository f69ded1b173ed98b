# A chain shorter than a header.
transmit
descriptor 0 +0x2000000 11 0 0
offer 0
expect Header
