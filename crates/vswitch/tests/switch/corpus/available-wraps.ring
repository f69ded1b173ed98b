# Its index goes back, which is forward by nearly all there is.
transmit
advance 65535
expect Available
