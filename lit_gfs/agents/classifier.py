"""A classifier made of the agents' parts, to study plasticity without an environment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from lit_gfs.agents.learner import Learner
from lit_gfs.envs import EnvSpec
from lit_gfs.errors import UserError
from lit_gfs.metrics.module_protocol import write_scalars
from lit_gfs.networks import LinearHead, Network, numbered_layers
from lit_gfs.optim.factory import make_optimizer
from lit_gfs.utils.transfers import send

Batch = tuple[Tensor, Tensor]
"""Images ``(batch, *shape)`` and labels ``(batch,)``."""


class LabelSource(Protocol):
    """The methods of the datamodule that a classifier uses."""

    def ends_phase(self) -> bool:
        """Return whether labels change after this epoch, or the run ends."""

    def probe_images(self) -> Tensor:
        """Return up to 256 images, ``(B, *shape)``."""

    def val_dataloader(self) -> Iterable[Batch]:
        """Return all images with the labels of the moment."""


class Classifier(Learner):
    """Encoder, trunk and a linear head that learn labels by cross-entropy.

    It reports ``loss/cross_entropy``, ``train/accuracy`` and ``eval/accuracy`` (all training images with the
    current labels; also before the first step). At the end of a phase of labels, and of the run, it reports
    ``eval/phase_accuracy``: how well its labels were learned. The x axis counts optimizer steps.

    Args:
        env_spec: The images as observations, the classes as actions; the command line fills it in.
        options: Networks and optimizer, see `Learner`.

    Raises:
        UserError: If actions are continuous, so that there are no classes.
    """

    score: ClassVar[str] = "eval/accuracy"
    scores: ClassVar[tuple[str, ...]] = ("eval/accuracy", "eval/phase_accuracy")
    """All that an evaluation may report."""

    def __init__(self, env_spec: EnvSpec, **options: Any) -> None:
        super().__init__(env_spec, **options)
        if env_spec.num_actions is None:
            raise UserError(f"Classifier needs classes, but {env_spec.env_id!r} has continuous actions")
        shape = env_spec.observation_shape
        self.network = Network(shape, self.build_encoder, self.build_trunk, self.initialization)
        self.head = LinearHead(self.network.out_features, env_spec.num_actions)
        self._correct: list[Tensor] = []

    def networks(self) -> list[nn.Module]:
        """List the encoder with its trunk."""
        return [self.network]

    @property
    def source(self) -> LabelSource:
        """The datamodule that has the images."""
        return cast(LabelSource, cast(Any, self.trainer).datamodule)

    @property
    def trunk(self) -> nn.Module:
        """The network's trunk."""
        return self.network.trunk

    @property
    def policy_head(self) -> nn.Module:
        """The layer whose largest output is the predicted class."""
        return self.head

    def policy_features(self, observation: Tensor) -> Tensor:
        """Map images ``(*batch, *shape)`` to the trunk's output."""
        return self.network.features(observation)

    def named_layers(self) -> dict[str, nn.Module]:
        """Layers by the names that agents give them: ``trunk.layer_01``, ``head`` ..."""
        return {**numbered_layers(self.network), "head": self.head}

    def probe_batch(self) -> Tensor:
        """Return up to 256 images, always the same ones, on the module's device."""
        return send(self.source.probe_images(), self.device)

    # -- learning ----------------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(*batch, *shape)`` to logits ``(*batch, classes)``, in float32 under any precision."""
        return self.head(self.network(images)).float()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean cross-entropy of images ``(batch, *shape)`` and labels ``(batch,)``."""
        images, labels = batch
        logits = self(images)
        loss = cross_entropy(logits, labels)
        self.record({"loss/cross_entropy": loss, "train/accuracy": _correct(logits, labels)})
        return loss

    def configure_optimizers(self) -> Optimizer:
        """Build the optimizer over all parameters."""
        return make_optimizer(self.build_optimizer, self.parameters())

    def current_values(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return schedules; the progress line shows the accuracy where agents have returns."""
        self.latest_return = means.get("train/accuracy", self.latest_return)
        return super().current_values(means)

    # -- evaluation --------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check the datamodule.

        Raises:
            UserError: If it has no labels.
        """
        datamodule = getattr(self.trainer, "datamodule", None)
        if not hasattr(datamodule, "ends_phase"):
            raise UserError(
                f"Classifier learns from labels, not from {type(datamodule).__name__}; use "
                "LabelShuffleDataModule"
            )

    def on_train_start(self) -> None:
        """Evaluate once before the first step of a fresh run."""
        trainer = cast(Any, self.trainer)
        if trainer.global_step == 0 and trainer.enable_validation:
            self.eval()
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                for batch in self.source.val_dataloader():
                    self.validation_step([part.to(self.device) for part in batch], 0)
            self.train()
            write_scalars(self.trainer, self, {"eval/accuracy": float(self._take_accuracy())})

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Note which images are classified correctly."""
        images, labels = batch
        self._correct.append(_correct(self(images), labels))

    def on_validation_epoch_end(self) -> None:
        """Report the accuracy, and that of a phase where it ends."""
        accuracy = self._take_accuracy()
        scores = {"eval/accuracy": accuracy}
        if self.source.ends_phase():
            scores["eval/phase_accuracy"] = accuracy
        self.report_evaluation(scores)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Note which images are classified correctly, as in validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Report the accuracy, as in validation."""
        self.on_validation_epoch_end()

    def _take_accuracy(self) -> Tensor:
        """Return the accuracy ``()`` over what was noted, and forget it."""
        correct, self._correct = torch.cat(self._correct), []
        return correct.mean()


def _correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Return 1 where the largest logit is the label's, 0 elsewhere, ``(batch,)``."""
    return (logits.detach().argmax(-1) == labels).float()
