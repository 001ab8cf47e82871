"""The rewards that a learner sees, and the ends of episodes."""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor


def learner_reward(
    next_: TensorDictBase, scale: float = 1.0, clip: bool = False, end_of_life_is_terminal: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rewards and ends of episodes as the learner sees them; reported returns stay raw.

    Args:
        next_: The steps' outcome, ``(*batch,)``: ``reward``, ``done``, ``terminated`` and, with
            ``end_of_life_is_terminal``, ``end_of_life``, each ``(*batch, 1)``.
        scale: Factor on the rewards.
        clip: Whether rewards, once scaled, are clipped to [-1, 1].
        end_of_life_is_terminal: Whether a lost life ends the episode for the learner (Atari).

    Returns:
        Reward, done and terminated, ``(*batch,)`` each.
    """
    reward, done, terminated = (next_[key].squeeze(-1) for key in ("reward", "done", "terminated"))
    if scale != 1:
        reward = scale * reward
    if clip:
        reward = reward.clamp(-1, 1)
    if end_of_life_is_terminal:
        lost = next_["end_of_life"].squeeze(-1)
        done, terminated = done | lost, terminated | lost
    return reward, done, terminated
