"""Two processes: each has environments of its own, steps are counted over both, weights stay equal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from lit_gfs.agents import DQN, PPO, PQN, SAC, TD3
from lit_gfs.callbacks import (
    AdamResets,
    AdaptiveGradientClipping,
    GradientNormalization,
    LayerResets,
    NaNGuard,
    PathSensitiveInit,
    PullToInit,
    ReDo,
    ReGraMa,
    ShrinkAndPerturb,
    SpectralNormalization,
    StaticSparsity,
    TemporalGradientClipping,
    UpdateClipping,
    WeightClipping,
    WeightProjection,
)
from lit_gfs.datamodules import ReplayDataModule, RolloutDataModule
from lit_gfs.errors import UserError
from support.fakes import CountingEnv, FollowingEnv, Records
from support.training import rollout_data


class Report(Callback):
    """Writes what each process ended with, as forked processes take their memory with them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.observations: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *arguments: Any) -> None:
        self.observations.append(pl_module.probe_batch())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        report = {
            "env_steps": trainer.datamodule.env_steps,  # type: ignore[attr-defined]
            "global_step": trainer.global_step,
            "weights": torch.cat([parameter.detach().flatten() for parameter in pl_module.parameters()]),
            "observations": torch.cat(self.observations),
        }
        torch.save(report, self.directory / f"{trainer.global_rank}.pt")


@pytest.mark.usefixtures("counting_envs")
@pytest.mark.parametrize("name", ["DQN", "Rainbow", "PPO", "PPO with a divergence limit", "PQN"])
def test_two_processes_count_together_and_learn_alike(
    name: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"num_envs": 2, "total_steps": 128, "eval_every": 64, "eval_episodes": 2}
    torch.manual_seed(0)
    data: Any
    agent: LightningModule
    if name == "DQN":
        data = ReplayDataModule("Counting-v0", learning_starts=32, batch_size=8, seed=1, **arguments)
        agent = DQN(data.env_spec)
    elif name == "Rainbow":
        data = ReplayDataModule(
            "Counting-v0",
            learning_starts=32,
            batch_size=8,
            n_step=3,
            priority_exponent=0.5,
            importance_exponent=0.4,
            seed=1,
            **arguments,
        )
        agent = DQN(data.env_spec, double=True, dueling=True, noisy=True, loss="c51", v_min=0, v_max=9)
    else:
        data = RolloutDataModule("Counting-v0", rollout_steps=8, epochs=2, minibatches=2, seed=1, **arguments)
        if name == "PQN":
            agent = PQN(data.env_spec)
        else:
            limit = 1e-9 if "limit" in name else None
            agent = PPO(data.env_spec, target_kl=limit, normalize_observation=True)

    make_trainer(strategy="ddp_fork", devices=2, callbacks=[Report(tmp_path)]).fit(agent, data)

    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["env_steps"] == second["env_steps"] == 128
    assert first["global_step"] == second["global_step"] > 0
    assert torch.equal(first["weights"], second["weights"])
    assert not torch.equal(first["observations"], second["observations"])


@pytest.mark.parametrize("agent", [SAC, TD3])
def test_two_processes_learn_continuous_actions_alike(
    agent: Any, make_trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every second step of TD3, no process has a gradient of the actor."""
    monkeypatch.setattr(
        "lit_gfs.datamodules.evaluated.make_env", lambda _, num_envs=1: FollowingEnv(num_envs)
    )
    torch.manual_seed(0)
    data = ReplayDataModule(
        "Following-v0",
        num_envs=2,
        total_steps=128,
        eval_every=64,
        eval_episodes=2,
        learning_starts=32,
        batch_size=8,
        seed=1,
    )
    strategy = "ddp_fork" if agent is SAC else "ddp_fork_find_unused_parameters_true"

    make_trainer(strategy=strategy, devices=2, callbacks=[Report(tmp_path)]).fit(
        agent(data.env_spec, normalize_observation=True), data
    )

    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["env_steps"] == second["env_steps"] == 128
    assert first["global_step"] == second["global_step"] == 24
    assert torch.equal(first["weights"], second["weights"])
    assert not torch.equal(first["observations"], second["observations"])


@pytest.mark.parametrize("agent", [DQN, PPO, PQN])
def test_two_processes_end_with_the_vector_step_that_reaches_the_runs_steps(
    agent: Any, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"num_envs": 3, "total_steps": 101, "eval_every": 1000, "eval_episodes": 2}
    torch.manual_seed(0)
    data: Any
    if agent is DQN:
        data = ReplayDataModule("CartPole-v1", learning_starts=20, batch_size=8, seed=1, **arguments)
    else:
        data = RolloutDataModule("CartPole-v1", rollout_steps=8, epochs=1, minibatches=2, seed=1, **arguments)

    make_trainer(strategy="ddp_fork", devices=2, callbacks=[Report(tmp_path)]).fit(agent(data.env_spec), data)

    for rank in (0, 1):
        report = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert report["env_steps"] == 102  # six environments step at once


class Evaluations(Callback):
    """Writes what each process made of every evaluation, and what it was told of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.seen: list[dict[str, float]] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen.append({tag: float(value) for tag, value in trainer.callback_metrics.items()})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.save(self.seen, self.directory / f"seen_{trainer.global_rank}.pt")


class RecordsOfRankZero(Records):
    """Keeps what the first process writes in a file."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics, step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        torch.save(self.rows, self.directory / "written.pt")


class RankedEnv(CountingEnv):
    """Has longer episodes in the second process."""

    def _reset(self, *arguments: Any, **options: Any) -> Any:
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        self.lengths = torch.full_like(self.lengths, 2 + 2 * rank)
        return super()._reset(*arguments, **options)


@pytest.fixture
def ranked_envs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "lit_gfs.datamodules.evaluated.make_env", lambda _, num_envs=1: RankedEnv([2] * num_envs)
    )


@pytest.mark.parametrize(("episodes", "lengths"), [(3, [2, 2, 4]), (1, [2])])
@pytest.mark.usefixtures("ranked_envs")
def test_an_evaluation_is_one_over_the_episodes_of_all_processes(
    episodes: int, lengths: list[int], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    data = rollout_data(epochs=1, eval_episodes=episodes)
    best = ModelCheckpoint(
        tmp_path, "best", monitor="eval/episode_return", mode="max", save_on_train_epoch_end=False
    )
    callbacks = [Evaluations(tmp_path), best]
    options = {"log_every_n_steps": 2, "enable_checkpointing": True, "logger": RecordsOfRankZero(tmp_path)}

    make_trainer(strategy="ddp_fork", devices=2, callbacks=callbacks, **options).fit(PPO(data.env_spec), data)

    returns = torch.tensor([length * (length + 1) / 2 for length in lengths])
    expected = {
        "eval/episode_return": float(returns.mean()),
        "eval/episode_return_std": float(returns.std(correction=0)),
        "eval/episode_length": float(torch.tensor(lengths).float().mean()),
    }
    seen = [torch.load(tmp_path / f"seen_{rank}.pt", weights_only=True) for rank in (0, 1)]
    written = torch.load(tmp_path / "written.pt", weights_only=True)
    checkpoint = torch.load(tmp_path / "best.ckpt", weights_only=True)
    kept = next(state for key, state in checkpoint["callbacks"].items() if "ModelCheckpoint" in key)
    assert seen == [[expected, expected]] * 2
    for step in (32, 64):
        assert {tag: value for tag, value in written[step].items() if tag.startswith("eval/")} == expected
    assert float(kept["best_model_score"]) == expected["eval/episode_return"]


class RankedPPO(PPO):
    """Records its rank, as often as it has steps in it."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.record({"loss/rank": torch.full((1 + self.global_rank,), float(self.global_rank))})
        return super().training_step(batch, batch_idx)


@pytest.mark.usefixtures("ranked_envs")
def test_what_is_written_of_training_is_of_all_processes(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"rollout_steps": 8, "epochs": 1, "minibatches": 2, "seed": 1}
    data = RolloutDataModule("Counting-v0", num_envs=2, total_steps=64, eval_every=64, **arguments)
    logger = RecordsOfRankZero(tmp_path)

    trainer = make_trainer(strategy="ddp_fork", devices=2, log_every_n_steps=2, logger=logger)
    trainer.fit(RankedPPO(data.env_spec), data)

    rows = torch.load(tmp_path / "written.pt", weights_only=True)
    # In 8 steps of two environments each, eight episodes of 2 steps, and four of 4.
    assert [rows[step]["train/episode_length"] for step in (32, 64)] == pytest.approx(
        [(8 * 2 + 4 * 4) / 12] * 2
    )
    assert [rows[step]["loss/rank"] for step in (32, 64)] == pytest.approx([2 / 3] * 2)


class PoisonedPPO(PPO):
    """Its loss is not finite on one rank, once with its gradient and once without."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.global_rank == 1 and self.global_step == 5:
            return loss * float("nan")
        if self.global_rank == 0 and self.global_step == 7:
            return loss + float("inf")  # its gradient is that of the loss: only this rank knows
        return loss


@pytest.mark.usefixtures("counting_envs")
def test_interventions_decide_alike_on_all_ranks(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    data = rollout_data(total_steps=128, eval_every=64)

    class State(Callback):
        """Writes what the interventions end with."""

        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            states = {each.state_key: each.state_dict() for each in interventions}
            torch.save(states, tmp_path / f"state_{trainer.global_rank}.pt")

    interventions = [NaNGuard(), TemporalGradientClipping(warmup=3, z_threshold=1.0), GradientNormalization()]
    callbacks = [PathSensitiveInit(), *interventions, Report(tmp_path), State()]

    make_trainer(strategy="ddp_fork", devices=2, callbacks=callbacks).fit(PoisonedPPO(data.env_spec), data)

    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first["weights"], second["weights"])
    assert first["weights"].isfinite().all()
    states = [torch.load(tmp_path / f"state_{rank}.pt", weights_only=True) for rank in (0, 1)]
    for key, state in states[0].items():
        other = states[1][key]
        if "NaNGuard" in key:
            assert (state["total"], state["nonfinite_losses"]) == (2, 2)
            assert state == other
            continue
        assert state["algorithms"][0]["layers"] == other["algorithms"][0]["layers"]
        for name, value in state["algorithms"][0]["state"].items():
            assert torch.equal(value, other["algorithms"][0]["state"][name])


@pytest.mark.usefixtures("counting_envs")
def test_weights_change_alike_on_all_ranks(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    data = rollout_data(total_steps=128, eval_every=64)
    callbacks = [
        *(NaNGuard(), UpdateClipping(threshold=0.5), PullToInit(strength=1.0)),
        *(ShrinkAndPerturb(shrink=0.99, on_shift=True), StaticSparsity(), WeightClipping()),
        *(SpectralNormalization(), WeightProjection(), Report(tmp_path)),
    ]

    make_trainer(strategy="ddp_fork", devices=2, callbacks=callbacks).fit(PoisonedPPO(data.env_spec), data)

    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first["weights"], second["weights"])
    assert first["weights"].isfinite().all()
    assert (first["weights"] == 0).float().mean() > 0.5


@pytest.mark.usefixtures("counting_envs")
@pytest.mark.parametrize("initialized", [False, True])
def test_resets_are_the_same_on_all_ranks(
    initialized: bool, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """The ranks see other observations, so activations differ, and draws of their own do."""
    data = rollout_data(total_steps=128, eval_every=64)
    resets: list[Any] = [
        *(ReDo(every_n_steps=3, tau=0.5), ReGraMa(every_n_steps=4, tau=0.3)),
        *(LayerResets(every=48, layers=2), AdamResets(every_n_steps=7), AdaptiveGradientClipping()),
    ]
    first_weights = [PathSensitiveInit()] if initialized else []
    trainer = make_trainer(
        strategy="ddp_fork", devices=2, callbacks=[*first_weights, NaNGuard(), *resets, Report(tmp_path)]
    )

    trainer.fit(PoisonedPPO(data.env_spec), data)

    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first["weights"], second["weights"])
    assert not torch.equal(first["observations"], second["observations"])
    assert first["weights"].isfinite().all()


class Arrival(Callback):
    """Writes what each process resumes with."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        arrival = {
            "env_steps": trainer.datamodule.env_steps,  # type: ignore[attr-defined]
            "global_step": trainer.global_step,
            "weights": torch.cat([parameter.detach().flatten() for parameter in pl_module.parameters()]),
        }
        torch.save(arrival, self.directory / f"arrival_{trainer.global_rank}.pt")


@pytest.mark.usefixtures("counting_envs")
@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("PPO", 2, 1),
        ("DQN", 1, 2),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [("DQN", 2, 1), ("PPO", 1, 2)]),
        *(pytest.param(name, 2, 3, marks=pytest.mark.slow) for name in ("PPO", "DQN")),
    ],
)
def test_another_number_of_processes_goes_on_with_fresh_experience(
    name: str, before: int, after: int, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    def fit(processes: int, total_steps: int, checkpoint: str | None = None, fresh: bool = False) -> None:
        torch.manual_seed(total_steps)
        arguments: dict[str, Any] = {"num_envs": 2, "total_steps": total_steps, "eval_every": 1000}
        data: Any
        if name == "DQN":
            data = ReplayDataModule("Counting-v0", learning_starts=32, batch_size=8, seed=1, **arguments)
        else:
            data = rollout_data(**arguments)
        agent: Any = DQN(data.env_spec) if name == "DQN" else PPO(data.env_spec)
        data.fresh_experience = fresh
        callbacks = [Report(tmp_path), Arrival(tmp_path), ModelCheckpoint(tmp_path, "last")]
        strategy = "ddp_fork" if processes > 1 else "auto"
        trainer = make_trainer(
            strategy=strategy,
            devices=processes,
            accelerator="cpu",
            callbacks=callbacks,
            enable_checkpointing=True,
        )
        trainer.fit(agent, data, ckpt_path=checkpoint, weights_only=True)

    fit(before, 128)
    ended = torch.load(tmp_path / "0.pt", weights_only=True)
    last = str(tmp_path / "last.ckpt")

    # The processes of `ddp_fork` hand on each other's errors as text.
    with pytest.raises((UserError, torch.multiprocessing.ProcessRaisedException), match="fresh_experience"):
        fit(after, 256, last)
    fit(after, 256, last, fresh=True)

    for rank in range(after):
        arrival = torch.load(tmp_path / f"arrival_{rank}.pt", weights_only=True)
        assert (arrival["env_steps"], arrival["global_step"]) == (128, ended["global_step"])
        assert torch.equal(arrival["weights"], ended["weights"])
    reports = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(after)]
    counts = {report["env_steps"] for report in reports}
    assert len(counts) == 1
    assert 256 <= counts.pop() < 256 + 16 * after  # these environments have whole rollouts only
    assert all(torch.equal(report["weights"], reports[0]["weights"]) for report in reports)
    assert not torch.equal(reports[0]["weights"], ended["weights"])
