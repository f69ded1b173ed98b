# A buffer that is the ring itself: the guest destroys only what is its own.
receive
descriptor 0 +0x0 16384 2 0
offer 0
offer 0
offer 0
expect anything
