from __future__ import annotations

import io
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_gfs.callbacks.progress import StepProgressBar
from lit_gfs.callbacks.summary import RunSummary, print_summary, summary_rows
from lit_gfs.errors import OtherProcessFailed
from support.training import quiet_trainer


class Counting(LightningDataModule):
    """A datamodule that takes 100 environment steps a batch, for 4 batches an epoch."""

    env_id = "CartPole-v1"
    total_steps = 1200
    frame_skip = 4

    def __init__(self, env_steps: int = 0) -> None:
        super().__init__()
        self.env_steps = env_steps

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(4):
            self.env_steps += 100
            yield torch.ones(2, 3)

    def __len__(self) -> int:
        return 4

    def train_dataloader(self) -> Counting:
        return self

    def val_dataloader(self) -> list[Tensor]:
        return [torch.ones(1)]


class DQN(LightningModule):
    """Evaluates to 10, 30 and 20."""

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.error = error

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.error is not None and self.global_step == 9:
            raise self.error
        return self.layer(batch).mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        eval_return = [10.0, 30.0, 20.0][self.current_epoch]
        self.log("eval/episode_return", torch.tensor(eval_return), logger=False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(**options: Any) -> Trainer:
    defaults = {"max_epochs": 3, "callbacks": [RunSummary()], "log_every_n_steps": 1}
    return quiet_trainer(**{**defaults, **options})


def recorded(directory: Path, *callbacks: Any) -> dict[str, Any]:
    """Options of a trainer that logs to TensorBoard and keeps the best and the latest checkpoint."""
    logger = TensorBoardLogger(directory, name="dqn", version="first")
    best = ModelCheckpoint(dirpath=logger.log_dir, filename="best", monitor="eval/episode_return", mode="max")
    latest = ModelCheckpoint(dirpath=logger.log_dir, filename="last")
    return {"logger": logger, "callbacks": [RunSummary(), *callbacks, best, latest]}


def parse(output: str) -> dict[str, str]:
    """Rows of a plain summary."""
    return dict(line.strip().split("  ", 1) for line in output.splitlines() if line.startswith("  "))


def test_rows_of_a_full_run() -> None:
    rows = summary_rows(
        status="finished",
        steps=1_000_000,
        seconds=500.0,
        total_steps=1_000_000,
        frame_skip=4,
        last_eval_return=19.25,
        best_eval_return=20.5,
        best_checkpoints=["runs/a/best.ckpt"],
        last_checkpoints=["runs/a/last.ckpt"],
        run_directory="runs/a",
        tensorboard_root="my runs",
    )
    assert rows == [
        ("status", "finished"),
        ("environment steps", "1,000,000 (4,000,000 frames)"),
        ("wall time", "8:20 (2,000/s)"),
        ("evaluation return", "last 19.2, best 20.5"),
        ("best checkpoint", "runs/a/best.ckpt"),
        ("last checkpoint", "runs/a/last.ckpt"),
        ("run directory", "runs/a"),
        ("curves", "tensorboard --logdir 'my runs'"),
    ]


def test_rows_leave_out_what_is_unknown() -> None:
    rows = summary_rows(status="failed", steps=30, seconds=10.0, counts_env_steps=False, frame_skip=4)
    assert rows == [("status", "failed"), ("optimizer steps", "30"), ("wall time", "0:10 (3.0/s)")]


def test_rows_of_a_resumed_run_give_the_speed_of_this_session() -> None:
    rows = dict(summary_rows(status="", steps=700, start_steps=500, seconds=10.0, total_steps=1000))
    assert rows["environment steps"] == "700 of 1,000"
    assert rows["wall time"] == "0:10 (20/s, from step 500 on)"


def test_terminal_table_keeps_to_ninety_columns_and_cuts_no_path() -> None:
    path = "/".join(["a_long_directory_name"] * 8)
    for width in (60, 200):
        console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
        with console.capture() as capture:
            print_summary("DQN CartPole-v1", [("status", "finished"), ("run directory", path)], console)
        lines = capture.get().splitlines()
        assert max(len(line) for line in lines) <= min(width, 90)
        cells = [line.split("│")[2].strip() for line in lines if line.count("│") == 3]
        assert "".join(cells) == "finished" + path


def test_finished_run(empty_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(**recorded(Path("runs"))).fit(DQN(), datamodule=Counting())
    output = capsys.readouterr().out
    rows = parse(output)
    assert output.startswith("DQN CartPole-v1\n")
    assert rows["status"].strip() == "finished"
    assert rows["environment steps"].strip() == "1,200 (4,800 frames)"
    assert rows["evaluation return"].strip() == "last 20.0, best 30.0"
    assert rows["run directory"].strip() == "runs/dqn/first"
    assert rows["curves"].strip() == "tensorboard --logdir runs"
    best = torch.load(rows["best checkpoint"].strip())
    last = torch.load(rows["last checkpoint"].strip())
    assert (best["global_step"], last["global_step"]) == (8, 12)


@pytest.mark.parametrize(
    ("error", "raised", "status"),
    [
        (KeyboardInterrupt(), SystemExit, "interrupted at step 1,000"),
        (RuntimeError("boom"), RuntimeError, "failed at step 1,000 with RuntimeError"),
        (OtherProcessFailed(4), OtherProcessFailed, "failed at step 1,000 in another process"),
    ],
)
def test_stopped_run_says_where_and_what_is_left_of_it(
    empty_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    raised: type[BaseException],
    status: str,
) -> None:
    # Lightning ignores further Ctrl-C from here on, for the rest of the process.
    monkeypatch.setattr(signal, "signal", lambda *args: signal.SIG_DFL)
    with pytest.raises(raised):
        trainer(**recorded(Path("runs"))).fit(DQN(error), datamodule=Counting())
    rows = parse(capsys.readouterr().out)
    assert rows["status"].strip() == status
    assert rows["environment steps"].strip() == "1,000 of 1,200 (4,000 frames)"
    assert rows["evaluation return"].strip() == "last 30.0, best 30.0"
    assert torch.load(rows["last checkpoint"].strip())["global_step"] == 8


def test_stopped_run_ends_its_progress_bar_before_the_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = recorded(tmp_path, StepProgressBar())
    with pytest.raises(RuntimeError):
        trainer(enable_progress_bar=True, **options).fit(DQN(RuntimeError()), datamodule=Counting())
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[1] for line in lines if " | " in line] == [
        "0/1,200 (0.0%)",
        "1,000/1,200 (83.3%)",
    ]
    assert " | " in lines[1]
    assert lines[2] == "DQN CartPole-v1"
    assert len([line for line in lines if line.startswith("  status")]) == 1


def test_speed_of_a_resumed_run_counts_this_session(capsys: pytest.CaptureFixture[str]) -> None:
    trainer(max_epochs=1).fit(DQN(), datamodule=Counting(env_steps=800))
    assert "from step 800 on" in capsys.readouterr().out


def test_other_loggers_get_no_tensorboard_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(max_epochs=1, logger=CSVLogger(tmp_path, name="csv", version="0")).fit(
        DQN(), datamodule=Counting()
    )
    rows = parse(capsys.readouterr().out)
    assert rows["run directory"].strip() == str(tmp_path / "csv" / "0")
    assert "curves" not in rows


def test_last_path_of_a_monitoring_checkpoint_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = ModelCheckpoint(dirpath=tmp_path, monitor="eval/episode_return", mode="min", save_last=True)
    trainer(callbacks=[RunSummary(), checkpoint]).fit(DQN(), datamodule=Counting())
    rows = parse(capsys.readouterr().out)
    assert rows["evaluation return"].strip() == "last 20.0, best 10.0"
    assert rows["last checkpoint"].strip() == str(tmp_path / "last.ckpt")


def test_checkpoints_that_watch_no_metric_are_the_latest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(callbacks=[RunSummary(), ModelCheckpoint(dirpath=tmp_path)]).fit(DQN(), datamodule=Counting())
    rows = parse(capsys.readouterr().out)
    assert "best checkpoint" not in rows
    assert rows["evaluation return"].strip() == "last 20.0"
    assert torch.load(rows["last checkpoint"].strip())["global_step"] == 12


def test_works_without_a_datamodule_and_says_optimizer_steps(capsys: pytest.CaptureFixture[str]) -> None:
    trainer(max_epochs=2).fit(DQN(), DataLoader(torch.ones(8, 3), batch_size=2))  # type: ignore[arg-type]
    assert parse(capsys.readouterr().out)["optimizer steps"].strip() == "8"


def test_nothing_is_said_on_other_ranks_or_before_training_began(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Counting):
        def setup(self, stage: str) -> None:
            raise RuntimeError("no environment")

    with pytest.raises(RuntimeError, match="no environment"):
        trainer().fit(DQN(), datamodule=Broken())
    monkeypatch.setattr(Trainer, "is_global_zero", property(lambda self: False))
    trainer(max_epochs=1).fit(DQN(), datamodule=Counting())
    assert capsys.readouterr().out == ""
