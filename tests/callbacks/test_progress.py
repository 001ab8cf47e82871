from __future__ import annotations

import io
import re
import signal
import sys
import time
import timeit
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from rich.cells import cell_len
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_gfs.agents import PPO
from lit_gfs.callbacks import progress
from lit_gfs.callbacks.progress import StepProgressBar
from lit_gfs.datamodules import RolloutDataModule
from lit_gfs.utils.progress_line import Pace, ProgressLine
from support.training import quiet_trainer

CONTROL_CHARACTERS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Counting(LightningDataModule):
    """A datamodule that takes 10 environment steps a batch, for 8 batches an epoch."""

    env_id = "CartPole-v1"
    frame_skip = 1

    def __init__(self, total_steps: int = 160, env_steps: int = 0) -> None:
        super().__init__()
        self.total_steps = total_steps
        self.env_steps = env_steps

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(8):
            self.env_steps += 10
            yield torch.ones(2, 3)

    def __len__(self) -> int:
        return 8

    def train_dataloader(self) -> Counting:
        return self

    def val_dataloader(self) -> list[Tensor]:
        return [torch.ones(1)]


class Unsized:
    """Eight batches, and no word of how many."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter([torch.ones(2, 3)] * 8)


class DQN(LightningModule):
    latest_return: float | None = None

    def __init__(self, on_step: Callable[[int], Any] = lambda step: None) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.on_step = on_step

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.latest_return = 21.5
        self.on_step(self.global_step)
        return self.layer(batch).mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("eval/episode_return", torch.tensor(187.3), logger=False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Terminal(io.StringIO):
    """A stdout that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def pretend_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Replace stdout; not a fixture, as pytest replaces stdout itself after fixtures have run."""
    stdout = Terminal()
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    return stdout


def fit(bar: StepProgressBar, module: LightningModule, data: Any, **options: Any) -> Trainer:
    defaults = {"max_epochs": 2, "callbacks": [bar], "enable_progress_bar": True}
    trainer = quiet_trainer(**{**defaults, **options})
    if isinstance(data, LightningDataModule):
        trainer.fit(module, datamodule=data)
    else:
        trainer.fit(module, data)
    return trainer


# -- pace --------------------------------------------------------------------------------------------------


def test_pace_is_that_of_the_last_ten_seconds_and_starts_where_a_run_is_resumed() -> None:
    pace = Pace(500_000, now=100.0)
    assert pace.rate is None
    for second in range(1, 31):
        pace.record(500_000 + 100 * second, 100.0 + second)
    assert pace.rate == pytest.approx(100)
    for second in range(1, 11):
        pace.record(503_000 + 400 * second, 130.0 + second)
    assert pace.rate == pytest.approx(400)
    assert pace.seconds_left(8000) == pytest.approx(20)


def test_pace_of_rollouts_is_judged_over_whole_rollouts() -> None:
    # 6,000 steps arrive at once every 30 s: 200 a second, at whatever moment one asks.
    pace = Pace(0, now=0.0)
    for tick in range(1, 900):
        pace.record(6000 * (tick // 150), tick / 5)
        if tick >= 150:
            assert pace.rate == pytest.approx(200)


def test_evaluation_neither_slows_the_pace_nor_moves_the_time_left_until_it_is_over() -> None:
    pace = Pace(0, now=0.0)
    for second in range(1, 11):
        pace.record(100 * second, second)
    before = pace.seconds_left(9000)
    pace.pause(10.0)
    pace.record(1000, 25.0)
    assert pace.seconds_left(9000) == before == pytest.approx(90)
    pace.resume(1000, 40.0)
    pace.record(1100, 41.0)
    assert pace.rate == pytest.approx(100)
    # 30 s every 1,000 steps: the remaining nine evaluations take 270 s.
    assert pace.seconds_left(9000) == pytest.approx(90 + 270)


# -- the line ----------------------------------------------------------------------------------------------

LINE = ProgressLine("DQN CartPole-v1", 123_456, 1_000_000, 9812.0, 123.4, 456.7, 83.0, 612.0)


def drawn(line: ProgressLine, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(line.rich(width))
    return capture.get().rstrip("\n")


def test_wide_line_shows_everything() -> None:
    text = drawn(LINE, 117)
    words = [
        "DQN CartPole-v1",
        "123,456/1,000,000",
        "9,812/s",
        "train 123.4",
        "eval 456.7",
        "1:23",
        "eta 10:12",
    ]
    positions = [text.index(word) for word in words]
    assert positions == sorted(positions)


def test_eighty_columns_keep_what_matters() -> None:
    text = drawn(LINE, 77)
    for word in ("DQN CartPole-v1", "123,456/1M", "9,812/s", "train 123.4", "eval 456.7", "eta 10:12"):
        assert word in text


@pytest.mark.parametrize("evaluating", [False, True])
@pytest.mark.parametrize("description", ["DQN CartPole-v1", "PPO dm_control/humanoid_CMU-stand-v0"])
@pytest.mark.parametrize("total", [1_000_000, 50_000_000, None])
def test_line_never_wraps(evaluating: bool, description: str, total: int | None) -> None:
    line = ProgressLine(description, 987_654, total, 12_345.0, -1234.5, 12_345.0, 9e4, 8e4, evaluating)
    for width in range(20, 200):
        text = drawn(line, width)
        assert "\n" not in text
        assert cell_len(text) <= width
        assert "987,654" in text
        if width >= 77 and evaluating:
            assert "evaluating" in text


def test_bar_is_filled_by_the_share_of_steps() -> None:
    console = Console(file=io.StringIO(), width=150, force_terminal=True, color_system="truecolor")
    with console.capture() as capture:
        console.print(ProgressLine("DQN", 500, 1000, 10.0, None, None, 1.0, 2.0).rich(150))
    runs = [run.count("━") for run in re.split(r"\x1b\[[0-9;]*m", capture.get()) if "━" in run]
    assert runs[0] == 20
    assert capture.get().count("━") + capture.get().count("╺") == 40


# -- plain output ------------------------------------------------------------------------------------------


def test_plain_output_has_a_first_and_a_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    fit(StepProgressBar(), DQN(), Counting())
    output = capsys.readouterr().out
    assert CONTROL_CHARACTERS.search(output) is None
    first, last = output.splitlines()
    assert first.startswith("DQN CartPole-v1 | 0/160 (0.0%) | -/s | train - | eval -")
    assert re.fullmatch(
        r"DQN CartPole-v1 \| 160/160 \(100\.0%\) \| [\d,.]+/s \| train 21\.5\d? \| eval 187\.3 \| "
        r"elapsed 0:\d\d \| eta 0:00",
        last,
    )


def test_plain_lines_are_ten_seconds_apart(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])

    def three_seconds_pass(step: int) -> None:
        clock[0] += 3.0

    fit(StepProgressBar("mine"), DQN(three_seconds_pass), Counting(), limit_val_batches=0)
    lines = capsys.readouterr().out.splitlines()
    # 16 batches of 3 s: at 0, 12, 24, 36, 48 s, and at the end.
    elapsed = [line.split("elapsed ")[1].split()[0] for line in lines]
    assert elapsed == ["0:00", "0:12", "0:24", "0:36", "0:48", "0:48"]
    assert all(line.startswith("mine | ") for line in lines)
    assert "| 3.3/s |" in lines[-1]


def test_without_step_counts_it_counts_optimizer_steps(capsys: pytest.CaptureFixture[str]) -> None:
    class Plain(LightningModule):
        training_step = DQN.training_step
        configure_optimizers = DQN.configure_optimizers

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 1)
            self.on_step = lambda step: None

    batches: Any = DataLoader(torch.ones(16, 3), batch_size=2)  # type: ignore[arg-type]
    fit(StepProgressBar(), Plain(), batches)
    assert "Plain | 16/16 (100.0%)" in capsys.readouterr().out
    fit(StepProgressBar(), Plain(), batches, max_epochs=-1, max_steps=5)
    assert "Plain | 5/5 (100.0%)" in capsys.readouterr().out
    fit(StepProgressBar(), Plain(), batches, accumulate_grad_batches=4)
    assert "Plain | 4/4 (100.0%)" in capsys.readouterr().out
    fit(StepProgressBar(), Plain(), Unsized(), max_epochs=1)
    assert "Plain | 8 | " in capsys.readouterr().out


def test_resumed_run_starts_at_its_step_count(capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    fit(StepProgressBar(), DQN(), Counting(total_steps=1000, env_steps=840))
    lowest_rate = 160 / (time.monotonic() - started)
    first, last = capsys.readouterr().out.splitlines()
    assert "840/1,000 (84.0%) | -/s" in first
    assert "1,000/1,000" in last
    # The rate counts the 160 steps of this session only.
    rate = float(last.split(" | ")[2].removesuffix("/s").replace(",", ""))
    assert lowest_rate <= rate < 1000 / 160 * lowest_rate * 100


def test_disabled_bar_prints_nothing_until_it_is_enabled(capsys: pytest.CaptureFixture[str]) -> None:
    bar = StepProgressBar()
    bar.disable()
    fit(bar, DQN(), Counting())
    assert capsys.readouterr().out == ""
    bar.enable()
    fit(bar, DQN(), Counting())
    assert "160/160" in capsys.readouterr().out


def test_disabled_and_enabled_in_mid_run(capsys: pytest.CaptureFixture[str]) -> None:
    bar = StepProgressBar()

    def switch(step: int) -> None:
        {4: bar.disable, 8: bar.enable}.get(step, lambda: None)()

    fit(bar, DQN(switch), Counting(), limit_val_batches=0)
    counts = [line.split(" | ")[1].split("/")[0] for line in capsys.readouterr().out.splitlines()]
    # Start, the last line before it is disabled, the first one after it is enabled, the end.
    assert counts == ["0", "50", "90", "160"]


def test_only_rank_zero_prints(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "is_global_zero", property(lambda self: False))
    bar = StepProgressBar()
    fit(bar, DQN(lambda step: bar.enable()), Counting())
    assert capsys.readouterr().out == ""


def test_evaluation_alone_is_announced(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = quiet_trainer(callbacks=[StepProgressBar()], enable_progress_bar=True)
    trainer.validate(DQN(), datamodule=Counting(), verbose=False)
    assert capsys.readouterr().out == "DQN CartPole-v1 | evaluating\n"


# -- terminal output ---------------------------------------------------------------------------------------


def test_terminal_is_redrawn_five_times_a_second_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = pretend_terminal(monkeypatch)
    clock = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])

    def time_passes(step: int) -> None:
        clock[0] += 0.05

    fit(StepProgressBar(), DQN(time_passes), Counting(), limit_val_batches=0)
    # 16 batches in 0.8 s: at 0, 0.2, 0.4, 0.6 and 0.8 s; the last line and closing redraw once more each.
    assert terminal.getvalue().count("DQN CartPole-v1") in (6, 7)


def test_terminal_says_when_it_evaluates_and_keeps_prints_above(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = pretend_terminal(monkeypatch)
    fit(StepProgressBar(), DQN(lambda step: print(f"step {step} here") if step == 3 else None), Counting())
    text = ANSI.sub("", terminal.getvalue())
    assert "evaluating" in text
    assert "step 3 here\n" in text
    assert text.rstrip().splitlines()[-1].split("\r")[-1].startswith("DQN CartPole-v1")
    assert "160/160" in text


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_interrupted_run_gives_the_terminal_back(
    monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
) -> None:
    terminal = pretend_terminal(monkeypatch)
    stderr = sys.stderr
    # Lightning ignores further Ctrl-C from here on, for the rest of the process.
    monkeypatch.setattr(signal, "signal", lambda *args: signal.SIG_DFL)

    def interrupt(step: int) -> None:
        if step == 5:
            raise interruption

    with pytest.raises(SystemExit if interruption is KeyboardInterrupt else interruption):
        fit(StepProgressBar(), DQN(interrupt), Counting(), limit_val_batches=0)
    output = terminal.getvalue()
    assert output.index("\x1b[?25l") < output.index("\x1b[?25h")
    assert output.endswith("\n\x1b[?25h")
    assert "60/160" in output
    assert sys.stdout is terminal
    assert sys.stderr is stderr


# -- cost --------------------------------------------------------------------------------------------------


def test_a_batch_without_refresh_costs_a_comparison() -> None:
    bar = StepProgressBar()
    costs: list[float] = []

    def measure(step: int) -> None:
        if step == 3:
            batch_end = partial(
                bar.on_train_batch_end, bar.trainer, bar.trainer.lightning_module, None, None, 0
            )
            costs.extend(timeit.repeat(batch_end, number=100, repeat=20))

    fit(bar, DQN(measure), Counting(), limit_val_batches=0)

    assert min(costs) / 100 < 3e-6


def test_a_long_evaluation_is_told_of_while_it_lasts(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lit_gfs.callbacks.progress._PlainDisplay.seconds_between", 0.0)
    data = RolloutDataModule(
        "Acrobot-v1", num_envs=1, rollout_steps=8, total_steps=8, eval_episodes=1, eval_step_limit=20
    )
    options = {"enable_progress_bar": True, "callbacks": [StepProgressBar()]}

    make_trainer(**options).fit(PPO(data.env_spec), data)

    lines = [line for line in capsys.readouterr().out.splitlines() if "evaluating" in line]
    assert len(lines) >= 20
