"""Data sets on disk, synthetic scenes, random changes, and batches."""
