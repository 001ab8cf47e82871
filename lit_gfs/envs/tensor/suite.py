"""The suite of environments in tensors."""

from __future__ import annotations

from lit_gfs.envs.suites import Suite
from lit_gfs.envs.tensor.acrobot import TensorAcrobotEnv
from lit_gfs.envs.tensor.cartpole import TensorCartPoleEnv
from lit_gfs.envs.tensor.env import TensorEnv
from lit_gfs.envs.tensor.minatar import GAMES, TensorMinAtarEnv


def tensor_envs() -> dict[str, type[TensorEnv]]:
    """Map ``tensor/<id>`` to classes; ``<id>`` is the id of the same environment on the CPU."""
    return {
        "tensor/Acrobot-v1": TensorAcrobotEnv,
        "tensor/CartPole-v1": TensorCartPoleEnv,
        **{
            f"tensor/MinAtar/{name}-{version}": TensorMinAtarEnv for name in GAMES for version in ("v0", "v1")
        },
    }


SUITE = Suite(ids=tensor_envs, env_class=lambda env_id: tensor_envs()[env_id])
