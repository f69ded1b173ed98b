# A buffer's chain begins behind the table's end.
receive
offer 300
expect Index
