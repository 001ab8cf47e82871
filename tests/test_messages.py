"""What a run shows besides its own lines: nothing of Lightning that a user cannot act on."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator

import pytest

from lit_gfs.main import main
from support.command_line import DQN

NOISE = re.compile(
    r"Be aware that when using `ckpt_path`|callbacks used to create the checkpoint|Tip: |litlogger|litmodels|"
    r"(GPU|TPU|IPU|HPU) available|CUDA device|Tensor Cores|`Trainer\.fit` stopped|many workers|num_workers|"
    r"Seed set to|logging interval|exists and is not empty|Initializing distributed"
)
LAST = "--ckpt_path=runs/dqn_CartPole-v1/version_0/last.ckpt"
LENGTHEN = ["--data.total_steps=800"]


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """Collect what Lightning logs, as far as it would be shown."""
    handler = _Records()
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    for logger in loggers:
        logger.addHandler(handler)
    yield handler.lines
    for logger in loggers:
        logger.removeHandler(handler)


@pytest.mark.usefixtures("empty_directory")
def test_no_command_shows_lines_of_lightning_that_a_user_cannot_act_on(
    lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    commands = [DQN, ["validate", LAST], ["test", LAST], ["fit", LAST, *LENGTHEN]]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for command in commands:
            main(command)

    shown = [*lines, *(str(warning.message) for warning in caught), *capsys.readouterr()]
    assert [line for line in shown if NOISE.search(line)] == []
    # What is worth knowing still arrives here.
    assert sum("Restored all states" in line for line in shown) == 1
