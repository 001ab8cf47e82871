"""The classifier by itself, under the callbacks, and on the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from torch.nn.functional import log_softmax

from lit_gfs.agents.classifier import Classifier
from lit_gfs.callbacks import (
    CurvatureMonitor,
    GradientFlowMonitor,
    GradientNormalization,
    PathSensitiveInit,
    RepresentationMonitor,
    TemporalGradientClipping,
)
from lit_gfs.datamodules import LabelShuffleDataModule
from lit_gfs.main import main
from lit_gfs.networks import PlainTrunk
from support.command_line import Finished
from support.event_files import read_scalars
from support.fakes import Records
from support.training import MakeTrainer

SMALL = [
    "--data.samples=200",
    "--data.batch_size=50",
    "--data.epochs=4",
    "--data.shuffle_every=2",
    "--data.eval_every=1",
    "--model.trunk.width=16",
    "--trainer.log_every_n_steps=2",
    "--trainer.enable_progress_bar=false",
]
FIT = ["fit", "--config", "label_shuffle", *SMALL]
RUN = Path("runs/classifier_digits/version_0")


pytestmark = pytest.mark.usefixtures("empty_directory")


def make_data(**arguments: Any) -> LabelShuffleDataModule:
    defaults: dict[str, Any] = {"samples": 200, "batch_size": 50, "shuffle_every": 2, "epochs": 4, "seed": 0}
    return LabelShuffleDataModule(**{**defaults, **arguments})


def tags(run: Path) -> dict[str, dict[int, float]]:
    return {tag: dict(points) for tag, points in read_scalars(run).items()}


def test_the_loss_is_the_mean_negative_log_likelihood_and_leaves_no_trace() -> None:
    data = make_data()
    model = Classifier(data.env_spec)
    images, labels = data.task.images[:30], data.task.true_labels[:30]

    loss = model.loss((images, labels))

    expected = -log_softmax(model(images), 1)[range(30), labels].mean()
    torch.testing.assert_close(loss, expected)
    assert not model.recorded


def test_accuracies_are_those_of_the_weights_at_that_step(make_trainer: MakeTrainer) -> None:
    data, records = make_data(), Records()
    model = Classifier(data.env_spec)
    accuracies: dict[int, float] = {}

    def accuracy(epoch: int) -> float:
        with torch.no_grad():
            predicted = model(data.task.images.to(model.device)).argmax(1).cpu()
        return (predicted == data.task.labels(epoch)).float().mean().item()

    fresh = accuracy(0)
    after_epoch = model.on_train_epoch_end

    def measure() -> None:
        accuracies[model.trainer.global_step] = accuracy(data.epoch)
        after_epoch()

    model.on_train_epoch_end = measure  # type: ignore[method-assign]
    make_trainer(logger=records, log_every_n_steps=4).fit(model, data)

    written = {step: row["eval/accuracy"] for step, row in records.rows.items() if "eval/accuracy" in row}
    assert written == pytest.approx({0: fresh, **accuracies})
    assert list(written) == [0, 4, 8, 12, 16]
    phases = {
        step: row["eval/phase_accuracy"] for step, row in records.rows.items() if "eval/phase_accuracy" in row
    }
    assert phases == pytest.approx({8: accuracies[8], 16: accuracies[16]})
    # Of the four batches of an epoch, before each of their steps.
    assert all(0 <= records.rows[step]["train/accuracy"] <= 1 for step in (4, 8, 12, 16))
    assert records.rows[16]["train/accuracy"] == model.latest_return


def test_it_works_under_all_six_callbacks(make_trainer: MakeTrainer) -> None:
    data, records = make_data(), Records()
    callbacks = [
        GradientFlowMonitor(every_n_steps=4, per_layer=True),
        PathSensitiveInit(),
        TemporalGradientClipping(per_layer=True),
        GradientNormalization(),
        RepresentationMonitor(every_n_steps=4, per_layer=True),
        CurvatureMonitor(every_n_steps=8, samples=2, iterations=2),
    ]

    make_trainer(logger=records, callbacks=callbacks, log_every_n_steps=4).fit(
        Classifier(data.env_spec), data
    )

    written = {tag for row in records.rows.values() for tag in row}
    layers = ["trunk.layer_01", "head"]
    assert written >= {
        *(f"gradient_flow/norm/{layer}" for layer in layers),
        *(f"intervention/temporal_clipping/clipped/{layer}" for layer in layers),
        "intervention/path_init/layers",
        "intervention/gradient_normalization/scale",
        "representation/dormant/trunk.layer_01",
        "representation/srank",
        "policy/churn",
        "curvature/hessian_trace",
    }
    assert max(records.rows) == 16  # optimizer steps
    # What the monitors measure is not what is reported: training saw 16 batches.
    assert records.rows[16]["train/accuracy"] <= 1


def test_the_network_of_the_agents_is_what_learns() -> None:
    data = make_data()
    model = Classifier(data.env_spec, trunk=lambda features: PlainTrunk(features, depth=5, width=32))

    linear = [layer for layer in model.trunk.modules() if isinstance(layer, torch.nn.Linear)]
    assert [layer.out_features for layer in linear] == [32] * 5
    assert list(model.named_layers().values()) == [*linear, model.head]
    assert list(model.named_layers()) == [*(f"trunk.layer_0{number}" for number in range(1, 6)), "head"]
    assert model.trunk is model.network.trunk
    assert model(model.example_input_array).shape == (1, 10)


# -- the pathology ---------------------------------------------------------------------------------------


def phase_accuracies(make_trainer: MakeTrainer, *callbacks: Callback) -> list[float]:
    seed_everything(0)
    data = make_data(samples=128, batch_size=64, shuffle_every=60, epochs=120, eval_every=60)
    records = Records()
    model = Classifier(data.env_spec, trunk=lambda features: PlainTrunk(features, depth=16, width=32))
    make_trainer(logger=records, callbacks=list(callbacks)).fit(model, data)
    return [row["eval/phase_accuracy"] for row in records.rows.values() if "eval/phase_accuracy" in row]


def test_a_deep_plain_network_cannot_learn_new_labels_and_interventions_mend_it(
    make_trainer: MakeTrainer,
) -> None:
    baseline = phase_accuracies(make_trainer)
    stabilized = phase_accuracies(
        make_trainer, PathSensitiveInit(mirrored=True), TemporalGradientClipping(), GradientNormalization()
    )

    (baseline_first, baseline_second), (stabilized_first, stabilized_second) = baseline, stabilized
    assert min(baseline_first, stabilized_first) > 0.95
    assert baseline_second < 0.6
    assert stabilized_second > 0.85


# -- the command line ------------------------------------------------------------------------------------


def test_a_run_counts_optimizer_steps_and_is_judged_by_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    main([*FIT[:-1], "--trainer.enable_progress_bar=true"])

    scalars = tags(RUN)
    assert set(scalars) >= {"loss/cross_entropy", "train/accuracy", "schedule/learning_rate"}
    assert list(scalars["eval/accuracy"]) == [0, 4, 8, 12, 16]
    assert list(scalars["eval/phase_accuracy"]) == [8, 16]
    assert "time/frames" not in scalars
    best = torch.load(RUN / "best.ckpt", weights_only=True)
    assert best["global_step"] == max(
        list(scalars["eval/accuracy"])[1:], key=lambda step: scalars["eval/accuracy"][step]
    )
    out = capsys.readouterr().out
    assert "Classifier digits | 16/16 (100.0%)" in out
    assert re.search(r"optimizer steps +16\n", out)
    assert f"last {scalars['eval/accuracy'][16]:.2f}, best" in out
    assert "evaluation accuracy" in out


def test_validate_and_test_use_the_labels_of_the_checkpoint(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(FIT)
    expected = tags(RUN)["eval/accuracy"][16]

    for subcommand in ("validate", "test"):
        capsys.readouterr()
        main([subcommand, "--ckpt_path", str(RUN / "last.ckpt")])
        assert f"eval/accuracy        {expected:.2f}\n" in capsys.readouterr().out


def test_a_run_resumes_and_is_prolonged(finished: Finished) -> None:
    finished(FIT)
    main([*FIT, "--data.epochs=8", "--run.version=whole"])
    main(["fit", "--ckpt_path", str(RUN / "last.ckpt"), "--data.epochs=8"])

    resumed, whole = (torch.load(run / "last.ckpt", weights_only=True) for run in (RUN, RUN.parent / "whole"))
    assert resumed["global_step"] == 32
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name
    accuracy, prolonged = tags(RUN.parent / "whole")["eval/accuracy"], tags(RUN)["eval/accuracy"]
    assert prolonged == accuracy


def test_a_run_that_is_resumed_at_its_end_takes_no_step(finished: Finished) -> None:
    finished(FIT)
    main(["fit", "--ckpt_path", str(RUN / "last.ckpt")])

    assert torch.load(RUN / "last.ckpt", weights_only=True)["global_step"] == 16


@pytest.mark.parametrize("recipe", ["gfs", "multiskip_kron"])
def test_a_run_under_a_recipe_resumes_bit_for_bit(recipe: str) -> None:
    arguments = [*FIT, "--config", f"recipes/{recipe}"]
    main([*arguments, "--data.epochs=8", "--run.version=whole"])
    main(arguments)
    main(["fit", "--ckpt_path", str(RUN / "last.ckpt"), "--data.epochs=8"])

    resumed, whole = (
        torch.load(run / "last.ckpt", weights_only=True)["state_dict"] for run in (RUN, RUN.parent / "whole")
    )
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
