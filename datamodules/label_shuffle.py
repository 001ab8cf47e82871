"""Supervised learning with shuffled labels, which shows plasticity loss in seconds without an environment."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lit_gfs.datamodules.image_sets import CLASSES, load_images
from lit_gfs.datamodules.shuffled_labels import (
    Batch,
    EpochLoader,
    EvaluationLoader,
    PermutedPixels,
    ShuffledLabels,
)
from lit_gfs.envs import EnvSpec
from lit_gfs.errors import UserError, require_one_of, require_positive
from lit_gfs.runs.trainer_checks import (
    require_evaluation_between_epochs,
    require_precision,
    require_whole_passes,
)
from lit_gfs.steps.objective_shift import announce_objective_shift
from lit_gfs.utils.given_arguments import RemembersArguments
from lit_gfs.utils.ranks import gather
from lit_gfs.utils.seeding import generator_states, run_seed, set_generator_states
from lit_gfs.utils.transfers import send

_TASKS = {"labels": ShuffledLabels, "pixels": PermutedPixels}
_SHIFTS = {"labels": "label_shuffle", "pixels": "pixel_permutation"}
"""Names of the objective shift."""


class LabelShuffleDataModule(LightningDataModule, RemembersArguments):
    """Images whose labels are shuffled every few epochs; the run ends after ``epochs`` epochs.

    This is the non-stationary supervised experiment of Castanyer et al. (2025, arXiv 2506.15544). After a
    shuffle the labels are noise, so the accuracy on the training images measures the network's remaining
    ability to learn. A shuffle does not change the number of images per class. With ``changes="pixels"``,
    labels stay true, and the pixels of all images change places alike.

    Each shuffle is announced as the objective shift ``label_shuffle`` or ``pixel_permutation`` before the
    first step on the new task. The evaluation uses the training images with the current labels and pixels. It
    runs every ``eval_every`` epochs, in the last epoch before a shuffle, and at the end.

    Args:
        dataset: ``digits`` (1,797 images of 8 x 8, part of scikit-learn) or ``cifar10`` (50,000 of 32 x 32).
        root: Folder with CIFAR-10's binary files, ``data_batch_1.bin`` to ``data_batch_5.bin``. The files are
            not downloaded.
        samples: Number of images, from the first on; ``null`` uses all.
        batch_size: Images per batch in each process; an epoch drops an incomplete last batch.
        changes: What a shuffle changes: ``labels``, or ``pixels``, which change places in all images alike
            while the labels stay true (permuted digits).
        shuffle_every: Epochs between two shuffles; ``null`` never shuffles.
        starts_true: Whether the first phase has the true labels and pixels. Otherwise the first phase is the
            reference for later ones, with a fresh network.
        epochs: Number of epochs of the run.
        eval_every: Epochs between evaluations.
        seed: Seed of the labels and of the order of images; ``null`` uses that of ``seed_everything``.

    Raises:
        UserError: If a count is out of range, or the images cannot be read.
    """

    def __init__(
        self,
        dataset: Literal["digits", "cifar10"] = "digits",
        root: str = "data/cifar-10-batches-bin",
        samples: int | None = None,
        batch_size: int = 128,
        changes: Literal["labels", "pixels"] = "labels",
        shuffle_every: int | None = 20,
        starts_true: bool = True,
        epochs: int = 80,
        eval_every: int = 1,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        require_positive(
            batch_size=batch_size,
            epochs=epochs,
            eval_every=eval_every,
            samples=samples,
            shuffle_every=shuffle_every,
        )
        self.dataset = dataset
        self.batch_size = batch_size
        self.epochs = epochs
        self.eval_every = eval_every
        seed = run_seed(seed)
        images, labels = load_images(dataset, root, samples)
        require_one_of(_TASKS, changes=changes)
        self.changes = changes
        self.task = _TASKS[changes](images, labels, shuffle_every, seed, starts_true)
        self._loader = self._make_loader()
        self._restored_generators: dict[str, Any] = {}

    @property
    def env_id(self) -> str:
        """Name of the data set, in place of an environment's id."""
        return self.dataset

    @property
    def env_spec(self) -> EnvSpec:
        """Description of the task as an environment with images as observations and classes as actions."""
        images = self.task.images
        return EnvSpec(
            env_id=self.dataset,
            observation_shape=tuple(images.shape[1:]),
            observation_dtype=str(images.dtype).removeprefix("torch."),
            num_actions=CLASSES,
            action_low=None,
            action_high=None,
            frame_skip=1,
        )

    @property
    def epoch(self) -> int:
        """The current epoch, from 0."""
        return self._loader.epoch

    def ends_phase(self) -> bool:
        """Return whether the labels change or the run ends after this epoch."""
        return self.epoch + 1 == self.epochs or self.task.is_shuffled_before(self.epoch + 1)

    def probe_images(self) -> Tensor:
        """Return the first 256 images as they are now, ``(256, *shape)``, or all if there are fewer."""
        return self.task.select(slice(256), self.epoch)

    # -- Hooks of Lightning ------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check the model and the Trainer, and start at the first epoch unless the Trainer continues a fit.

        Raises:
            UserError: If the model does not learn from labels, or the Trainer's limits or precision are not
                supported.
        """
        trainer = cast(Any, self.trainer)
        name = type(trainer.lightning_module).__name__
        if hasattr(trainer.lightning_module, "collection_policy"):
            raise UserError(
                f"{name} learns from environments; expected data RolloutDataModule or ReplayDataModule, or "
                "model lit_gfs.agents.classifier.Classifier"
            )
        require_precision(trainer)
        if stage != "fit":
            return
        require_evaluation_between_epochs(trainer)
        require_whole_passes(trainer, "labels are shuffled between whole epochs")
        if trainer.current_epoch == 0:
            self._loader = self._make_loader(trainer.global_rank, trainer.world_size)
        if trainer.max_epochs in (None, -1):
            trainer.fit_loop.max_epochs = self.epochs

    def train_dataloader(self) -> EpochLoader:
        """Return the loader of training batches, one epoch per pass."""
        return self._loader

    def val_dataloader(self) -> EvaluationLoader:
        """Return the loader of all images with the labels of the current epoch."""
        return EvaluationLoader(self.task, lambda: self.epoch)

    def test_dataloader(self) -> EvaluationLoader:
        """Return the same loader as for validation."""
        return self.val_dataloader()

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Send images and labels to another device, without waiting for the copy."""
        images, labels = batch
        return send(images, device), send(labels, device)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the training loader, which also determines the labels of an evaluation.

        The generators of each process are with it, because dropout draws from them.
        """
        device = cast(Any, self.trainer).lightning_module.device
        return {**self._loader.state_dict(), "generators": gather(generator_states(device))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue in the saved epoch, with the saved generators from the next batch on.

        Raises:
            UserError: If fitting resumes in another number of processes.
        """
        trainer = cast(Any, self.trainer)
        if trainer.state.fn == TrainerFn.FITTING and "generators" in state_dict:
            processes = len(state_dict["generators"])
            if processes != trainer.world_size:
                raise UserError(
                    f"trainer.world_size is {trainer.world_size}, but the checkpoint was written with "
                    f"trainer.world_size {processes}; expected the same"
                )
            self._restored_generators = state_dict["generators"][trainer.global_rank]
        self._loader.load_state_dict(state_dict)

    def _make_loader(self, rank: int = 0, world_size: int = 1) -> EpochLoader:
        loader = EpochLoader(
            self.task,
            self.batch_size,
            rank,
            world_size,
            self._announce,
            self._schedule_validation,
            self._restore_generators,
        )
        if not len(loader):
            processes = f" in each of {world_size} processes" if world_size > 1 else ""
            raise UserError(
                f"batch_size is {self.batch_size}{processes}; expected at most the {len(self.task)} images"
            )
        return loader

    def _restore_generators(self) -> None:
        """Go on with the draws of a checkpoint, before the first batch after it."""
        if self._restored_generators:
            device = cast(Any, self.trainer).lightning_module.device
            set_generator_states(self._restored_generators, device)
            self._restored_generators = {}

    def _announce(self, epoch: int) -> None:
        if self.task.is_shuffled_before(epoch):
            trainer = cast(Any, self.trainer)
            announce_objective_shift(trainer, trainer.lightning_module, _SHIFTS[self.changes])

    def _schedule_validation(self, epoch: int) -> None:
        # The Trainer validates if the period divides the number of epochs so far: 1 always does, and a period
        # that is larger than this number never does.
        trainer = cast(Any, self.trainer)
        due = (epoch + 1) % self.eval_every == 0 or self.ends_phase()
        trainer.check_val_every_n_epoch = 1 if due else trainer.current_epoch + 2
