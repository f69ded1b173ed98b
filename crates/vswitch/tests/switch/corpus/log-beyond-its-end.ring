# The log of what is written ends right before the guest's memory.
log 32768
receive
descriptor 0 +0x2000000 2048 2 0
offer 0
expect nothing
