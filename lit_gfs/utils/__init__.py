"""Helpers that know nothing of networks, environments or runs."""
