"""The plan of a study: its factors, their levels, and the cells that they span."""
