"""Environments and policy put together: collection, evaluation, and what acts in them."""
