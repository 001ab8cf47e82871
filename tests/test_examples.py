"""The programs and the notebook in ``examples/`` run, made short."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import pytest
from torch.optim import Adam

from lit_gfs.agents import DQN, PPO
from lit_gfs.callbacks import TemporalGradientClipping
from support.event_files import read_scalars

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))
NOTEBOOK = EXAMPLES / "first_steps.ipynb"

pytestmark = pytest.mark.usefixtures("empty_directory")


@pytest.fixture(autouse=True)
def _seed_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    # seed_everything sets it for the process.
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")


def program(name: str) -> SimpleNamespace:
    """Import an example."""
    return SimpleNamespace(**runpy.run_path(str(EXAMPLES / f"{name}.py")))


def cells(kind: str) -> list[dict[str, Any]]:
    """Return the cells of the notebook."""
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


def test_every_program_is_tested_here_and_says_what_it_shows() -> None:
    tested = Path(__file__).read_text()

    for path in PROGRAMS:
        assert f'program("{path.stem}")' in tested, path
        assert len(runpy.run_path(str(path))["__doc__"].splitlines()) > 5, path


@pytest.mark.parametrize("plain", [[], ["--plain"]], ids=["gfs", "plain"])
def test_a_loop_in_plain_torch_takes_the_interventions(
    plain: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    returns = program("plain_torch_dqn").main(["--steps=1200", *plain])

    assert len(returns) > 10
    assert "step 1,200: mean return of the last 10 episodes" in capsys.readouterr().out


def test_callbacks_work_around_a_lightning_module_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    agent = program("own_lightning_dqn").main(["--steps=500"])

    scalars = read_scalars(Path("lightning_logs/version_0"))
    assert [step for step, _ in scalars["gradient_flow/global_norm"]][-1] > 500
    assert scalars["intervention/path_init/mirrored_layers"][0][1] == 7
    assert "intervention/temporal_clipping/clipped_layers" in scalars
    # The target changed before update 101 of 125: five gradients remained in memory.
    clipping = next(each for each in agent.trainer.callbacks if isinstance(each, TemporalGradientClipping))
    assert clipping._parts[0].algorithm.state["memory"].tolist() == [30] * 8
    assert "mean return of the last 10 episodes" in capsys.readouterr().out


def test_hyperparameters_of_stable_baselines3_give_the_same_dqn() -> None:
    agent, data, trainer = program("from_stable_baselines3").main(["--steps=1300"])

    assert isinstance(agent, DQN)
    assert isinstance(agent.optimizers(use_pl_optimizer=False), Adam)
    assert (agent.target_sync_every, agent.epsilon_decay_steps, agent.epsilon_end) == (10, 208, 0.04)
    assert (data.steps_per_update, data.learning_starts, data.batch_size) == (2, 1_000, 64)
    assert trainer == {"gradient_clip_val": 10.0}
    assert agent.trunk.out_features == 256
    assert Path("runs/dqn_CartPole-v1/version_0/best.ckpt").is_file()


def test_hyperparameters_of_stable_baselines3_give_the_same_ppo() -> None:
    agent, data, _ = program("from_stable_baselines3").main(
        ["--agent=ppo", "--steps=512", "--recipe=gfs_ppo"]
    )

    assert isinstance(agent, PPO)
    # 8 environments of 32 steps in minibatches of 256: one a pass.
    assert (data.num_envs, data.rollout_steps, data.epochs, data.minibatches) == (8, 32, 20, 1)
    assert (agent.value_coefficient, agent.lambda_, agent.gamma) == (1.0, 0.8, 0.98)
    assert agent.trainer.gradient_clip_val is None
    assert data.env_steps == 512


def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    matplotlib.use("Agg")
    scope: dict[str, Any] = {"__name__": "__main__"}
    source = ["".join(cell["source"]) for cell in cells("code")]
    assert "TOTAL_STEPS = 20_000\n" in source[0]

    for text in source:
        short = text.replace("TOTAL_STEPS = 20_000\n", "TOTAL_STEPS = 2_000\n")
        exec(compile(short, str(NOTEBOOK), "exec"), scope)

    scope["plt"].close("all")
    assert "return of one episode:" in capsys.readouterr().out
    assert [each.step for each in scope["evaluations"]][-1] == 2_000
    assert len(scope["evaluations"]) >= 3


def test_the_notebook_holds_no_outputs() -> None:
    assert [cell for cell in cells("code") if cell["outputs"] or cell["execution_count"] is not None] == []
    assert len(cells("markdown")) >= 4
