"""Datamodules: what feeds the agents."""

from lit_gfs.datamodules.label_shuffle import LabelShuffleDataModule
from lit_gfs.datamodules.offline import OfflineDataModule
from lit_gfs.datamodules.replay import ReplayDataModule
from lit_gfs.datamodules.rollout import RolloutDataModule

__all__ = ["LabelShuffleDataModule", "OfflineDataModule", "ReplayDataModule", "RolloutDataModule"]
