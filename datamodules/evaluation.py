"""Evaluation as Lightning validation: full episodes of the greedy policy in environments of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.envs import EnvBase

from lit_gfs.errors import UserError

ENDLESS = 200_000
"""Steps after which an episode counts as endless; the longest time limit here is 27,000."""


@torch.no_grad()
def run_episodes(
    env: EnvBase,
    policy: nn.Module,
    episodes: int,
    device: torch.device | str = "cpu",
    on_frame: Callable[[Tensor], None] | None = None,
    before_step: Callable[[], None] = lambda: None,
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

    Returns:
        ``episode_return`` and ``episode_length``, ``(episodes,)`` each: raw, over full episodes.

    Raises:
        UserError: If an episode does not end.
    """
    num_envs = env.batch_size.numel()
    rounds = -(-episodes // num_envs)
    returns = torch.zeros(rounds, num_envs)
    lengths = torch.zeros(rounds, num_envs, dtype=torch.int64)
    played = torch.zeros(num_envs, dtype=torch.int64)
    quota = torch.full((num_envs,), rounds)
    quota[num_envs - (rounds * num_envs - episodes) :] -= 1
    state: TensorDictBase = env.reset()
    steps = 0
    while (played < quota).any():
        steps += 1
        before_step()
        if steps > ENDLESS * rounds:
            raise UserError(
                f"{getattr(env, 'env_id', type(env).__name__)!r} has not ended an evaluation episode in "
                f"{ENDLESS:,} steps; set data.env_options.max_episode_steps"
            )
        if on_frame is not None:
            on_frame(state["pixels"][0])
        acted = policy(TensorDict({"observation": state["observation"].to(device)}, [num_envs]))
        state["action"] = acted["action"].to("cpu")
        step, state = env.step_and_maybe_reset(state)
        following = step["next"]
        for index in following["done"].squeeze(-1).nonzero().flatten().tolist():
            if played[index] < quota[index]:
                returns[played[index], index] = following["episode_return"][index]
                lengths[played[index], index] = following["episode_length"][index]
                played[index] += 1
    return TensorDict(
        {"episode_return": returns.flatten()[:episodes], "episode_length": lengths.flatten()[:episodes]},
        [episodes],
    )


def no_episodes() -> TensorDict:
    """Return what `run_episodes` would of none, ``(0,)`` each."""
    return TensorDict(
        {"episode_return": torch.zeros(0), "episode_length": torch.zeros(0, dtype=torch.int64)}, [0]
    )


Evaluation = Callable[[], TensorDict]
"""Plays the episodes of an evaluation: ``episode_return`` and ``episode_length``, ``(episodes,)`` each."""


class EvaluationLoader:
    """A loader of one batch: an evaluation that is played when it is called.

    It is the agent who plays it, in its step. For an evaluation that breaks off there, Lightning's checkpoint
    says that it is to be played again.

    Args:
        evaluate: Plays the episodes.
    """

    def __init__(self, evaluate: Evaluation) -> None:
        self._evaluate = evaluate

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Evaluation]:
        yield self._evaluate
