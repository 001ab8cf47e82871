"""Agents: LightningModules, one algorithm per file."""

from lit_gfs.agents.agent import Agent
from lit_gfs.agents.classifier import Classifier
from lit_gfs.agents.dqn import DQN
from lit_gfs.agents.ppo import PPO
from lit_gfs.agents.pqn import PQN

__all__ = ["DQN", "PPO", "PQN", "Agent", "Classifier"]
