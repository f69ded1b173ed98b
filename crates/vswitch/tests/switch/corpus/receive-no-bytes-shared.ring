# A buffer that holds a header, and more that hold nothing and share their descriptors: to be walked for every frame.
receive
descriptor 0 +0x2000000 12 2 0
descriptor 1 +0x2000000 0 3 2
descriptor 2 +0x2000000 0 3 3
descriptor 3 +0x2000000 0 2 0
offer 0
offer 1
offer 2
expect Empty
