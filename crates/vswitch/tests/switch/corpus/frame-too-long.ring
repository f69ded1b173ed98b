# A frame longer than any.
transmit
descriptor 0 +0x2000000 65566 0 0
offer 0
expect malformed
