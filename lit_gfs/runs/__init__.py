"""A run on the disk: its directory, and how it is saved, found, resumed and ended."""
