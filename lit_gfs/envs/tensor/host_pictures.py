"""Pictures of tensor environments, for videos: they are painted on the host, one at a time."""

from __future__ import annotations

from functools import cache
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from lit_gfs.envs.gymnasium import quietly


def gymnasium_pictures(env_id: str, states: Tensor) -> Tensor:
    """Paint states as one of gymnasium's environments does.

    Args:
        env_id: Its id.
        states: What it calls its state, ``(num_envs, ...)``.

    Returns:
        RGB, ``(num_envs, height, width, 3)`` uint8, on the device of the states.
    """
    painter = _painter(env_id)
    pictures = []
    for state in states.cpu().numpy():
        painter.state = state
        pictures.append(painter.render())
    return torch.from_numpy(np.stack(pictures)).to(states.device)


@cache
def _painter(env_id: str) -> Any:
    with quietly():
        return gymnasium.make(env_id, render_mode="rgb_array").unwrapped
