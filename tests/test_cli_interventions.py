"""Interventions under ``gfs`` and callbacks under ``trainer``, as configurations and options set them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_gfs.callbacks import GradientFlowMonitor, NaNGuard
from lit_gfs.cli import GradientFlowCLI
from lit_gfs.configuration.config_files import find_config
from lit_gfs.configuration.config_trust import trust
from lit_gfs.main import main
from support.command_line import DQN, BuiltOnly

trust(__name__)

QUICKSTART = str(find_config("quickstart"))

pytestmark = pytest.mark.usefixtures("empty_directory")


class Halve(Callback):
    """Halves every gradient: an intervention of somebody else."""

    def __init__(self, factor: float = 0.5, note: str = "") -> None:
        self.factor = factor
        self.note = note

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        for parameter in pl_module.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(self.factor)


class OneMore(BuiltOnly):
    interventions: ClassVar[dict[str, type[Callback]]] = {**GradientFlowCLI.interventions, "halve": Halve}


def interventions(*arguments: str) -> list[Callback]:
    cli = OneMore(["fit", *arguments, "--trainer.enable_progress_bar=false"])
    return [
        callback
        for callback in cli.trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(callback, tuple(OneMore.interventions.values()))
    ]


def write(name: str, **content: Any) -> str:
    Path(name).write_text(yaml.safe_dump(content))
    return name


def test_interventions_keep_their_order_whatever_the_order_of_keys() -> None:
    extra = write("extra.yaml", gfs={"halve": {"class_path": f"{__name__}.Halve"}})

    names = [type(c).__name__ for c in interventions("--config", extra, "--config", QUICKSTART)]

    assert names == ["GradientFlowMonitor", "NaNGuard", "Halve"]


def test_interventions_merge_across_configs_and_the_command_line_has_the_last_word() -> None:
    first = write(
        "first.yaml", gfs={"halve": {"class_path": f"{__name__}.Halve", "init_args": {"factor": 0.3}}}
    )
    second = write("second.yaml", gfs={"halve": {"init_args": {"note": "second"}}})

    (monitor, guard, halve) = interventions(
        *("--config", QUICKSTART, "--config", first, "--config", second),
        "--gfs.gradient_flow.init_args.every_n_steps=7",
        "--gfs.nan_guard.init_args.patience=9",
    )

    assert isinstance(halve, Halve)
    assert (halve.factor, halve.note) == (0.3, "second")
    assert monitor.every_n_steps == 7  # type: ignore[attr-defined]
    assert guard.patience == 9  # type: ignore[attr-defined]


@pytest.mark.parametrize("off", ["--gfs.gradient_flow=null", "--gfs.gradient_flow null"])
def test_null_switches_an_intervention_off(off: str) -> None:
    found = interventions("--config", QUICKSTART, *off.split(" "), "--gfs.nan_guard=null")

    assert found == []


def test_what_is_on_by_default_stays_as_it_was_saved(capsys: pytest.CaptureFixture[str]) -> None:
    for switch, expected in ((), ["NaNGuard"]), (["--gfs.nan_guard=null"], []):
        with pytest.raises(SystemExit):
            GradientFlowCLI(["fit", "--config", QUICKSTART, *switch, "--print_config"])
        Path("saved.yaml").write_text(capsys.readouterr().out)

        found = interventions("--config", "saved.yaml", "--gfs.gradient_flow=null")

        assert [type(callback).__name__ for callback in found] == expected


@pytest.mark.parametrize("on", ["{}", "true", "GradientFlowMonitor", "lit_gfs.callbacks.GradientFlowMonitor"])
def test_a_word_an_empty_value_or_a_class_switches_it_on(on: str) -> None:
    found = interventions("--config", QUICKSTART, "--gfs.gradient_flow=off", f"--gfs.gradient_flow={on}")

    assert [type(c).__name__ for c in found] == ["GradientFlowMonitor", "NaNGuard"]


def test_on_keeps_arguments_and_off_forgets_them() -> None:
    given = ["--config", QUICKSTART, "--gfs.gradient_flow.every_n_steps=7"]
    on, off = write("on.yaml", gfs={"gradient_flow": True}), write("off.yaml", **{"gfs.gradient_flow": False})

    def every(*arguments: str) -> int:
        return interventions(*given, *arguments)[0].every_n_steps  # type: ignore[attr-defined]

    assert every("--config", on) == 7
    assert every("--config", off, "--config", on) == GradientFlowMonitor().every_n_steps != 7


@pytest.mark.parametrize("group", [None, "off"])
def test_a_file_switches_all_off_and_what_follows_on(group: Any) -> None:
    nothing = ["--config", QUICKSTART, "--gfs.halve=true", "--config", write("off.yaml", gfs=group)]

    assert interventions(*nothing) == []
    (halve,) = interventions(*nothing, "--config", write("on.yaml", gfs={"halve": True}))
    assert isinstance(halve, Halve)
    (guard,) = interventions(*nothing, "--gfs.nan_guard=on")
    assert isinstance(guard, NaNGuard)


def test_callbacks_under_trainer_still_work() -> None:
    cli = OneMore(["fit", "--config", QUICKSTART, "--trainer.callbacks+=LearningRateMonitor"])

    assert "LearningRateMonitor" in [type(c).__name__ for c in cli.trainer.callbacks]  # type: ignore[attr-defined]


def test_depth_and_width_are_one_option_each() -> None:
    cli = OneMore(["fit", "--config", QUICKSTART, "--model.trunk.depth", "8", "--model.trunk.width", "192"])

    layers = [layer for layer in cli.model.trunk.modules() if isinstance(layer, torch.nn.Linear)]
    assert [layer.out_features for layer in layers] == [192] * 8


def test_interventions_come_before_the_users_own_callbacks() -> None:
    order: list[str] = []

    class Own(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, *arguments: Any) -> None:
            order[:] = [type(callback).__name__ for callback in trainer.callbacks]  # type: ignore[attr-defined]

    globals()["Own"] = Own
    main([*DQN, f"--trainer.callbacks={__name__}.Own"])

    assert order.index("GradientFlowMonitor") < order.index("Own")
