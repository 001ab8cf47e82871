"""Offline Q-learning: where transitions come from, how they are drawn, and that runs resume exactly."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from lit_gfs.agents import SAC
from lit_gfs.buffers.transitions import TransitionStorage
from lit_gfs.datamodules import OfflineDataModule
from lit_gfs.datamodules.offline import OfflineLoader
from lit_gfs.datamodules.replay import make_replay_buffer
from lit_gfs.datamodules.transition_sources import Transitions, load_transitions, read_run
from lit_gfs.envs import EnvSpec, make_env
from lit_gfs.errors import UserError
from lit_gfs.main import main
from support.command_line import Finished, stopped
from support.comparison import run_differences, scalars
from support.training import MakeTrainer

pytestmark = pytest.mark.usefixtures("empty_directory")

SMALL = ["--trainer.enable_progress_bar=false", "--model.trunk.width=16", "--data.eval_episodes=2"]
ONLINE = [
    *("--config=quickstart", "--data.num_envs=2", "--data.total_steps=300", "--data.learning_starts=40"),
    *("--data.batch_size=8", "--data.eval_every=100", "--data.buffer_size=120", *SMALL),
]
OFFLINE = [
    *("--config=dqn_cartpole_offline", "--data.source=runs/online/run", "--data.total_steps=40"),
    *("--data.eval_every=10", "--data.batch_size=16", "--model.target_sync_every=7", *SMALL),
    *("--trainer.log_every_n_steps=5", "--run.root=runs", "--run.name=offline", "--run.version=run"),
]


@pytest.fixture
def online(finished: Finished) -> Path:
    """A finished run that learned from replay."""
    finished(["fit", *ONLINE, "--run.root=runs", "--run.name=online", "--run.version=run"])
    return Path("runs/online/run")


def cartpole() -> EnvSpec:
    return EnvSpec.from_env(make_env("CartPole-v1"))


def numbered(first: int, count: int) -> TransitionStorage:
    """Return a memory of transitions whose rewards are whole numbers from ``first`` on."""
    storage = TransitionStorage(count)
    rollout = make_env("CartPole-v1", 1, seed=0).rollout(count, break_when_any_done=False)
    rollout["next", "reward"] = torch.arange(first, first + count, dtype=torch.float32).view(1, count, 1)
    storage.extend(rollout)
    return storage


# -- drawing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[40], [10, 25, 5]])
def test_every_transition_is_equally_likely(sizes: list[int]) -> None:
    firsts = np.cumsum([0, *sizes[:-1]])
    transitions = Transitions([numbered(int(first), size) for first, size in zip(firsts, sizes, strict=True)])
    assert len(transitions) == 40

    batch = transitions.sample(40_000, torch.Generator().manual_seed(0))

    counts = torch.bincount(batch["next", "reward"].flatten().long(), minlength=40)
    # Chi-squared with 39 degrees of freedom exceeds 72.06 with a probability of 0.001.
    assert ((counts - 1_000) ** 2 / 1_000).sum() < 72.06
    assert batch.shape == (40_000,)


def test_a_batch_depends_on_its_number_alone() -> None:
    transitions = Transitions([numbered(0, 30)])
    one, other = (OfflineLoader(transitions, 8, seed=3, batches_per_epoch=5, total_batches=9) for _ in "ab")
    first = [batch["next", "reward"] for batch in one if batch is not None]
    other.batches = 3
    torch.manual_seed(99)
    later = [batch["next", "reward"] for batch in other if batch is not None]
    assert torch.equal(torch.stack(first[3:]), torch.stack(later[:2]))
    assert not torch.equal(first[0], first[1])


def test_the_run_ends_after_its_batches() -> None:
    loader = OfflineLoader(Transitions([numbered(0, 30)]), 4, seed=0, batches_per_epoch=3, total_batches=5)
    passes = [[batch is not None for batch in loader] for _ in range(2)]
    assert passes == [[True, True, True], [True, True, False]]


def test_a_pass_that_became_shorter_is_over_after_a_resume() -> None:
    ends: list[int] = []
    transitions = Transitions([numbered(0, 30)])
    before = OfflineLoader(transitions, 4, seed=0, batches_per_epoch=10, total_batches=20)
    for _ in range(7):
        next(before)
    now = OfflineLoader(
        transitions,
        4,
        seed=0,
        batches_per_epoch=5,
        total_batches=20,
        on_last_batch=lambda: ends.append(now.batches),
    )
    now.batches = before.batches
    now.load_state_dict(before.state_dict())
    assert [len(list(now)) for _ in range(3)] == [0, 5, 5]
    assert ends == [12, 17]


# -- sources ---------------------------------------------------------------------------------------------


def test_a_runs_replay_is_read_whole(online: Path) -> None:
    transitions = load_transitions(str(online), cartpole())
    assert len(transitions) == 120
    batch = transitions.sample(500, torch.Generator().manual_seed(0))
    assert batch["observation"].shape == (500, 4)
    assert (batch["next", "reward"] == 1).all()
    assert 0 < batch["next", "terminated"].float().mean() < 0.5


def test_frame_stacks_are_rebuilt() -> None:
    main(
        [
            *("fit", "--config=dqn_breakout", "--data.num_envs=2", "--data.total_steps=60"),
            *(
                "--data.learning_starts=40",
                "--data.buffer_size=50",
                "--data.batch_size=4",
                "--data.eval_every=60",
            ),
            *(
                "--data.eval_episodes=1",
                "--data.env_options={max_frames: 80}",
                "--trainer.enable_progress_bar=false",
            ),
            *("--model.trunk.width=8", "--run.root=runs", "--run.name=atari", "--run.version=run"),
        ]
    )
    spec = EnvSpec.from_env(make_env("ALE/Breakout-v5"))
    batch = load_transitions("runs/atari/run/last.ckpt", spec).sample(16, torch.Generator().manual_seed(0))
    assert batch["observation"].shape == (16, 4, 84, 84)
    # The next stack is the present one, moved on by one frame.
    within = ~batch["next", "done"].squeeze(-1)
    assert torch.equal(batch["observation"][within][:, 1:], batch["next", "observation"][within][:, :-1])


def make_minari(monkeypatch: pytest.MonkeyPatch, env_id: str = "CartPole-v1", episodes: int = 3) -> list[Any]:
    """Store a data set ``lit/test-v0`` and return its episodes, as (observation, action, reward, ends)."""
    import minari
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(Path("minari").absolute()))
    env = gymnasium.make(env_id)
    seen, buffers = [], []
    for episode in range(episodes):
        observation, _ = env.reset(seed=episode)
        env.action_space.seed(episode)
        steps: list[Any] = []
        while not steps or not (steps[-1][4] or steps[-1][5]):
            action = env.action_space.sample()
            following, reward, terminated, truncated, _ = env.step(action)
            steps.append((observation, action, reward, following, terminated, truncated))
            observation = following
        columns = list(zip(*steps, strict=True))
        buffers.append(
            EpisodeBuffer(
                observations=np.stack([*columns[0], observation]),
                actions=np.stack(columns[1]),
                rewards=list(columns[2]),
                terminations=list(columns[4]),
                truncations=list(columns[5]),
            )
        )
        seen += steps
    minari.create_dataset_from_buffers("lit/test-v0", buffers, env=env)
    return seen


def test_a_minari_data_set_is_read_whole_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = make_minari(monkeypatch)
    transitions = load_transitions("minari:lit/test-v0", cartpole())
    assert len(transitions) == len(seen)
    (storage,) = transitions._storages
    read = storage.get(slice(None))
    expected = [np.stack([row[index] for row in seen]) for index in range(6)]
    actual = [
        read["observation"],
        read["action"],
        *(read["next", key] for key in ("reward", "observation", "terminated", "truncated")),
    ]
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours.squeeze(-1).numpy(), theirs, rtol=1e-6)
    assert read["next", "done"].sum() == 3
    assert (read["next", "done"] == read["next", "terminated"]).all()  # a pole that falls


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("minari:lit/tst-v0", "'lit/tst-v0', which is not on this machine; .*did you mean 'lit/test-v0'"),
        ("nowhere", "data.source 'nowhere'"),
    ],
)
def test_a_source_that_is_not_there(source: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_minari(monkeypatch, episodes=1)
    with pytest.raises(UserError, match=message):
        load_transitions(source, cartpole())


def test_a_minari_data_set_of_another_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    make_minari(monkeypatch, "Acrobot-v1", episodes=1)
    with pytest.raises(
        UserError, match=r"observations of \(6,\) and the actions Discrete\(3\); expected \(4,\)"
    ):
        load_transitions("minari:lit/test-v0", cartpole())


def test_transitions_of_another_environment_are_refused(
    online: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stopped(["fit", *OFFLINE, "--data.env_id=Acrobot-v1"]) == 2
    error = capsys.readouterr().err
    assert "data.env_id is Acrobot-v1, but the transitions of data.source are of CartPole-v1" in error


def test_a_run_that_learned_from_rollouts_is_no_source(capsys: pytest.CaptureFixture[str]) -> None:
    main(
        [
            *("fit", "--config=ppo_cartpole", "--data.num_envs=2", "--data.rollout_steps=8"),
            *("--data.total_steps=32", "--data.eval_every=32", "--data.minibatches=1", *SMALL),
            *("--run.root=runs", "--run.name=online", "--run.version=run"),
        ]
    )
    assert stopped(["fit", *OFFLINE]) == 2
    assert "has no transitions; expected last.ckpt of a run with" in capsys.readouterr().err


def test_agents_that_learn_from_rollouts_are_refused(
    online: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stopped(["fit", *OFFLINE, "--model=lit_gfs.agents.PQN", "--model.trunk.width=16"]) == 2
    assert "PQN learns from rollouts; expected an agent that learns from replay" in capsys.readouterr().err


# -- runs ------------------------------------------------------------------------------------------------


def test_a_run_takes_no_step_and_counts_batches(online: Path) -> None:
    main(["fit", *OFFLINE, "--gfs.representation=true"])
    logged = scalars(Path("runs/offline/run"))
    assert [steps for steps, _ in logged["eval/episode_return"]] == [10, 20, 30, 40]
    assert logged["loss/conservative"][0][0] == 5
    assert "train/episode_return" not in logged
    assert "representation/effective_rank" in logged  # monitors see observations of the data


def test_observations_are_standardized_by_all_transitions(
    finished: Finished, make_trainer: MakeTrainer
) -> None:
    short = ["--data.total_steps=100", "--data.learning_starts=50", "--data.eval_every=100", *SMALL]
    named = ["--run.root=runs", "--run.name=online", "--run.version=run"]
    finished(["fit", "--config=sac_pendulum", "--data.batch_size=8", *short, *named])
    last = Path("runs/online/run/last.ckpt")
    options: dict[str, Any] = {"batch_size": 8, "eval_every": 100, "eval_episodes": 1}

    data = OfflineDataModule("Pendulum-v1", source=str(last), total_steps=5, **options)
    agent = SAC(data.env_spec, normalize_observation=True)
    make_trainer(limit_val_batches=0).fit(agent, data)

    (memory,) = read_run(last, data.env_spec)
    observations = memory.get(slice(None))["observation"].double()
    assert agent.observation_norm is not None
    assert int(agent.observation_norm.count) == len(observations)
    torch.testing.assert_close(agent.observation_norm.mean, observations.mean(0))
    torch.testing.assert_close(agent.observation_norm.variance, observations.var(0, correction=0))


def test_a_resumed_run_ends_as_the_uninterrupted_one(online: Path) -> None:
    every = [
        *("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=7"),
        *("--trainer.callbacks.save_top_k=-1", "--trainer.callbacks.enable_version_counter=false"),
    ]
    main(["fit", *OFFLINE, *every, "--config=recipes/gfs", "--gfs.representation=true"])
    run = Path("runs/offline/run")
    whole = run.rename("whole")
    for checkpoint in [
        Path("previous.ckpt"),
        *(path.relative_to(whole) for path in whole.rglob("*step=2*.ckpt")),
    ]:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(whole, run)
        main(["fit", "--ckpt_path", str(run / checkpoint)])
        assert run_differences(run, whole) == [], checkpoint


@pytest.mark.slow
def test_it_learns_from_the_transitions_of_a_mediocre_policy() -> None:
    main(
        [
            *("fit", "--config=quickstart", "--data.total_steps=20_000", "--data.eval_every=20_000"),
            *(
                "--trainer.enable_progress_bar=false",
                "--run.root=runs",
                "--run.name=online",
                "--run.version=run",
            ),
        ]
    )
    source = [
        "--data.source=runs/online/run",
        "--data.total_steps=4_000",
        "--trainer.enable_progress_bar=false",
    ]
    main(["fit", "--config=dqn_cartpole_offline", *source, "--run.root=runs", "--run.name=offline"])
    (run,) = Path("runs/offline").iterdir()
    returns = [value for _, value in scalars(run)["eval/episode_return"]]
    assert max(returns) > 200  # a random policy reaches 22


def test_the_memory_of_a_source_has_room_for_its_transitions() -> None:
    spec = cartpole()
    storage: Any = make_replay_buffer(spec, 10, 1, 1).storage
    with pytest.raises(UserError, match="holds no transitions"):
        Transitions([storage])
