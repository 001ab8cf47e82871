"""Evaluation as Lightning validation: full episodes of the greedy policy in environments of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.envs import EnvBase

from lit_gfs.utils.transfers import send

_CPU = torch.device("cpu")

DEFAULT_LIMIT = 10_000
"""Steps after which an evaluation cuts an episode, where the environment's time limit is not known."""


@torch.no_grad()
def run_episodes(
    env: EnvBase,
    policy: nn.Module,
    episodes: int,
    device: torch.device = _CPU,
    on_frame: Callable[[Tensor], None] | None = None,
    before_step: Callable[[], None] = lambda: None,
    limit: int = DEFAULT_LIMIT,
) -> TensorDict:
    """Play full episodes from a fresh reset.

    Every environment plays the same number of episodes, as otherwise short ones would be favoured. In the
    last round, only the environments of lowest index count.

    Args:
        env: A batched environment, ``(num_envs,)``.
        policy: Reads ``observation``, writes ``action``.
        episodes: Number of episodes.
        device: The device of the policy.
        on_frame: Called with ``pixels`` of the first environment, ``(H, W, 3)``, at every step.
        before_step: Called before every step; an exception of it ends the evaluation.
        limit: Steps after which an episode is cut; it counts with its return so far.

    Returns:
        ``episode_return`` and ``episode_length``, raw, and ``cut``, whether the limit ended the episode:
        ``(episodes,)`` each.
    """
    num_envs = env.batch_size.numel()
    rounds = -(-episodes // num_envs)
    returns = torch.zeros(rounds, num_envs)
    lengths = torch.zeros(rounds, num_envs, dtype=torch.int64)
    cut = torch.zeros(rounds, num_envs, dtype=torch.bool)
    played = torch.zeros(num_envs, dtype=torch.int64)
    quota = torch.full((num_envs,), rounds)
    quota[num_envs - (rounds * num_envs - episodes) :] -= 1
    env_device = env.device or torch.device("cpu")
    state: TensorDictBase = env.reset()
    while (played < quota).any():
        before_step()
        if on_frame is not None:
            on_frame(state["pixels"][0].cpu())
        outputs = policy(TensorDict({"observation": send(state["observation"], device)}, [num_envs]))
        state["action"] = outputs["action"].to(env_device)
        step, state = env.step_and_maybe_reset(state)
        done, length, total = (
            step["next", key].squeeze(-1).cpu() for key in ("done", "episode_length", "episode_return")
        )
        too_long = ~done & (length >= limit)
        for index in (done | too_long).nonzero().flatten().tolist():
            if played[index] < quota[index]:
                returns[played[index], index] = total[index]
                lengths[played[index], index] = length[index]
                cut[played[index], index] = too_long[index]
                played[index] += 1
        if too_long.any():
            # The other environments keep what they show.
            state = env.reset(state.set("_reset", too_long.unsqueeze(-1).to(env_device)))
    by_name = {"episode_return": returns, "episode_length": lengths, "cut": cut}
    return TensorDict({name: values.flatten()[:episodes] for name, values in by_name.items()}, [episodes])


def no_episodes() -> TensorDict:
    """Return the result of `run_episodes` for no episodes, ``(0,)`` each."""
    kinds = {"episode_return": torch.float32, "episode_length": torch.int64, "cut": torch.bool}
    return TensorDict({name: torch.zeros(0, dtype=kind) for name, kind in kinds.items()}, [0])


class Evaluation:
    """An evaluation that Lightning passes to the agent in place of a batch of tensors.

    It has no tensors and no method ``to``, so Lightning neither moves nor casts it.

    Args:
        play: Plays the episodes and returns the result of `run_episodes`.
    """

    def __init__(self, play: Callable[[], TensorDict]) -> None:
        self._play = play

    def play(self) -> TensorDict:
        """Play the episodes; return the result of `run_episodes`."""
        return self._play()


class EvaluationLoader:
    """A loader of one batch: an evaluation, which the agent plays in its step.

    If the evaluation breaks off there, Lightning's checkpoint notes that it must be played again.

    Args:
        evaluation: The batch.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Evaluation]:
        yield self._evaluation
