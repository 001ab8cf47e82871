"""Agents: LightningModules, one algorithm per file."""

from lit_gfs.agents.agent import Agent
from lit_gfs.agents.classifier import Classifier
from lit_gfs.agents.dqn import DQN
from lit_gfs.agents.ppo import PPO
from lit_gfs.agents.pqn import PQN
from lit_gfs.agents.sac import SAC
from lit_gfs.agents.td3 import TD3

__all__ = ["DQN", "PPO", "PQN", "SAC", "TD3", "Agent", "Classifier"]
