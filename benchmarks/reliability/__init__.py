"""Does the memory store lose anything? Kills, power cuts, failing disks, damaged files, and lessons that are gone on with."""
