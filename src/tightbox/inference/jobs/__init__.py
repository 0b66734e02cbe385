"""Detection in any number of images: a sorted list of them, worked off in parts that are files, resumed and merged."""
