"""The process of one cell, and the files by which the driver and that process know each other."""
