"""Metrics of training and of finished runs: functions of tensors and scores, and their recorders."""
