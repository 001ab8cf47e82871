"""Configurations: finding, reading and checking them, with one-line messages about mistakes."""
