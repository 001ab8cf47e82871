"""A batch of tensor games as one TorchRL environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_structure, tree_unflatten
from torchrl.data import Binary, TensorSpec, Unbounded
from typing_extensions import override

from lit_gfs.envs.action_specs import discrete_action
from lit_gfs.envs.auto_reset import AutoResetEnv
from lit_gfs.envs.tensor.game import TensorGame, choose, where_row
from lit_gfs.envs.tensor.graphed import GraphedTransition


class Episodes(NamedTuple):
    """The state of a batch of environments; tensors ``(num_envs, ...)``, which are never written to."""

    game: Any
    """The state of the games, see `TensorGame`."""
    last_action: Tensor
    """The game's latest action, for sticky actions; it outlasts the end of an episode."""
    length: Tensor
    """Steps of the episode, int64."""
    episode_return: Tensor
    """Sum of the episode's raw rewards, float64."""


class TensorStep(NamedTuple):
    """One step of every environment, with the totals of its episode; tensors ``(num_envs, ...)``."""

    observation: Tensor
    """The observation after the step; where an episode ended, its final observation."""
    reward: Tensor
    done: Tensor
    terminated: Tensor
    truncated: Tensor
    episode_return: Tensor
    episode_length: Tensor


class TensorEnv(AutoResetEnv):
    """A game in tensors, which begins a new episode in the step that ends one.

    `AutoResetEnv` describes its entries and its resets. State, generator and results are on one device, and a
    step neither copies a tensor from there to another device nor waits for it. `to` moves the environment.
    Actions are not checked, as this would mean waiting.

    A seed decides everything on one device; the generator of another device draws other numbers.

    Args:
        env_id: The id by which a user knows this environment.
        num_envs: Number of environments.
        game: The rules.
        actions: The game's actions; the environment's are their indices.
        sticky_action_prob: Probability that a step repeats the previous action and ignores the new one.
        time_limit: Steps after which an episode is truncated; ``None`` sets no limit.
        seed: Seed of the first reset; ``None`` draws one from the operating system.
        render: Whether to add ``pixels``; they are painted on the host, for videos.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        game: TensorGame[Any],
        actions: Sequence[int],
        *,
        sticky_action_prob: float = 0.0,
        time_limit: int | None = None,
        seed: int | None = None,
        render: bool = False,
    ) -> None:
        shape, dtype = (num_envs, *game.observation_shape), game.observation_dtype
        is_board = dtype == torch.bool
        observation = Binary(shape=shape, dtype=dtype) if is_board else Unbounded(shape, dtype=dtype)
        observations: dict[str, TensorSpec] = {"observation": observation}
        if render:
            observations["pixels"] = Unbounded((num_envs, *game.picture_shape), dtype=torch.uint8)
        super().__init__(num_envs, observations, discrete_action(len(actions), num_envs))
        self.env_id = env_id
        self.num_envs = num_envs
        self.time_limit = time_limit
        """Steps after which an episode is truncated; ``None`` where there is no limit."""
        self._game = game
        # A game whose actions are all taken needs no table of them.
        self._actions = None if list(actions) == list(range(len(actions))) else torch.tensor(actions)
        self._stickiness = sticky_action_prob
        self._renders = render
        self._seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self._has_seed_due = True
        self._generator = torch.Generator(self.device)
        self._transition: Callable[..., Any] = self.transition
        self._episodes: Episodes | None = None
        self._observations: dict[str, Tensor] = {}
        self._already_reset = self._nowhere = torch.zeros(num_envs, dtype=torch.bool)

    @override
    def to(self, device: Any) -> TensorEnv:
        """Move the environment to another device, where the next reset begins anew from the latest seed."""
        before = self.device
        super().to(device)
        if self.device != before:
            self._generator = torch.Generator(self.device)
            self._transition = self.transition
            self._has_seed_due = True
            self._episodes, self._observations = None, {}
            self._already_reset = self._nowhere = self._nowhere.to(self.device)
            self._actions = None if self._actions is None else self._actions.to(self.device)
            self._shared_not_done = self._not_done()
        return self

    def use_graphs(self) -> None:
        """Step by a CUDA graph from now on, or go on without, with one line, if that is not possible."""
        self._transition = GraphedTransition(self.transition, self.device, self.env_id)

    # -- stepping ----------------------------------------------------------------------------------------

    @property
    def observations(self) -> dict[str, Tensor]:
        """The observations that the next action answers to, by name; empty before the first reset."""
        return self._observations

    def advance(self, action: Tensor) -> TensorStep:
        """Step every environment, then reset where episodes ended: `step_and_maybe_reset` as plain tensors.

        Args:
            action: ``(num_envs,)`` int64, on the environment's device.
        """
        step, _ = self._take_step(action)
        self._already_reset = self._nowhere
        return step

    def transition(
        self, episodes: Episodes, action: Tensor, draws: Tensor
    ) -> tuple[Episodes, TensorStep, Tensor, Any]:
        """Step every environment, as a pure function of tensors.

        Args:
            episodes: The state before the step; it is left as it is.
            action: ``(num_envs,)`` int64.
            draws: Numbers in [0, 1), float64 ``(num_envs, 1 + step_draws + opening_draws)``: the first one
                makes actions stick, the next ones are for the game, the last ones for the next opening.

        Returns:
            The state after the step, and after the reset where an episode ended; the step; the observations
            of that state; and the state of the games before the reset.
        """
        game = self._game
        for_step, for_opening = draws[:, 1 : 1 + game.step_draws], draws[:, 1 + game.step_draws :]
        if self._actions is not None:
            action = self._actions[action]
        if self._stickiness > 0:
            action = torch.where(draws[:, 0] < self._stickiness, episodes.last_action, action)
        ended, reward, terminated = game.step(episodes.game, action, for_step)
        length = episodes.length + 1
        limit = self.time_limit
        truncated = torch.zeros_like(terminated) if limit is None else length >= limit
        done = terminated | truncated
        total = episodes.episode_return + reward
        ends = done, terminated, truncated
        step = TensorStep(game.show(ended), reward.float(), *ends, total.float(), length)
        after = Episodes(
            choose(done, game.opening(for_opening), ended),
            action,
            length.masked_fill(done, 0),
            total.masked_fill(done, 0),
        )
        return after, step, game.show(after.game), ended

    def _take_step(self, action: Tensor) -> tuple[TensorStep, dict[str, Tensor]]:
        """Step; return the step, and its observations by name."""
        assert self._episodes is not None, "an environment is reset before it steps"
        self._episodes, step, observation, ended = self._transition(self._episodes, action, self._draw())
        self._observations = self._named(observation, self._episodes.game)
        return step, self._named(step.observation, ended)

    def _draw(self) -> Tensor:
        count = 1 + self._game.step_draws + self._game.opening_draws
        return torch.rand(
            self.num_envs, count, dtype=torch.float64, device=self.device, generator=self._generator
        )

    def _named(self, observation: Tensor, game: Any) -> dict[str, Tensor]:
        pixels = {"pixels": self._game.pictures(game)} if self._renders else {}
        return {"observation": observation, **pixels}

    # -- beginning episodes ------------------------------------------------------------------------------

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            self._seed, self._has_seed_due = seed, True

    @property
    def _has_new_seed(self) -> bool:
        return self._has_seed_due

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDict:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        if mask is None or self._episodes is None or (self._has_seed_due and bool(mask.all())):
            self._reset_all()
        else:
            self._reset_where(mask.reshape(-1))
        # Copies: collectors write in place into the result of a reset.
        entries = {key: value.clone() for key, value in self._state_entries().items()}
        return self._tensordict({**entries, **self._not_done()})

    def _reset_all(self) -> None:
        """Begin a new episode everywhere, from the seed if there is a new one."""
        last_action = None if self._episodes is None else self._episodes.last_action
        if self._has_seed_due:
            self._generator.manual_seed(self._seed)
            self._has_seed_due, last_action = False, None
        length = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        self._episodes = Episodes(
            self._game.opening(self._opening_draws()),
            torch.zeros_like(length) if last_action is None else last_action,
            length,
            length.double(),
        )
        self._observations = self._named(self._game.show(self._episodes.game), self._episodes.game)
        self._already_reset = self._nowhere

    def _reset_where(self, mask: Tensor) -> None:
        """Begin a new episode where the mask is true, unless the latest step has begun one there."""
        assert self._episodes is not None
        episodes, due = self._episodes, mask & ~self._already_reset
        self._already_reset = self._already_reset & ~mask
        if not due.any():  # collectors do not come here, so it may wait for the device
            return
        games = choose(due, self._game.opening(self._opening_draws()), episodes.game)
        self._episodes = episodes._replace(
            game=games,
            length=episodes.length.masked_fill(due, 0),
            episode_return=episodes.episode_return.masked_fill(due, 0),
        )
        shown = self._named(self._game.show(games), games)
        self._observations = {
            key: where_row(due, shown[key], values) for key, values in self._observations.items()
        }

    def _opening_draws(self) -> Tensor:
        return self._draw()[:, 1 + self._game.step_draws :]

    # -- TorchRL -----------------------------------------------------------------------------------------

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        step, observations = self._take_step(tensordict.get("action"))
        self._already_reset = step.done
        return self._tensordict(_next_entries(step, observations))

    def _next_entries(self, action: Tensor) -> dict[str, Tensor]:
        step, observations = self._take_step(action)
        self._already_reset = self._nowhere
        return _next_entries(step, observations)

    def _state_entries(self) -> dict[str, Tensor]:
        assert self._episodes is not None
        return {
            **self._observations,
            "episode_return": self._episodes.episode_return.float()[:, None],
            "episode_length": self._episodes.length[:, None],
        }

    # -- snapshots ---------------------------------------------------------------------------------------

    @property
    def open_episodes(self) -> int:
        """Number of episodes that have taken a step and have not ended."""
        return 0 if self._episodes is None else int(self._episodes.length.count_nonzero())

    @property
    def is_restorable(self) -> bool:
        """Whether `snapshot` works, once the environments have been reset: always."""
        return True

    def snapshot(self) -> dict[str, Any] | None:
        """Return the state of all environments and of the generator, between two steps.

        Returns:
            Tensors on the CPU; ``None`` before the first reset, or if a new seed is due.
        """
        if self._episodes is None or self._has_seed_due:
            return None
        return {
            "episodes": [value.cpu() for value in tree_leaves(self._episodes)],
            "generator": self._generator.get_state(),
        }

    def restore(self, snapshot: dict[str, Any]) -> bool:
        """Bring all environments back to the state of a snapshot.

        Returns:
            True: the state is all that there is.
        """
        if self._episodes is None:
            self._reset_all()
        leaves = [value.to(self.device) for value in snapshot["episodes"]]
        self._episodes = tree_unflatten(leaves, tree_structure(self._episodes))
        self._generator.set_state(snapshot["generator"])
        self._has_seed_due = False
        games = self._episodes.game
        self._observations = self._named(self._game.show(games), games)
        self._already_reset = self._nowhere
        return True


def _next_entries(step: TensorStep, observations: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries of ``next``."""
    columns = step._asdict()
    del columns["observation"]
    return {**observations, **{key: values[:, None] for key, values in columns.items()}}
