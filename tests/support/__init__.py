"""Helpers of the tests: fakes, environments, and runs of the command line."""
