# A frame that lies in two regions is whole.
transmit
descriptor 0 +0x1ffffe0 72 0 0
offer 0
expect nothing
