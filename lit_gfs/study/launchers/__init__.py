"""Launchers: where the processes of a study's cells run."""
