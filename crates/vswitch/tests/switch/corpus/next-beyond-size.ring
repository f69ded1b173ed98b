# A chain goes on behind the table's end.
transmit
descriptor 0 +0x2000000 40 1 256
offer 0
expect Index
