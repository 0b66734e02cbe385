"""Files that other people's tools load to use a detector of this package; each needs its tool's own package."""
