"""lit_gfs: a Lightning framework in which deep-RL networks stay trainable as they grow."""

__version__ = "0.1.0"
