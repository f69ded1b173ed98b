# A chain begins behind the table's end.
transmit
offer 256
expect Index
