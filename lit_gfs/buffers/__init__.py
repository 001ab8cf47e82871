"""Replay memory: rings of transitions, and their shards on disk."""
