from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from lit_gfs.runs.run_directory import BestCheckpoint, LastCheckpoint
from lit_gfs.utils.library_noise import LOG_LINES, silence_library_noise


@pytest.fixture(autouse=True)
def restored_filters() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.simplefilter("always")
        yield
    for name in LOG_LINES:
        logging.getLogger(name).filters.clear()


def is_shown(message: str, category: type[Warning], module: str) -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.warn_explicit(message, category, "file.py", 1, module=module)
    return len(caught) == 1


MISSING_CALLBACKS = (
    "Be aware that when using `ckpt_path`, callbacks used to create the checkpoint need to be provided during"
    " `Trainer` instantiation. Please add the following callbacks: {}."
)

RUN_CHECKPOINTS = ", ".join(
    f"\"{kind.__name__}{{'monitor': None}}\"" for kind in (BestCheckpoint, LastCheckpoint)
)

NOISE = [
    (
        "The number of training batches (5) is smaller than the logging interval Trainer(",
        UserWarning,
        "lightning.pytorch.loops.fit_loop",
    ),
    (
        "The 'train_dataloader' does not have many workers which may be a bottleneck. Consider increasing",
        UserWarning,
        "lightning.pytorch.trainer.connectors.data_connector",
    ),
    (
        "Checkpoint directory /home/me/runs/a exists and is not empty.",
        UserWarning,
        "lightning.pytorch.callbacks.model_checkpoint",
    ),
    (
        MISSING_CALLBACKS.format(f"[{RUN_CHECKPOINTS}]"),
        UserWarning,
        "lightning.pytorch.trainer.call",
    ),
    (
        MISSING_CALLBACKS.format("[\"ModelCheckpoint{'monitor': None}\"]"),
        UserWarning,
        "lightning.pytorch.trainer.call",
    ),
    (
        "The `srun` command is available on your system but is not used. HINT: If your intention is",
        UserWarning,
        "lightning.fabric.plugins.environments.slurm",
    ),
    (
        "`isinstance(treespec, LeafSpec)` is deprecated, use `isinstance(treespec, TreeSpec) and",
        FutureWarning,
        "lightning.pytorch.utilities._pytree",
    ),
    (
        "Creating RayWeightUpdater which inherits from WeightUpdaterBase is deprecated. Please use",
        DeprecationWarning,
        "abc",
    ),
    ("pkg_resources is deprecated as an API. See https", UserWarning, "tensorboard.default"),
]


@pytest.mark.parametrize(("message", "category", "module"), NOISE)
def test_noise_is_dropped_and_only_where_it_comes_from(
    message: str, category: type[Warning], module: str
) -> None:
    assert is_shown(message, category, module)
    silence_library_noise()
    assert not is_shown(message, category, module)
    assert is_shown(message, category, "my_project.train")


@pytest.mark.parametrize(
    ("message", "category", "module"),
    [
        ("loss is NaN", RuntimeWarning, "my_project.agent"),
        ("`old` is deprecated", DeprecationWarning, "my_project.agent"),
        (
            "Creating MyUpdater which inherits from WeightUpdaterBase is deprecated.",
            DeprecationWarning,
            "abc",
        ),
        ("NaN detected in gradients", UserWarning, "lightning.pytorch.trainer.trainer"),
        ("`isinstance(treespec, LeafSpec)` is deprecated", FutureWarning, "torch.utils._pytree"),
        (
            "GPU available but not used. You can set it by doing `Trainer(accelerator='gpu')`.",
            UserWarning,
            "lightning.pytorch.trainer.setup",
        ),
        (
            "You're resuming from a checkpoint that ended before the epoch ended and your",
            UserWarning,
            "lightning.pytorch.loops.training_epoch_loop",
        ),
        (
            MISSING_CALLBACKS.format("[\"ModelCheckpoint{'monitor': None}\", 'TemporalGradientClipping']"),
            UserWarning,
            "lightning.pytorch.trainer.call",
        ),
        (
            "\x1b[33mWARN: The environment CartPole-v0 is out of date.\x1b[0m",
            DeprecationWarning,
            "gymnasium.envs.registration",
        ),
    ],
)
def test_what_a_user_can_act_on_stays_visible(message: str, category: type[Warning], module: str) -> None:
    silence_library_noise()
    assert is_shown(message, category, module)


def lines_of(name: str, messages: list[str], caplog: pytest.LogCaptureFixture) -> list[str]:
    logger = logging.getLogger(name)
    caplog.clear()
    with caplog.at_level(logging.INFO, logger=name):
        logger.addHandler(caplog.handler)
        propagate, logger.propagate = logger.propagate, False
        for message in messages:
            logger.info(message)
        logger.removeHandler(caplog.handler)
        logger.propagate = propagate
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("name", "noise", "news"),
    [
        (
            "lightning.pytorch.utilities.rank_zero",
            [
                "💡 Tip: For seamless cloud logging",
                "GPU available: False, used: False",
                "TPU available: False",
                "`Trainer.fit` stopped: `max_epochs=5` reached.",
                "-----\ndistributed_backend=gloo\nAll distributed processes registered.",
            ],
            [
                "Restored all states from the checkpoint at a.ckpt",
                "`Trainer.fit` stopped: `max_steps=5` reached.",
            ],
        ),
        (
            "lightning.pytorch.accelerators.cuda",
            ["LOCAL_RANK: 0 - CUDA_VISIBLE_DEVICES: [0]"],
            ["LOCAL_RANK is wrong"],
        ),
        (
            "lightning.fabric.utilities.distributed",
            ["Initializing distributed: GLOBAL_RANK: 0, MEMBER: 1/2"],
            ["distributed is slow"],
        ),
        ("torchrl", ["Initialized LazyTensorStorage with torch.Size([9]) shape"], ["Worker 3 died"]),
    ],
)
def test_log_lines(name: str, noise: list[str], news: list[str], caplog: pytest.LogCaptureFixture) -> None:
    assert lines_of(name, noise + news, caplog) == noise + news
    silence_library_noise()
    silence_library_noise()
    assert lines_of(name, noise + news, caplog) == news
    assert len(logging.getLogger(name).filters) == 1


def test_calling_it_is_cheap() -> None:
    silence_library_noise()
    started = time.perf_counter()
    silence_library_noise()
    assert time.perf_counter() - started < 0.01


def test_a_real_run_writes_nothing_but_the_users_warnings(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent("""\
        import sys
        from lit_gfs.utils.library_noise import silence_library_noise

        silence_library_noise()
        assert not {"torch", "torchrl", "lightning"} & set(sys.modules)
        import warnings
        import torch
        import torchrl.collectors, torchrl.envs
        from lightning.pytorch import LightningModule, Trainer
        from lightning.pytorch.callbacks import ModelCheckpoint
        from lightning.pytorch.loggers import TensorBoardLogger
        from torchrl.data import LazyTensorStorage


        class Loader:
            def __len__(self):
                return 3

            def __iter__(self):
                return iter(torch.ones(3, 2, 4))


        class Module(LightningModule):
            def __init__(self):
                super().__init__()
                self.layer = torch.nn.Linear(4, 1)

            def training_step(self, batch, batch_idx):
                warnings.warn("loss is NaN", RuntimeWarning)
                warnings.warn("my old function", DeprecationWarning)
                return self.layer(batch).mean()

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.1)


        for _ in range(2):
            trainer = Trainer(
                accelerator="cpu",
                max_steps=3,
                max_epochs=-1,
                logger=TensorBoardLogger("."),
                callbacks=[ModelCheckpoint(dirpath="checkpoints")],
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(Module(), Loader())
        LazyTensorStorage(4).set(range(2), torch.zeros(2))
        """)
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-W", "default", str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""
    lines = [line for line in run.stderr.splitlines() if not line.startswith(" ")]
    assert [line.split(": ", 1)[1] for line in lines if "train.py" in line] == [
        "RuntimeWarning: loss is NaN",
        "DeprecationWarning: my old function",
    ]
    # Lightning tells why each of the two runs stopped, which is news.
    assert [line for line in lines if "train.py" not in line] == [
        "`Trainer.fit` stopped: `max_steps=3` reached."
    ] * 2
