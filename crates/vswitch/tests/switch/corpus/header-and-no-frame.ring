# A header, and less than Ethernet's behind it: no frame, and no nonsense in the ring.
transmit
descriptor 0 +0x2000000 25 0 0
offer 0
expect malformed
