"""The former place of the classifier, which saved configurations name."""

from lit_gfs.agents.classifier import Batch, Classifier, LabelSource

__all__ = ["Batch", "Classifier", "LabelSource"]
