"""From Stable-Baselines3 to lit_gfs: the same hyperparameters, side by side, and the run that they give.

`from_dqn` and `from_ppo` take keyword arguments by the names of ``stable_baselines3.DQN`` and ``PPO``, with
the same defaults, and build our agent and datamodule. Stable-Baselines3 itself is not imported. Then you can
add a recipe::

    python examples/from_stable_baselines3.py                     # DQN on CartPole
    python examples/from_stable_baselines3.py --agent ppo --recipe gfs_ppo

Four differences are worth knowing:

- All our counts are environment steps, summed over all environments. Theirs are calls of ``env.step`` in
  ``train_freq`` and ``n_steps``, and environment steps in ``learning_starts`` and ``target_update_interval``.
- Their networks are set by ``net_arch``, ours by a trunk of a depth and a width.
- Our value loss of PPO carries a factor 1/2, so ``vf_coef`` 0.5 becomes ``value_coefficient`` 1.0.
- A run is as long as its data: ``total_timesteps`` is ``total_steps`` of the datamodule.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lightning import seed_everything
from torch.optim import Adam

from lit_gfs import make_trainer
from lit_gfs.agents import DQN, PPO
from lit_gfs.agents.agent import Agent
from lit_gfs.datamodules import ReplayDataModule, RolloutDataModule
from lit_gfs.networks import PlainTrunk

Run = tuple[Agent, ReplayDataModule | RolloutDataModule, dict[str, Any]]
"""An agent, its data, and options of the Trainer."""


def from_dqn(
    env_id: str,
    total_timesteps: int,
    n_envs: int = 1,
    *,
    learning_rate: float = 1e-4,
    buffer_size: int = 1_000_000,
    learning_starts: int = 100,
    batch_size: int = 32,
    tau: float = 1.0,
    gamma: float = 0.99,
    train_freq: int = 4,
    gradient_steps: int = 1,
    target_update_interval: int = 10_000,
    exploration_fraction: float = 0.1,
    exploration_initial_eps: float = 1.0,
    exploration_final_eps: float = 0.05,
    max_grad_norm: float = 10.0,
    net_arch: Sequence[int] = (64, 64),
    eval_freq: int = 10_000,
) -> Run:
    """Build what ``stable_baselines3.DQN`` of these arguments trains."""
    # gradient_steps=-1 is as many as steps were taken.
    updates = train_freq * n_envs if gradient_steps == -1 else gradient_steps
    data = ReplayDataModule(
        env_id,
        num_envs=n_envs,
        total_steps=total_timesteps,
        buffer_size=buffer_size,
        learning_starts=learning_starts,
        batch_size=batch_size,
        steps_per_update=max(1, train_freq * n_envs // updates),
        eval_every=eval_freq,
    )
    agent = DQN(
        data.env_spec,
        trunk=partial(PlainTrunk, depth=len(net_arch), width=net_arch[0]),
        initialization="torch",
        optimizer=partial(Adam, lr=learning_rate),
        gamma=gamma,
        target_sync_every=target_update_interval,
        target_tau=None if tau == 1.0 else tau,
        epsilon_start=exploration_initial_eps,
        epsilon_end=exploration_final_eps,
        epsilon_decay_steps=int(exploration_fraction * total_timesteps),
        loss="huber",
    )
    return agent, data, {"gradient_clip_val": max_grad_norm}


def from_ppo(
    env_id: str,
    total_timesteps: int,
    n_envs: int = 1,
    *,
    learning_rate: float = 3e-4,
    n_steps: int = 2_048,
    batch_size: int = 64,
    n_epochs: int = 10,
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
    clip_range: float = 0.2,
    clip_range_vf: float | None = None,
    normalize_advantage: bool = True,
    ent_coef: float = 0.0,
    vf_coef: float = 0.5,
    max_grad_norm: float = 0.5,
    target_kl: float | None = None,
    net_arch: Sequence[int] = (64, 64),
    eval_freq: int = 10_000,
) -> Run:
    """Build what ``stable_baselines3.PPO`` of these arguments trains."""
    data = RolloutDataModule(
        env_id,
        num_envs=n_envs,
        total_steps=total_timesteps,
        rollout_steps=n_steps,
        epochs=n_epochs,
        minibatches=max(1, n_steps * n_envs // batch_size),
        eval_every=eval_freq,
    )
    agent = PPO(
        data.env_spec,
        shared_network=False,
        trunk=partial(PlainTrunk, depth=len(net_arch), width=net_arch[0], activation="tanh"),
        initialization="orthogonal",
        optimizer=partial(Adam, lr=learning_rate, eps=1e-5),
        anneal_learning_rate=False,  # a schedule `lin_...` of the zoo is True
        gamma=gamma,
        lambda_=gae_lambda,
        clip=clip_range,
        clip_value=clip_range_vf,
        normalize_advantage=normalize_advantage,
        entropy_coefficient=ent_coef,
        value_coefficient=2 * vf_coef,
        target_kl=target_kl,
    )
    return agent, data, {"gradient_clip_val": max_grad_norm}


# The hyperparameters of rl-baselines3-zoo for CartPole-v1, but for the length and the schedules of PPO.
EXAMPLES: dict[str, tuple[Callable[..., Run], dict[str, Any]]] = {
    "dqn": (
        from_dqn,
        {
            "learning_rate": 2.3e-3,
            "batch_size": 64,
            "buffer_size": 100_000,
            "learning_starts": 1_000,
            "target_update_interval": 10,
            "train_freq": 256,
            "gradient_steps": 128,
            "exploration_fraction": 0.16,
            "exploration_final_eps": 0.04,
            "net_arch": [256, 256],
        },
    ),
    "ppo": (
        from_ppo,
        {
            "n_envs": 8,
            "learning_rate": 1e-3,
            "n_steps": 32,
            "batch_size": 256,
            "n_epochs": 20,
            "gae_lambda": 0.8,
            "gamma": 0.98,
        },
    ),
}


def main(arguments: Sequence[str] | None = None) -> Run:
    """Translate and train; return what was trained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--agent", choices=EXAMPLES, default="dqn")
    parser.add_argument("--steps", type=int, default=20_000, help="total_timesteps")
    parser.add_argument("--recipe", default=None, help="a recipe of lit_gfs, such as gfs")
    options = parser.parse_args(arguments)
    seed_everything(0)

    translate, theirs = EXAMPLES[options.agent]
    agent, data, trainer_options = translate("CartPole-v1", options.steps, **theirs)
    if options.recipe is not None:
        trainer_options.pop("gradient_clip_val")  # the recipe's interventions clip instead
    make_trainer(options.recipe, **trainer_options).fit(agent, data)
    return agent, data, trainer_options


if __name__ == "__main__":
    main()
