"""Evaluation as Lightning validation: full episodes of the greedy policy in environments of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.envs import EnvBase

DEFAULT_LIMIT = 10_000
"""Steps after which an evaluation cuts an episode of an environment whose time limit is not known."""


@torch.no_grad()
def run_episodes(
    env: EnvBase,
    policy: nn.Module,
    episodes: int,
    device: torch.device | str = "cpu",
    on_frame: Callable[[Tensor], None] | None = None,
    before_step: Callable[[], None] = lambda: None,
    limit: int = DEFAULT_LIMIT,
) -> TensorDict:
    """Play whole episodes from a fresh reset.

    Every environment plays the same number of episodes, so that short ones are not favoured; of the last
    round, the environments of lowest index are kept.

    Args:
        env: A batched environment, ``(num_envs,)``.
        policy: Reads ``observation``, writes ``action``.
        episodes: How many episodes to report.
        device: Where the policy lives.
        on_frame: Called with ``pixels`` of the first environment, ``(H, W, 3)``, at every step.
        before_step: Called before every step; raises what is to end the evaluation.
        limit: Steps after which an episode is cut; it counts with the return that it had by then.

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
    state: TensorDictBase = env.reset()
    while (played < quota).any():
        before_step()
        if on_frame is not None:
            on_frame(state["pixels"][0])
        acted = policy(TensorDict({"observation": state["observation"].to(device)}, [num_envs]))
        state["action"] = acted["action"].to("cpu")
        step, state = env.step_and_maybe_reset(state)
        following = step["next"]
        done = following["done"].squeeze(-1)
        too_long = ~done & (following["episode_length"].squeeze(-1) >= limit)
        for index in (done | too_long).nonzero().flatten().tolist():
            if played[index] < quota[index]:
                returns[played[index], index] = following["episode_return"][index]
                lengths[played[index], index] = following["episode_length"][index]
                cut[played[index], index] = too_long[index]
                played[index] += 1
        if too_long.any():
            state = env.reset(TensorDict({"_reset": too_long.unsqueeze(-1)}, [num_envs]))
    by_name = {"episode_return": returns, "episode_length": lengths, "cut": cut}
    return TensorDict({name: values.flatten()[:episodes] for name, values in by_name.items()}, [episodes])


def no_episodes() -> TensorDict:
    """Return what `run_episodes` would of none, ``(0,)`` each."""
    kinds = {"episode_return": torch.float32, "episode_length": torch.int64, "cut": torch.bool}
    return TensorDict({name: torch.zeros(0, dtype=kind) for name, kind in kinds.items()}, [0])


class Evaluation:
    """An evaluation that Lightning hands to the agent in the place of a batch of tensors.

    It is no tensor, holds none and has no method ``to``: it goes to no device and is cast to no precision.

    Args:
        play: Plays the episodes, see `run_episodes`.
    """

    def __init__(self, play: Callable[[], TensorDict]) -> None:
        self._play = play

    def play(self) -> TensorDict:
        """Play the episodes; return ``episode_return`` and ``episode_length``, ``(episodes,)`` each."""
        return self._play()


class EvaluationLoader:
    """A loader of one batch: an evaluation that is yet to be played.

    It is the agent who plays it, in its step. For an evaluation that breaks off there, Lightning's checkpoint
    says that it is to be played again.

    Args:
        evaluation: What is handed out.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Evaluation]:
        yield self._evaluation
