"""Ready-to-run configuration files; pass a name to ``--config`` without the folder."""
