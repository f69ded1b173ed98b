# In a table a buffer that holds nothing.
receive
table +0x3000000 0 +0x2000000 0 2 0
descriptor 0 +0x3000000 16 4 0
offer 0
expect Empty
