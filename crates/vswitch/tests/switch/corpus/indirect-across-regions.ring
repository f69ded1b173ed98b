# A table that lies in two regions is in none.
transmit
descriptor 0 +0x1fffff0 32 4 0
offer 0
expect Address
