# The driver claims more new chains than the ring holds.
transmit
advance 257
expect Available
