# A table that ends within a descriptor.
transmit
descriptor 0 +0x2000000 24 4 0
offer 0
expect IndirectLength
