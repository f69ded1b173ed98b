# The driver offers more buffers than the ring holds.
receive
advance 257
expect Available
