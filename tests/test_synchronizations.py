"""The host waits for the accelerator where it must, and nowhere else.

Runs train on the stand-in for a GPU, which tells of each operator at which the host would wait for a GPU.
With ``ACCELERATOR=cuda`` they train on a GPU, and PyTorch raises an error where the host waits.
"""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from support import processes, standin
from support.accelerator import ACCELERATOR
from support.observed import Waits

DEVICE = "cuda" if ACCELERATOR == "cuda" else standin.NAME

IN_EVERY_STEP = "lit_gfs.collectors.direct.DirectCollector._fetch_action"
"""Hands the actions to the simulators."""
AFTER_EVERY_PASS = "lit_gfs.callbacks.nan_guard.nonfinite_weights"
"""Checks the weights before the next rollout is collected with them."""
WITH_PRIORITIES = "lit_gfs.buffers.prioritized.PrioritizedSampler._wait_for"
"""Takes the priorities of the last update, which a GPU has long sent by then."""
WITH_A_TARGET_KL = "lit_gfs.agents.ppo.PPO._is_beyond"
"""Decides after an update whether there is another one."""
WHERE_SOMETHING_IS_WRITTEN = {
    "lit_gfs.metrics.recorded_means.RecordedMeans.take": "means of the record",
    "lit_gfs.agents.ppo.PPO.schedule_values": "the standard deviation of continuous actions",
    "lit_gfs.steps.step_skipper.StepSkipper.read": "which steps were skipped",
    "lit_gfs.callbacks.gradient_intervention.GradientIntervention._write": "factors of an intervention",
    "lit_gfs.callbacks.weight_intervention.WeightIntervention._write": "what changes of weights return",
    "lit_gfs.callbacks.reset_intervention.ResetIntervention.fresh_weights": "an initialization",
    "lit_gfs.callbacks.gradient_flow.GradientFlowMonitor.on_train_batch_end": "norms and cosines",
    "lit_gfs.callbacks.weights.WeightMonitor._write": "norms and singular values of weights",
    "lit_gfs.callbacks.representation.RepresentationMonitor.on_before_optimizer_step": "singular values",
    "lit_gfs.callbacks.representation.RepresentationMonitor.on_train_batch_end": "what it measures",
    "lit_gfs.callbacks.curvature.CurvatureMonitor._measure": "eigenvalues",
    "lit_gfs.callbacks.curvature._side_effects_undone": "states of generators",
}

FIRST, LAST = 6, 14
"""The optimizer steps between which the host is watched; nothing is prepared any more by then."""

SMALL = ["--model.trunk.width=32", "--model.trunk.depth=3", "--trainer.enable_progress_bar=false"]
STEPS = ["--data.num_envs=2", "--data.total_steps=400", "--data.eval_every=400", "--data.eval_episodes=1"]
ROLLOUTS = [*STEPS, "--data.rollout_steps=16", "--data.epochs=2", "--data.minibatches=2"]
UPDATES_PER_ROLLOUT = 4
SWINGUP = "--data.env_options={action_repeat: 50}"
LEARNERS = {
    "dqn": [
        *("--config=quickstart", *STEPS, "--data.learning_starts=40", "--data.steps_per_update=4"),
        *("--data.batch_size=16", "--model.target_sync_every=20"),
        "--trainer.callbacks=lit_gfs.callbacks.EMAWeights",
    ],
    "rainbow": [
        *("--config=rainbow_cartpole", *STEPS, "--data.learning_starts=40", "--data.steps_per_update=4"),
        *("--data.batch_size=16", "--model.target_sync_every=20"),
    ],
    "pqn": [
        *("--config=pqn_minatar", *ROLLOUTS, "--data.env_options={max_episode_steps: 9}"),
        *("--gfs.gradient_normalization.strength=1.0", "--gfs.temporal_clipping.mode=percentile"),
    ],
    "ppo": [
        *("--config=ppo_cartpole", "--model.normalize_observation=true", *ROLLOUTS),
        *("--gfs.gradient_normalization.block=null", "--gfs.gradient_normalization.reference=running"),
    ],
    "continuous ppo": [
        *("--config=ppo_cartpole_swingup", *ROLLOUTS, SWINGUP),
        *("--gfs.gradient_normalization.block=null", "--gfs.gradient_normalization.reference=weight"),
        *("--gfs.temporal_clipping.scope=global", "--model.target_kl=1000"),
    ],
    "sac": [
        *("--config=sac_pendulum", *STEPS, "--data.learning_starts=40", "--data.steps_per_update=4"),
        *("--data.batch_size=16", "--model.normalize_observation=true", "--data.eval_step_limit=20"),
    ],
    "td3": [
        *("--config=td3_cartpole_swingup", *STEPS, "--data.learning_starts=40"),
        *("--data.steps_per_update=4", "--data.batch_size=16", SWINGUP),
    ],
    "pqn with kron": [
        *("--config=pqn_cartpole", *ROLLOUTS, "--config=recipes/multiskip_kron", "--data.overlap=true"),
        *("--trainer.gradient_clip_val=1.0", "--gfs.gradient_normalization=null"),
        *("--gfs.temporal_clipping=null", "--gfs.adaptive_gradient_clipping=null"),
    ],
}
INTERVENED = [
    *("--config=recipes/gfs", "--gfs.nan_guard=NaNGuard", "--gfs.layer_rates=LayerwiseLearningRates"),
    *(
        "--gfs.gradient_normalization=GradientNormalization",
        "--gfs.gradient_normalization.reference=spectral",
    ),
    *("--gfs.gradient_normalization.strength=1.0", "--gfs.gradient_normalization.block=48"),
    *("--gfs.update_clipping=UpdateClipping", "--gfs.pull_to_init=PullToInit"),
    *("--gfs.shrink_and_perturb=ShrinkAndPerturb", "--gfs.static_sparsity=StaticSparsity"),
    *("--gfs.weight_clipping=WeightClipping", "--gfs.spectral_normalization=SpectralNormalization"),
    *("--gfs.weight_projection=WeightProjection", "--gfs.adaptive_gradient_clipping={}"),
    *("--gfs.isotropic_features={}", "--gfs.feature_regularization={}", "--gfs.l2_init={}"),
    *("--gfs.parseval={}", "--gfs.churn_penalty={}", "--gfs.churn_penalty.warmup=2"),
]
"""Every intervention is on, with the guard."""
MONITORED = [
    "--trainer.log_every_n_steps=2",
    *("--gfs.gradient_flow=GradientFlowMonitor", "--gfs.gradient_flow.every_n_steps=3"),
    *("--gfs.representation=RepresentationMonitor", "--gfs.representation.every_n_steps=4"),
    *("--gfs.curvature=CurvatureMonitor", "--gfs.curvature.every_n_steps=5"),
    *("--gfs.curvature.samples=2", "--gfs.curvature.iterations=2"),
    *("--gfs.weights=WeightMonitor", "--gfs.weights.every_n_steps=5"),
    *("--gfs.redo=ReDo", "--gfs.redo.every_n_steps=4", "--gfs.grama=ReGraMa", "--gfs.grama.every_n_steps=5"),
    *("--gfs.layer_resets=LayerResets", "--gfs.layer_resets.every=30"),
]
UNMONITORED = ["--trainer.log_every_n_steps=0", "--gfs.gradient_flow=null"]


def watch(arguments: list[str], allowed: list[str], breaks: bool = False) -> None:
    """Fit, write where the host waited between two optimizer steps to ``waits.json``, and end the process."""
    if DEVICE == standin.NAME:
        standin.register()
    from lit_gfs.agents import DQN
    from lit_gfs.callbacks.metric_writer import MetricWriter
    from lit_gfs.main import main

    waits = Waits(allowed)
    began_at = 0
    after_batch, training_step = MetricWriter.on_train_batch_end, DQN.training_step

    def watched(self: MetricWriter, trainer: Any, pl_module: Any, *others: Any) -> None:
        nonlocal began_at
        after_batch(self, trainer, pl_module, *others)
        if trainer.global_step == FIRST:
            began_at = pl_module.env_steps
            waits.begin()
        if trainer.global_step == LAST:
            waits.end()
            answer = {"found": waits.found, "calls": waits.calls, "env_steps": pl_module.env_steps - began_at}
            Path("waits.json").write_text(json.dumps(answer))
            os._exit(0)

    def reading(self: DQN, *others: Any) -> torch.Tensor:
        loss = training_step(self, *others)
        assert loss.item() >= 0
        return loss

    with mock.patch.object(MetricWriter, "on_train_batch_end", watched), waits.installed():
        if breaks:
            DQN.training_step = reading  # type: ignore[method-assign]
        main(["fit", *arguments, f"--trainer.accelerator={DEVICE}"])


def watched(directory: Path, *arguments: Any) -> dict[str, Any]:
    ended = processes.run(["--help"], directory, partial(watch, *arguments), draws=True)
    assert ended.status == 0, ended.err
    return json.loads((directory / "waits.json").read_text())


def by_default(*names: str) -> list[Any]:
    """List all learners; others than these are for the slow tests: each is a process of some seconds."""
    return [each if each in names else pytest.param(each, marks=pytest.mark.slow) for each in LEARNERS]


@pytest.mark.parametrize("learner", by_default("dqn", "rainbow", "pqn", "ppo", "sac", "pqn with kron"))
def test_the_host_waits_for_actions_alone(learner: str, tmp_path: Path) -> None:
    arguments = [*LEARNERS[learner][:1], *INTERVENED, *LEARNERS[learner][1:], *UNMONITORED, *SMALL]

    allowed = [IN_EVERY_STEP, AFTER_EVERY_PASS, WITH_A_TARGET_KL, WITH_PRIORITIES]
    waits = watched(tmp_path, arguments, allowed)

    assert waits["found"] == []
    expected = {IN_EVERY_STEP: waits["env_steps"] // 2}  # two environments step together
    if learner == "rainbow":
        expected[WITH_PRIORITIES] = LAST - FIRST
    elif learner not in ("dqn", "sac", "td3"):
        expected[AFTER_EVERY_PASS] = (LAST - FIRST) // UPDATES_PER_ROLLOUT
    if learner == "continuous ppo":
        expected[WITH_A_TARGET_KL] = LAST - FIRST
    assert waits["calls"] == expected
    assert waits["env_steps"] > 0


# With those above, each learner is watched once.
@pytest.mark.parametrize("learner", by_default("continuous ppo", "td3"))
def test_monitors_wait_where_they_write(learner: str, tmp_path: Path) -> None:
    arguments = [*LEARNERS[learner][:1], *INTERVENED, *LEARNERS[learner][1:], *MONITORED, *SMALL]
    allowed = [IN_EVERY_STEP, AFTER_EVERY_PASS, WITH_A_TARGET_KL, *WHERE_SOMETHING_IS_WRITTEN]

    waits = watched(tmp_path, arguments, [*allowed, WITH_PRIORITIES])

    assert waits["found"] == []
    assert waits["calls"]["lit_gfs.metrics.recorded_means.RecordedMeans.take"] == (LAST - FIRST) // 2
    if learner == "continuous ppo":
        assert waits["calls"].keys() == set(allowed)


def test_a_number_that_is_read_in_every_update_is_found(tmp_path: Path) -> None:
    arguments = [*LEARNERS["dqn"], *UNMONITORED, *SMALL]

    if DEVICE == "cuda":
        with pytest.raises(AssertionError, match="called a synchronizing CUDA operation"):
            watched(tmp_path, arguments, [IN_EVERY_STEP], True)
        return
    waits = watched(tmp_path, arguments, [IN_EVERY_STEP], True)
    assert set(waits["found"]) == {"aten._local_scalar_dense.default in lit_gfs.optim.factory.step"}
    assert len(waits["found"]) == LAST - FIRST
