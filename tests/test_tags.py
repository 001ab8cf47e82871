"""The page about tags lists every tag that a run writes, and nothing that no run writes."""

from __future__ import annotations

import re
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_gfs.main import main
from lit_gfs.metrics.overview import OVERVIEW
from lit_gfs.runs.event_files import event_directory
from lit_gfs.runs.logged_scalars import logged_scalars

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "tags.md").read_text(encoding="utf-8")
LISTED = re.findall(r"^\| `(?!gfs\.)([^`]+)` \|", PAGE, re.MULTILINE)
MONITORS = [
    *("--gfs.gradient_flow={}", "--gfs.representation={}", "--gfs.curvature={}"),
    *("--gfs.gradient_flow.every_n_steps=4", "--gfs.representation.every_n_steps=4"),
    *("--gfs.curvature.every_n_steps=8", "--gfs.curvature.samples=2", "--gfs.curvature.iterations=2"),
    *("--gfs.path_init={}", "--gfs.layer_rates={}"),
    *("--gfs.isotropic_features={}", "--gfs.churn_penalty={}", "--gfs.feature_regularization={}"),
    *("--gfs.l2_init={}", "--gfs.parseval={}"),
    *("--gfs.temporal_clipping={}", "--gfs.gradient_normalization={}"),
    *(
        "--gfs.update_normalization={}",
        "--gfs.update_clipping={}",
        "--gfs.pull_to_init={}",
        "--gfs.shrink_and_perturb={}",
    ),
    *("--gfs.static_sparsity={}", "--gfs.weight_clipping={}", "--gfs.spectral_normalization={}"),
    *("--gfs.weight_projection={}", "--gfs.weights={}"),
    *("--gfs.redo={}", "--gfs.redo.every_n_steps=4", "--gfs.grama={}", "--gfs.grama.every_n_steps=6"),
    *("--gfs.layer_resets={}", "--gfs.layer_resets.every=8", "--gfs.adam_resets={}"),
    "--gfs.adaptive_gradient_clipping={}",
    *("--trainer.gradient_clip_val=null", "--trainer.log_every_n_steps=4"),
    *("--trainer.enable_progress_bar=false", "--model.trunk.depth=2", "--model.trunk.width=8"),
]
ROLLOUT = [
    *("--data.num_envs=2", "--data.rollout_steps=16", "--data.minibatches=2", "--data.epochs=2"),
    *("--data.total_steps=128", "--data.eval_every=64", "--data.eval_episodes=1"),
]
REPLAY = [
    *("--data.num_envs=2", "--data.total_steps=120", "--data.learning_starts=40"),
    *("--data.batch_size=8", "--data.eval_every=60", "--data.eval_episodes=1", "--data.eval_step_limit=20"),
]
RUNS = {
    "dqn": [
        *("--config=quickstart", *REPLAY),
        *("--data.priority_exponent=0.5", "--model.loss=hl_gauss", "--model.noisy=true"),
    ],
    "ppo": ["--config=ppo_cartpole", *ROLLOUT],
    "ppo_continuous": ["--config=ppo_cartpole", "--data.env_id=Pendulum-v1", *ROLLOUT],
    "pqn": ["--config=pqn_cartpole", *ROLLOUT],
    "sac": ["--config=sac_pendulum", *REPLAY],
    "td3": ["--config=td3_cartpole_swingup", *REPLAY],
    "classifier": [
        *("--config=label_shuffle", "--data.samples=64", "--data.batch_size=16"),
        *("--data.epochs=2", "--data.shuffle_every=1"),
    ],
}
ELSEWHERE = {
    "eval/human_normalized_score",  # Atari
    "eval_current/<score>",  # an average of the weights
    "schedule/learning_rate_<n>",  # two optimizers
    "loss/conservative",  # offline learning
    "collect/policy_lag",  # remote collectors
    "schedule/task",  # a stream of tasks
}
"""Tags that other tests see."""


def tags_of(run: Path) -> set[str]:
    """Return everything that a run wrote; names of layers and the ends of texts' tags are left out."""
    events = EventAccumulator(str(event_directory(run)))
    events.Reload()
    kinds = events.Tags()
    texts = {tag.removesuffix("/text_summary") for tag in kinds["tensors"] if tag.endswith("/text_summary")}
    return {*logged_scalars(event_directory(run)), *kinds["images"], *texts}


def as_listed(tag: str) -> str:
    """Return the row that stands for a tag."""
    patterns = {row: re.sub(r"<\w+>", r"[^/]+", re.escape(row).replace(r"\<", "<")) for row in LISTED}
    return next((row for row, pattern in patterns.items() if re.fullmatch(pattern, tag)), tag)


def test_the_page_has_the_tags_of_runs(tmp_path: Path) -> None:
    written = {}
    for name, options in RUNS.items():
        main(["fit", *options, *MONITORS, f"--run.root={tmp_path / name}"])
        (run,) = (tmp_path / name).glob("*/version_0")
        written[name] = {as_listed(tag) for tag in tags_of(run)}

    # Every tag of a run is listed, and every listed tag is written.
    assert {name: sorted(tags - set(LISTED)) for name, tags in written.items()} == {key: [] for key in RUNS}
    assert sorted(set(LISTED) - ELSEWHERE - set.union(*written.values())) == []
    # The overview comes first.
    for tags in written.values():
        groups = sorted({tag.partition("/")[0] for tag in tags if "/" in tag})
        assert groups[0] == "Overview"
    assert {tag for tags in written.values() for tag in tags if tag.startswith("Overview/")} == {
        *OVERVIEW.values()
    }
