"""Runs that are asked to stop, in this process: signals are sent to it from within."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from lit_gfs.configuration.config_trust import trust
from lit_gfs.datamodules.base import EnvDataModule
from lit_gfs.main import main
from lit_gfs.utils.checksummed_files import read_checksummed
from lit_gfs.utils.stop_signals import STOP_SIGNALS
from support import command_line
from support.command_line import Finished, stopped
from support.event_files import read_scalars

trust(__name__)

COMMON = ["--run.name=run", "--trainer.log_every_n_steps=5"]
DQN = [*command_line.DQN, *COMMON]
PPO = ["fit", "--config=ppo_cartpole", "--data.total_steps=384", "--data.eval_every=128", "--data.num_envs=4"]
PPO += ["--data.rollout_steps=16", "--data.minibatches=4", "--data.epochs=2", "--data.eval_episodes=2"]
PPO += ["--model.trunk.width=16", "--trainer.enable_progress_bar=false", *COMMON]
RUN = Path("runs/run/version_0")


class AtStep(Callback):
    """Does something at the end of an optimizer step, once."""

    def __init__(self, step: int = 10, what: str = "SIGTERM") -> None:
        self.step = step
        self.what = what

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        if trainer.global_step == self.step:
            self.step = 0
            for name in self.what.split():
                os.kill(os.getpid(), getattr(signal, name))


pytestmark = pytest.mark.usefixtures("empty_directory")


@pytest.fixture(autouse=True)
def _handlers_are_put_back() -> Iterator[None]:
    numbers = STOP_SIGNALS
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before


def at_step(step: int, what: str) -> str:
    return f"--trainer.callbacks={{class_path: {__name__}.AtStep, init_args: {{step: {step}, what: {what}}}}}"


def curve(tag: str) -> list[tuple[int, float]]:
    return sorted(read_scalars(RUN)[tag])


@pytest.mark.parametrize(
    ("name", "status", "options"),
    [
        ("SIGTERM", 143, []),
        ("SIGTERM", 143, ["--trainer.limit_val_batches=0"]),
        ("SIGINT", 130, []),
        ("SIGHUP", 129, []),
        ("SIGQUIT", 131, []),
        ("SIGUSR1", 138, []),
    ],
)
def test_a_signal_ends_a_run_after_its_step_with_a_checkpoint(
    name: str, status: int, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert stopped([*DQN, at_step(20, name), *options]) == status

    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        "lit_gfs: stopping after this step; once more to stop at once",
        f"lit_gfs: stopped by {name}; to go on: python -m lit_gfs fit --ckpt_path {RUN}/last.ckpt",
    ]
    summary = [line for line in printed.out.splitlines() if line.startswith("  ")]
    rows = dict(line.strip().split("  ", 1) for line in summary)
    assert rows["status"].strip().startswith("interrupted at step ")
    assert rows["last checkpoint"].strip() == str(RUN / "last.ckpt")
    assert read_checksummed(RUN / "last.ckpt")["global_step"] == 20


def test_an_accumulated_step_is_taken_first() -> None:
    # The signal comes after the tenth step; the next batch is the first one of two.
    assert stopped([*DQN, "--trainer.accumulate_grad_batches=2", at_step(10, "SIGTERM")]) == 143

    content = read_checksummed(RUN / "last.ckpt")
    assert content["global_step"] == 11
    assert content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["completed"] == 22


def test_a_second_signal_ends_it_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    steps = 120  # past the first evaluation, after which there is a checkpoint

    assert stopped([*DQN, at_step(steps, "SIGTERM SIGINT")]) == 130

    assert capsys.readouterr().err.splitlines()[-1] == (
        f"lit_gfs: stopped by SIGINT at once; to go on: python -m lit_gfs fit --ckpt_path {RUN}"
    )
    assert read_checksummed(RUN / "last.ckpt")["global_step"] < steps


def test_a_second_signal_while_the_checkpoint_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    save = Trainer.save_checkpoint

    def interrupted(trainer: Trainer, *arguments: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        save(trainer, *arguments, **options)

    monkeypatch.setattr(Trainer, "save_checkpoint", interrupted)

    assert stopped([*DQN, "--trainer.limit_val_batches=0", at_step(5, "SIGINT")]) == 143

    assert list(RUN.glob("*.ckpt*")) == []


AVERAGED = ["--trainer.callbacks+=EMAWeights", "--trainer.callbacks.decay=0.8"]


@pytest.mark.parametrize(
    ("base", "before"),
    [
        pytest.param(DQN, 0, id="dqn"),
        pytest.param(PPO, 0, id="ppo"),
        pytest.param([*DQN, *AVERAGED], 0, id="dqn-average", marks=pytest.mark.slow),
        pytest.param([*PPO, *AVERAGED], 1, id="ppo-after-the-average"),
    ],
)
def test_an_evaluation_is_abandoned_and_played_again_after_a_resume(
    finished: Finished, base: list[str], before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = "loss/q" if base[: len(DQN)] == DQN else "loss/policy"
    finished(base)
    expected = read_checksummed(RUN / "last.ckpt")
    curves = [curve("eval/episode_return"), curve(loss)]
    Path("runs").rename("whole")
    play = EnvDataModule._play
    played: list[int] = []

    def interrupted(data: EnvDataModule, env: Any, *arguments: Any) -> Any:
        played.append(data.env_steps)
        if data.env_steps >= 200 and played.count(data.env_steps) > before:
            os.kill(os.getpid(), signal.SIGTERM)
            play(data, env, *arguments)
            pytest.fail("the evaluation was played to its end")
        return play(data, env, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(EnvDataModule, "_play", interrupted)
        assert stopped(base) == 143
    main(["fit", "--ckpt_path=last"])

    resumed = read_checksummed(RUN / "last.ckpt")
    for key in ("state_dict", "current_model_state"):
        assert_equal(resumed.get(key, {}), expected.get(key, {}))
    assert [curve("eval/episode_return"), curve(loss)] == curves


@pytest.mark.parametrize("base", [DQN, PPO], ids=["dqn", "ppo"])
def test_a_stopped_run_goes_on_as_one_that_was_not(base: list[str]) -> None:
    step = random.randrange(3, 190 if base is DQN else 46)

    assert stopped([*base, at_step(step, "SIGTERM")]) == 143
    main(["fit", "--ckpt_path=last", at_step(0, "SIGTERM")])
    first = read_checksummed(RUN / "last.ckpt")
    # A stop leaves the same twice: what follows is a function of what it wrote.
    Path("runs").rename("first")
    assert stopped([*base, at_step(step, "SIGINT")]) == 130
    main(["fit", "--ckpt_path=last", at_step(0, "SIGTERM")])

    assert_equal(read_checksummed(RUN / "last.ckpt")["state_dict"], first["state_dict"])
    assert first["global_step"] == (200 if base is DQN else 48)


def assert_equal(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


def test_handlers_of_somebody_else_are_left_alone() -> None:
    seen: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        # Lightning calls them beside its own, which ends the run.
        assert stopped([*DQN, at_step(5, "SIGTERM")]) == 143
    finally:
        signal.signal(signal.SIGTERM, previous)

    assert seen == [signal.SIGTERM]
    assert read_checksummed(RUN / "last.ckpt")["global_step"] == 5


def test_a_run_goes_on_when_its_terminal_is_closed_under_nohup() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        main([*DQN, "--data.total_steps=240", at_step(5, "SIGHUP")])
    finally:
        signal.signal(signal.SIGHUP, previous)

    assert read_checksummed(RUN / "last.ckpt")["global_step"] == 20


def test_a_fit_in_another_thread_runs_without_handlers() -> None:
    failures: list[BaseException] = []

    def fit() -> None:
        try:
            main([*DQN, "--data.total_steps=240"])
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=fit)
    thread.start()
    thread.join()

    assert failures == []
    assert (RUN / "last.ckpt").is_file()
