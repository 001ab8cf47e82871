"""A run on the disk: where it writes, and how it is saved, found, resumed and ended."""
