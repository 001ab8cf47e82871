"""Helpers that are independent of networks, environments and runs."""
