from __future__ import annotations

import warnings
from pathlib import Path

import lit_gfs
import lit_gfs.datamodules.base
from lit_gfs.utils.plain_warnings import plain_warnings
from support.processes import run


def formatted(filename: str) -> str:
    return warnings.formatwarning(UserWarning("one\ntwo"), UserWarning, filename, 3, line="")


def test_ours_are_one_line_and_others_stay_as_they_are() -> None:
    usual = formatted("/elsewhere/module.py")
    with plain_warnings():
        for module in (lit_gfs, lit_gfs.datamodules.base):
            assert formatted(str(module.__file__)) == "lit_gfs: warning: one two\n"
        assert formatted("/elsewhere/module.py") == usual
    assert "UserWarning" in formatted(str(lit_gfs.__file__))


def test_callbacks_that_only_the_checkpoint_has_are_named_in_one_line() -> None:
    lightning = (
        "Be aware that when using `ckpt_path`, callbacks used to create the checkpoint need to be provided "
        "during `Trainer` instantiation. Please add the following callbacks: "
        "[\"LastCheckpoint{'monitor': None}\", 'CurvatureMonitor']."
    )
    with plain_warnings():
        told = warnings.formatwarning(UserWarning(lightning), UserWarning, "call.py", 3, line="")

    assert told == (
        "lit_gfs: warning: the checkpoint also has the state of LastCheckpoint, CurvatureMonitor, "
        "which this run does without\n"
    )


def test_the_command_line_warns_in_one_line(tmp_path: Path) -> None:
    ended = run(
        [
            *("fit", "--config=ppo_cartpole", "--data.env_id=CliffWalking-v1", "--data.num_envs=2"),
            *("--data.rollout_steps=8", "--data.total_steps=16", "--data.eval_episodes=1"),
            *("--data.eval_step_limit=20", "--trainer.enable_progress_bar=false"),
        ],
        tmp_path,
    )

    assert ended.status == 0
    lines = ended.err.splitlines()
    assert [line.startswith("lit_gfs: warning: ") for line in lines] == [True, True]
    assert "no time limit of CliffWalking-v1 is known" in lines[0]
    assert "1 of 1 evaluation episodes of CliffWalking-v1 were cut after 20 steps" in lines[1]
