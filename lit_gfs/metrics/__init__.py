"""Metrics: pure functions of tensors that say how training goes."""
