"""A run that was stopped at a checkpoint and resumed ends as the one that was never stopped, bit for bit."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from lit_gfs.configuration.config_trust import trusting
from lit_gfs.main import main
from lit_gfs.utils.checksummed_files import read_checksummed, write_checksummed
from support.command_line import Finished, stopped
from support.comparison import replay_content, run_differences, scalars

NETWORK = ["--model.trunk.width=16", "--model.trunk.depth=2"]
QUIET = ["--trainer.enable_progress_bar=false", "--data.eval_episodes=2", "--trainer.log_every_n_steps=5"]
EVERYTHING = [
    "--config=recipes/gfs",
    *("--gfs.gradient_normalization.reference=spectral", "--gfs.gradient_normalization.momentum=0.9"),
    "--gfs.layer_rates=LayerwiseLearningRates",
    "--gfs.gradient_flow.every_n_steps=4",
    "--gfs.representation=RepresentationMonitor",
    "--gfs.representation.every_n_steps=6",
    "--gfs.curvature=CurvatureMonitor",
    "--gfs.curvature.every_n_steps=9",
    "--gfs.curvature.samples=2",
    "--gfs.curvature.iterations=2",
    *("--gfs.isotropic_features={}", "--gfs.feature_regularization={}", "--gfs.l2_init={}"),
    *("--gfs.parseval={}", "--gfs.churn_penalty={}", "--gfs.churn_penalty.warmup=9"),
]
ON_WEIGHTS = [
    *(
        "--gfs.update_normalization={}",
        "--gfs.update_clipping={}",
        "--gfs.pull_to_init={}",
        "--gfs.pull_to_init.strength=1.0",
    ),
    *("--gfs.shrink_and_perturb={}", "--gfs.shrink_and_perturb.every_n_steps=3"),
    *("--gfs.shrink_and_perturb.shrink=0.99", "--gfs.shrink_and_perturb.on_shift=true"),
    *("--gfs.static_sparsity={}", "--gfs.weight_clipping={}", "--gfs.spectral_normalization={}"),
    *("--gfs.weight_projection={}", "--gfs.weights={}", "--gfs.weights.every_n_steps=4"),
]
"""Everything that changes or measures weights."""
RESETS = [
    *("--gfs.redo={}", "--gfs.redo.every_n_steps=3", "--gfs.redo.tau=0.3"),
    *("--gfs.grama={}", "--gfs.grama.every_n_steps=5", "--gfs.grama.tau=0.2"),
    *("--gfs.layer_resets={}", "--gfs.layer_resets.every=70", "--gfs.layer_resets.layers=2"),
    *("--gfs.adam_resets={}", "--gfs.adam_resets.every_n_steps=9"),
    "--gfs.adaptive_gradient_clipping={}",
]
"""Everything that resets something, and the clipping beside it."""
ROLLOUTS = ["--data.num_envs=2", "--data.rollout_steps=16", "--data.epochs=2", "--data.minibatches=3"]
AGENTS = {
    "dqn": [
        "--config=quickstart",
        *("--data.num_envs=2", "--data.learning_starts=40", "--data.steps_per_update=4"),
        *("--data.total_steps=320", "--data.eval_every=100", "--data.buffer_size=150"),
        *("--data.batch_size=16", "--model.target_sync_every=60", "--model.anneal_learning_rate=true"),
    ],
    "ppo": ["--config=ppo_cartpole", *ROLLOUTS, "--data.total_steps=320", "--data.eval_every=100"],
    "pqn": [
        "--config=pqn_cartpole",
        *ROLLOUTS,
        *("--data.total_steps=320", "--data.eval_every=100", "--model.epsilon_decay_steps=200"),
        "--model.anneal_learning_rate=true",
    ],
}
CONTROL = [
    *("--data.num_envs=2", "--data.total_steps=320", "--data.eval_every=100", "--data.buffer_size=150"),
    *("--data.batch_size=16", "--data.learning_starts=40", "--data.eval_step_limit=20"),
    *("--model.normalize_observation=true", "--model.anneal_learning_rate=true"),
    "--model.critic_trunk={class_path: SimbaTrunk, init_args: {depth: 3, width: 8}}",
]
CONTINUOUS = {
    "sac": ["--config=sac_pendulum", *CONTROL, "--data.steps_per_update=4"],
    "td3": [
        *("--config=td3_cartpole_swingup", *CONTROL, "--data.steps_per_update=4"),
        "--model.policy_delay=3",
    ],
}
"""Agents of continuous actions, on environments of their own."""
CONTINUOUS_ENVS = {
    "Pendulum": ["--data.env_id=Pendulum-v1", "--data.env_options=null"],
    "swing-up": [
        "--data.env_id=dm_control/cartpole-swingup-v0",
        "--data.env_options={action_repeat: 50}",
    ],
}
ENVS = {
    "CartPole": ["--data.env_id=CartPole-v1"],
    "tensor CartPole": ["--data.env_id=tensor/CartPole-v1"],
    "tensor Seaquest": ["--data.env_id=tensor/MinAtar/Seaquest-v1", "--model.encoder=MinAtarCNN"],
    "MinAtar stream": [
        "--data.env_id=MinAtar/Stream-v0",
        "--data.env_options={games: [Breakout, Freeway], switch_every: 96}",
        "--data.eval_step_limit=20",  # an episode of Freeway has 2,500
        "--model.encoder=MinAtarCNN",
    ],
    "Acrobot": ["--data.env_id=Acrobot-v1"],
    "Breakout": [
        "--data.env_id=ALE/Breakout-v5",
        "--data.env_options={max_frames: 160}",
        "--model.encoder=NatureCNN",
    ],
    "cartpole-swingup": [
        "--data.env_id=dm_control/cartpole-swingup-v0",
        "--data.env_options={action_repeat: 50, values_per_actuator: 3}",
    ],
}


pytestmark = pytest.mark.usefixtures("empty_directory")


RUN = Path("runs/resumed/run")


def command(*arguments: str) -> list[str]:
    return ["fit", *arguments, *QUIET, "--run.root=runs", "--run.name=resumed", "--run.version=run"]


def fit(*arguments: str) -> Path:
    main(command(*arguments))
    return RUN


@pytest.fixture
def run_of(finished: Finished) -> Callable[[str], Path]:
    """Give the finished run of an agent."""

    def run_of(agent: str) -> Path:
        finished(command(*AGENTS[agent], *ENVS["CartPole"], *NETWORK))
        return RUN

    return run_of


def keep_every(steps: int) -> list[str]:
    """Keep a checkpoint every so many optimizer steps, besides those after evaluations."""
    return [
        "--trainer.callbacks+=ModelCheckpoint",
        f"--trainer.callbacks.every_n_train_steps={steps}",
        "--trainer.callbacks.save_top_k=-1",
        # Files of the steps after the one that a run goes back to are there.
        "--trainer.callbacks.enable_version_counter=false",
    ]


def assert_resumes(
    agent: str, env: str, *options: str, every: int = 7, points: int = 3, seed: int = 0
) -> None:
    """Fit to the end, go back to some of the checkpoints on the way, and compare what comes of them."""
    settings = [*(AGENTS | CONTINUOUS)[agent], *(ENVS | CONTINUOUS_ENVS)[env]]
    run = fit(*settings, *NETWORK, *options, *keep_every(every))
    whole = run.rename("whole")
    checkpoints = sorted(path.relative_to(whole) for path in whole.rglob("*.ckpt"))
    middle = [path for path in checkpoints if path.name.startswith("epoch")]
    for checkpoint in [Path("previous.ckpt"), *random.Random(seed).sample(middle, points - 1)]:
        assert_resumes_from(checkpoint, run, whole)


def assert_resumes_from(checkpoint: Path, run: Path, whole: Path) -> None:
    """Go back to a checkpoint, named by its place in a run's directory, and compare what comes of it."""
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(whole, run)
    main(["fit", "--ckpt_path", str(run / checkpoint)])
    assert run_differences(run, whole) == [], f"resumed from {checkpoint}"


@pytest.mark.parametrize("agent", list(AGENTS))
def test_a_resumed_run_ends_as_the_uninterrupted_one(agent: str) -> None:
    assert_resumes(agent, "CartPole", *EVERYTHING, points=2)


@pytest.mark.parametrize(
    ("agent", "env"),
    [("sac", "Pendulum"), ("td3", "Pendulum")]
    + [pytest.param(agent, "swing-up", marks=pytest.mark.slow) for agent in CONTINUOUS],
)
def test_a_run_with_continuous_actions_resumes(agent: str, env: str) -> None:
    assert_resumes(agent, env, *EVERYTHING, points=2)


def test_a_run_with_several_updates_per_step_resumes() -> None:
    """A checkpoint may lie between two updates of the same environment step."""
    several = ["--data.steps_per_update=1", "--data.updates_per_step=3", "--data.total_steps=80"]
    assert_resumes("sac", "Pendulum", *several, "--data.eval_every=30", every=7, points=2)


@pytest.mark.parametrize(
    ("agent", "env"),
    [
        ("pqn", "tensor CartPole"),
        ("dqn", "tensor CartPole"),
        pytest.param("pqn", "tensor Seaquest", marks=pytest.mark.slow),
    ],
)
def test_a_run_whose_environments_are_tensors_resumes(agent: str, env: str) -> None:
    assert_resumes(agent, env, points=2)


@pytest.mark.parametrize("agent", ["dqn", pytest.param("pqn", marks=pytest.mark.slow)])
def test_a_run_on_a_stream_of_tasks_resumes(agent: str) -> None:
    assert_resumes(agent, "MinAtar stream", *EVERYTHING, points=2)


@pytest.mark.parametrize("agent", ["dqn", pytest.param("pqn", marks=pytest.mark.slow)])
def test_muon_beside_adam_resumes(agent: str) -> None:
    """With recipes/gfs and everything else, and with the scheduler of both parts' rates."""
    muon = "{class_path: lit_gfs.optim.MuonWithAdam, init_args: {lr: 1.0e-3, other: RAdam}}"
    assert_resumes(agent, "CartPole", *EVERYTHING, f"--model.optimizer={muon}", points=2)


def test_a_run_whose_intervention_replaced_the_trainers_clipping_resumes() -> None:
    flags = ["--gfs.temporal_clipping=true", "--gfs.temporal_clipping.warmup=2"]
    assert_resumes("ppo", "CartPole", *flags, points=2)
    config = yaml.safe_load(Path("runs/resumed/run/config.yaml").read_text())
    assert config["trainer"]["gradient_clip_val"] is None
    assert config["gfs"]["temporal_clipping"]["init_args"]["warmup"] == 2


@pytest.mark.parametrize(
    "agent", ["dqn", *(pytest.param(other, marks=pytest.mark.slow) for other in ("ppo", "pqn"))]
)
def test_a_run_whose_weights_are_changed_after_each_step_resumes(agent: str) -> None:
    assert_resumes(agent, "CartPole", *EVERYTHING, *ON_WEIGHTS, points=2)


@pytest.mark.parametrize(
    "agent", ["dqn", *(pytest.param(other, marks=pytest.mark.slow) for other in ("ppo", "pqn"))]
)
def test_a_run_that_resets_units_layers_and_adam_resumes(agent: str) -> None:
    average = ["--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=0.8"]
    assert_resumes(agent, "CartPole", "--config=recipes/gfs", *RESETS, *average, points=2)


def test_a_run_with_an_averaged_target_resumes() -> None:
    assert_resumes("dqn", "CartPole", "--model.target_tau=0.05", points=2)


RAINBOW = [
    *("--model.double=true", "--model.dueling=true", "--model.noisy=true", "--model.loss=c51"),
    *("--model.epsilon_start=0", "--model.epsilon_end=0", "--data.n_step=3", "--data.priority_exponent=0.5"),
]


@pytest.mark.parametrize(
    "env",
    [
        *("CartPole", "tensor CartPole"),
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("Acrobot", "Breakout")),
    ],
)
def test_a_run_with_all_parts_of_rainbow_resumes(env: str) -> None:
    everything = EVERYTHING if env == "CartPole" else []
    assert_resumes("dqn", env, *everything, *RAINBOW, points=2)


def test_returns_of_other_lengths_are_refused_in_mid_run(
    run_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of("dqn")

    assert stopped(["fit", "--ckpt_path", str(run / "last.ckpt"), "--data.n_step=3"]) == 2
    assert "n_step is 3, but the checkpoint was written with n_step 1" in capsys.readouterr().err


def test_priorities_may_be_switched_on_and_off_in_mid_run(run_of: Callable[[str], Path]) -> None:
    run = run_of("dqn")
    last = str(run / "last.ckpt")

    main(["fit", "--ckpt_path", last, "--data.priority_exponent=0.5", "--data.total_steps=400"])
    saved = read_checksummed(run / "last.ckpt")["ReplayDataModule"]
    assert int((saved["priorities"][0]["priorities"] > 0).sum()) == 150
    main(["fit", "--ckpt_path", last, "--data.priority_exponent=null", "--data.total_steps=480"])
    assert "priorities" not in read_checksummed(run / "last.ckpt")["ReplayDataModule"]


@pytest.mark.parametrize("agent", ["ppo", "dqn"])
def test_a_run_with_averaged_weights_resumes(agent: str) -> None:
    average = ["--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=0.8"]
    normalized = ["--model.normalize_observation=true"] if agent == "ppo" else []
    assert_resumes(agent, "CartPole", "--config=recipes/gfs", *average, *normalized, points=2)
    logged = scalars(Path("runs/resumed/run"))
    assert len(logged["eval_current/episode_return"]) == len(logged["eval/episode_return"]) > 1


@pytest.mark.parametrize(
    ("agent", "env"), [("ppo", "CartPole"), pytest.param("dqn", "Breakout", marks=pytest.mark.slow)]
)
def test_a_run_whose_environments_step_ahead_resumes_too(agent: str, env: str) -> None:
    assert_resumes(agent, env, "--data.overlap=true", points=2)


@pytest.mark.slow
@pytest.mark.parametrize("env", list(ENVS))
@pytest.mark.parametrize("agent", list(AGENTS))
def test_every_agent_resumes_on_every_suite(agent: str, env: str) -> None:
    assert_resumes(agent, env, every=random.Random(agent + env).randint(2, 9), points=4, seed=1)


def test_a_run_whose_rollouts_are_left_early_resumes() -> None:
    short = ["--data.total_steps=64", "--data.eval_every=1000", "--model.target_kl=1e-5"]
    run = fit(*AGENTS["ppo"], *ENVS["CartPole"], *NETWORK, *short, *keep_every(1))
    whole = run.rename("whole")
    left_early = [path for path in sorted(whole.rglob("epoch*.ckpt")) if is_exhausted(path)]
    assert left_early
    for path in left_early:
        assert_resumes_from(path.relative_to(whole), run, whole)


def is_exhausted(checkpoint: Path) -> bool:
    """Say whether a checkpoint was written where the rest of a rollout is skipped."""
    (loader,) = read_checksummed(checkpoint)["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    return bool(loader.get("exhausted"))


def test_a_run_whose_environments_draw_from_shared_generators_resumes() -> None:
    with trusting(["support.drawing_envs"]):
        drawing = [
            "--data.env_id=support.drawing_envs:Drawing-v0",
            "--data.total_steps=64",
            "--data.eval_every=1000",
        ]
        run = fit(*AGENTS["ppo"], *NETWORK, *drawing, *keep_every(6))
        whole = run.rename("whole")
        (after_a_rollout,) = whole.rglob("*step=6.ckpt")
        assert_resumes_from(after_a_rollout.relative_to(whole), run, whole)


@pytest.mark.parametrize(
    ("agent", "evaluations"),
    [("dqn", "1"), ("ppo", "1"), ("ppo", "0"), pytest.param("dqn", "0", marks=pytest.mark.slow)],
)
def test_a_checkpoint_at_the_end_of_an_epoch_resumes_with_the_evaluation_that_is_due(
    agent: str, evaluations: str
) -> None:
    # 24 batches in an epoch of DQN, 6 in one of PPO, whose evaluations follow every fourth one.
    length = ["--data.total_steps=328"] if agent == "dqn" else []
    run = fit(
        *AGENTS[agent],
        *ENVS["CartPole"],
        *NETWORK,
        *length,
        *keep_every(12),
        f"--trainer.limit_val_batches={evaluations}",
    )
    whole = run.rename("whole")
    at_the_end = "step=72.ckpt" if agent == "dqn" else "step=60.ckpt"
    for name in ("step=24.ckpt", at_the_end):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(whole, run)
        (checkpoint,) = run.rglob(f"*{name}")
        main(["fit", "--ckpt_path", str(checkpoint)])
        assert run_differences(run, whole) == []
    # Once more, from what the resumed run wrote.
    main(["fit", "--ckpt_path", str(run / "previous.ckpt")])
    assert run_differences(run, whole) == []


def test_without_evaluations_there_is_a_checkpoint_too() -> None:
    run = fit(*AGENTS["ppo"], *ENVS["CartPole"], *NETWORK, "--trainer.limit_val_batches=0")
    whole = run.rename("whole")
    steps = [
        read_checksummed(whole / name)["RolloutDataModule"]["env_steps"]
        for name in ("previous.ckpt", "last.ckpt")
    ]
    assert steps == [224, 320]  # evaluations would have been due at 128, 224 and 320
    shutil.copytree(whole, run)

    main(["fit", "--ckpt_path", str(run / "previous.ckpt")])

    assert run_differences(run, whole) == []


def test_a_longer_run_goes_on_at_the_learning_rate_of_its_length(run_of: Callable[[str], Path]) -> None:
    run = run_of("ppo")
    main(["fit", "--ckpt_path", str(run / "last.ckpt"), "--data.total_steps=640"])

    rates = dict(scalars(run)["schedule/learning_rate"])
    # A rollout of 32 steps is learned from at the rate that the one before it ended with.
    assert rates[352] == pytest.approx(1e-3 * (1 - 320 / 640))
    assert rates[608] == pytest.approx(1e-3 * (1 - 576 / 640))


CHANGES = {
    "--data.num_envs=3": "num_envs is 3, but the checkpoint was written with num_envs 2; expected the same",
    "--data.buffer_size=99": "buffer_size is 99, but the checkpoint was written with buffer_size 150",
    "--data.env_id=CartPole-v0": "env_id is CartPole-v0, but the checkpoint was written with env_id",
}


def test_what_cannot_change_in_mid_run_is_refused_and_evaluation_does_not_mind(
    run_of: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = run_of("dqn")
    last = str(run / "last.ckpt")
    for option, words in CHANGES.items():
        assert stopped(["fit", "--ckpt_path", last, option]) == 2
        assert words in capsys.readouterr().err

    shutil.rmtree(run / "replay")
    main(["validate", "--ckpt_path", last, "--data.num_envs=3"])
    with pytest.raises(SystemExit):
        main(["fit", "--ckpt_path", last])
    assert "replay_0000" in capsys.readouterr().err


def test_fresh_experience_lets_a_run_go_on_with_other_settings(
    run_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of("dqn")
    last = str(run / "last.ckpt")
    shutil.rmtree(run / "replay")
    changes = ["--data.num_envs=3", "--data.buffer_size=99", "--data.total_steps=400"]

    main(["fit", "--ckpt_path", last, "--fresh_experience=true", *changes])

    assert read_checksummed(run / "last.ckpt")["ReplayDataModule"]["env_steps"] == 401  # 320 and 27 times 3
    assert len(replay_content(run / "last.ckpt")["action"]) == 81
    assert "fresh_experience: false" in (run / "config.yaml").read_text()
    assert "env_id is CartPole-v0" in stopped_by(
        capsys, ["fit", "--ckpt_path", last, "--fresh_experience=true", "--data.env_id=CartPole-v0"]
    )
    assert "expected --ckpt_path too" in stopped_by(
        capsys, ["fit", "--config=quickstart", "--fresh_experience=true"]
    )


def stopped_by(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """Return what a request that is refused says."""
    assert stopped(arguments) == 2
    return capsys.readouterr().err


def test_a_place_that_is_typed_beside_a_checkpoint_is_where_the_run_goes_on(
    run_of: Callable[[str], Path],
) -> None:
    run = run_of("dqn")
    before = sorted(run.rglob("*"))

    main(["fit", "--ckpt_path", str(run / "last.ckpt"), "--run.root=elsewhere", "--data.total_steps=400"])

    assert sorted(run.rglob("*")) == before
    other = Path("elsewhere/resumed/run")
    content = read_checksummed(other / "last.ckpt")
    assert content["ReplayDataModule"]["env_steps"] >= 400
    assert len(replay_content(other / "last.ckpt")["action"]) == 150


@pytest.mark.parametrize("agent", ["dqn", "ppo"])
def test_a_run_that_accumulates_gradients_resumes(agent: str) -> None:
    assert_resumes(agent, "CartPole", "--trainer.accumulate_grad_batches=2", every=3)


def test_the_best_checkpoint_survives_a_move_of_the_run(run_of: Callable[[str], Path]) -> None:
    run = run_of("ppo")
    content = read_checksummed(run / "last.ckpt")
    best = next(state for state in content["callbacks"].values() if state.get("monitor"))
    best |= {
        "best_model_score": torch.tensor(1e6),
        "kth_value": torch.tensor(1e6),
        "best_k_models": dict.fromkeys(best["best_k_models"], torch.tensor(1e6)),
    }
    write_checksummed(content, run / "last.ckpt")
    moved = run.parent.parent.rename("moved") / "resumed" / "run"
    kept = (moved / "best.ckpt").read_bytes()

    main(["fit", "--ckpt_path", str(moved / "last.ckpt"), "--data.total_steps=640"])

    assert (moved / "best.ckpt").read_bytes() == kept
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "name", ["best_model_path", "kth_best_model_path", "last_model_path", "best_k_models"]
)
def test_a_checkpoint_says_nothing_about_files_elsewhere(run_of: Callable[[str], Path], name: str) -> None:
    run = run_of("ppo")
    Path("precious.ckpt").write_text("mine")
    content = read_checksummed(run / "last.ckpt")
    outside = str(run.absolute() / "../../../precious.ckpt")
    for state in content["callbacks"].values():
        if "best_model_path" in state:
            state[name] = {outside: torch.tensor(-1e6)} if name == "best_k_models" else outside
            state["best_model_score"] = torch.tensor(-1e6)
            del state["dirpath"]
    write_checksummed(content, run / "last.ckpt")

    main(["fit", "--ckpt_path", str(run / "last.ckpt"), "--data.total_steps=640"])

    assert Path("precious.ckpt").read_text() == "mine"


def test_the_best_checkpoint_is_for_evaluating_and_gone_on_from_only_by_its_name(
    run_of: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = run_of("dqn")
    state = read_checksummed(run / "best.ckpt")["ReplayDataModule"]
    assert state["is_for_evaluating"]
    assert not {"experience", "replay"} & state.keys()
    for name in ("last.ckpt", "previous.ckpt"):
        (run / name).unlink()

    assert stopped(["fit", "--ckpt_path", str(run)]) == 2
    assert "best.ckpt is for evaluating" in capsys.readouterr().err
    main(["validate", "--ckpt_path", str(run)])

    with pytest.warns(
        UserWarning,
        match="no transitions are taken from the checkpoint, as it is for evaluating; the run first",
    ):
        main(["fit", "--ckpt_path", str(run / "best.ckpt"), "--data.total_steps=640"])
    assert read_checksummed(run / "last.ckpt")["ReplayDataModule"]["env_steps"] == 640


@pytest.mark.parametrize("change", ["--data.num_envs=3", "--data.buffer_size=99", "--model.trunk.width=8"])
def test_a_resume_that_is_refused_leaves_no_file(run_of: Callable[[str], Path], change: str) -> None:
    run = run_of("dqn")
    before = sorted(run.rglob("*"))

    assert stopped(["fit", "--ckpt_path", str(run / "last.ckpt"), change]) == 2
    assert sorted(run.rglob("*")) == before


def test_weights_alone_are_nothing_to_go_on_with(
    run_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of("ppo")
    content = read_checksummed(run / "last.ckpt")
    del content["optimizer_states"], content["loops"]
    write_checksummed(content, run / "weights.ckpt")

    with pytest.raises(SystemExit):
        main(["fit", "--ckpt_path", str(run / "weights.ckpt")])
    assert "weights.ckpt holds weights only: it lacks loops and optimizer_states" in capsys.readouterr().err
    main(["validate", "--ckpt_path", str(run / "weights.ckpt")])


def test_another_checkpoint_callback_leaves_the_runs_own_resumable() -> None:
    elsewhere = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.dirpath=ckpts"]
    steps = ["--trainer.callbacks.every_n_train_steps=20", "--trainer.callbacks.save_top_k=-1"]
    run = fit(*AGENTS["dqn"], *ENVS["CartPole"], *NETWORK, *elsewhere, *steps)
    assert (run / "replay").is_dir()
    assert not Path("ckpts/replay").exists()

    main(["fit", "--ckpt_path", str(run), "--data.total_steps=400"])

    assert read_checksummed(run / "last.ckpt")["ReplayDataModule"]["env_steps"] >= 400


def test_a_folder_with_a_configuration_of_the_users_own_is_no_run(run_of: Callable[[str], Path]) -> None:
    run = run_of("ppo")
    own = Path("project")
    (own / "saved").mkdir(parents=True)
    shutil.copy(run / "last.ckpt", own / "saved" / "kept.ckpt")
    config = "# mine\n" + (run / "config.yaml").read_text()
    (own / "config.yaml").write_text(config)

    resumed = ["--ckpt_path", str(own / "saved" / "kept.ckpt"), "--run.version=mine"]
    main(["fit", "--config", str(own / "config.yaml"), *resumed])

    assert (own / "config.yaml").read_text() == config
    assert sorted(path.name for path in own.iterdir()) == ["config.yaml", "saved"]
