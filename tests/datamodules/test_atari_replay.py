"""DQN's replay of a real game, checkpoints in the middle of games included."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_gfs.agents import DQN
from lit_gfs.datamodules import ReplayDataModule
from lit_gfs.envs.atari import AtariEnv


@pytest.mark.parametrize("cuts", [False, True])
def test_checkpoints_do_not_disturb_the_frames(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, cuts: bool
) -> None:
    if cuts:
        monkeypatch.setattr(AtariEnv, "is_repeatable", False)

    class Checkpoint(Callback):
        def on_train_batch_end(
            self, trainer: Trainer, pl_module: LightningModule, *arguments: object
        ) -> None:
            if trainer.global_step % 4 == 0:
                trainer.datamodule.state_dict()  # type: ignore[attr-defined]

    data = ReplayDataModule(
        "ALE/Breakout-v5",
        num_envs=2,
        total_steps=120,
        eval_every=200,
        buffer_size=200,
        batch_size=8,
        learning_starts=20,
        steps_per_update=4,
    )
    torch.manual_seed(0)
    trainer = make_trainer(callbacks=[Checkpoint()], limit_val_batches=0)

    trainer.fit(DQN(data.env_spec, clip_reward=True, end_of_life_is_terminal=True), data)

    assert trainer.global_step == 25
    loader = trainer.train_dataloader
    stored = loader.buffer[:]
    # Both games are cut at every checkpoint, or at none.
    assert int(stored["next", "truncated"].sum()) == (2 * 6 if cuts else 0)
