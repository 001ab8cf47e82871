"""Checks for classes in a configuration that are abstract, unusable, or do not fit together."""

from __future__ import annotations

import inspect
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    EMAWeightAveraging,
    LambdaCallback,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import nn
from torch.optim import SparseAdam

from lit_gfs.agents.learner import Learner
from lit_gfs.configuration.config_trust import is_by_default
from lit_gfs.configuration.named_classes import NamedClass, named_classes
from lit_gfs.datamodules.evaluated import EvaluatedDataModule
from lit_gfs.errors import UserError, nearest
from lit_gfs.networks import Encoder, Trunk
from lit_gfs.utils.memory import require_memory
from lit_gfs.utils.trust import is_trusted

_UNUSABLE = {
    BackboneFinetuning: "needs an attribute backbone of the model; expected none of its kind",
    BaseFinetuning: "is not finished; expected none of its kind",
    BatchSizeFinder: "needs a batch size that may change while training; expected none of its kind",
    LearningRateFinder: "needs an attribute lr of the model; set model.optimizer.lr",
    StochasticWeightAveraging: "needs a model that can be copied; expected none of its kind",
    WeightAveraging: "averages buffers and frozen copies of weights too; expected EMAWeightAveraging",
    SparseAdam: "takes sparse gradients alone; expected another, such as Adam",
}
"""Classes that can be built but fail when training starts, each with advice for the user."""

_EPISODE_BYTES = 12
"""Memory of an evaluation episode: its return and its length."""


def check_parts(config: Namespace) -> None:
    """Reject classes that can be built but not trained with.

    Raises:
        UserError: If there is such a class.
    """
    parts = list(named_classes(config))
    for part in parts:
        place = part.place.removesuffix(".")
        path = f"{part.cls.__module__}.{part.cls.__qualname__}"
        if reason := _reason_against(part.cls):
            raise UserError(f"{place} is {path!r}, which {reason}")
        if inspect.isclass(part.cls) and issubclass(part.cls, Trunk | Encoder) and _is_unfinished(part.cls):
            example = "PlainTrunk" if issubclass(part.cls, Trunk) else "VectorEncoder or NatureCNN"
            raise UserError(f"{place} is {path!r}, which has no forward; expected another, such as {example}")
        if part.cls is LambdaCallback:
            _check_hooks([each for each in parts if each.place.startswith(part.place)])
    by_place = {part.place: part for part in parts}
    model, data = by_place.get("model."), by_place.get("data.")
    if model is not None and data is not None:
        _check_pair(model, data)
    if data is not None and isinstance(episodes := data.arguments.get("eval_episodes"), int):
        require_memory(f"eval_episodes {episodes}", _EPISODE_BYTES * episodes)
    if model is not None:
        _check_monitors(model.cls, [part for part in parts if part.place.startswith("trainer.callbacks.")])


def _reason_against(cls: Any) -> str | None:
    """Return why a class of a library is unusable, or ``None``; the reason also holds for its subclasses."""
    if not inspect.isclass(cls) or not is_by_default(cls.__module__):
        return None
    if issubclass(cls, EMAWeightAveraging):
        return None  # agents replace it by one that suits them
    return next((_UNUSABLE[base] for base in cls.__mro__ if base in _UNUSABLE), None)


def _is_unfinished(cls: type[nn.Module]) -> bool:
    return cls.forward is nn.Module.forward


def _check_hooks(parts: list[NamedClass]) -> None:
    for part in parts:
        if inspect.isclass(part.cls) and issubclass(part.cls, nn.Module):
            raise UserError(
                f"{part.place.removesuffix('.')} is a {part.cls.__name__}, which is no hook; expected a "
                "function of a package that you trust"
            )


def _check_pair(model: NamedClass, data: NamedClass) -> None:
    """Check that a model and a datamodule have the attributes that they need from each other."""
    if not (inspect.isclass(model.cls) and inspect.isclass(data.cls)):
        return
    # A class of the user may create env_spec in its constructor.
    gives_spec = hasattr(data.cls, "env_spec") or is_trusted(data.cls.__module__)
    if "env_spec" in model.parameters and not gives_spec:
        raise UserError(
            f"data is {data.cls.__name__}, which has no env_spec for {model.cls.__name__}; expected "
            "RolloutDataModule, ReplayDataModule or LabelShuffleDataModule"
        )
    learns = issubclass(model.cls, Learner) or hasattr(model.cls, "collection_policy")
    # The user's own models may learn from labels.
    learns |= is_trusted(model.cls.__module__) and not issubclass(data.cls, EvaluatedDataModule)
    if hasattr(data.cls, "env_spec") and not learns:
        raise UserError(
            f"model is {model.cls.__name__}, which {data.cls.__name__} cannot train; expected DQN, PPO, "
            "PQN, SAC, TD3 or Classifier"
        )


def _check_monitors(model: Any, callbacks: list[NamedClass]) -> None:
    """Reject callbacks that monitor an unknown metric, unless a trusted callback could report it."""
    scores = reported_scores(model)
    if not scores or any(is_trusted(part.cls.__module__) for part in callbacks):
        return
    if any(inspect.isclass(part.cls) and issubclass(part.cls, EMAWeightAveraging) for part in callbacks):
        # An agent's weights are then evaluated beside their average.
        scores |= {tag.replace("eval/", "eval_current/") for tag in scores if "episode" in tag}
    for part in callbacks:
        monitor = part.arguments.get("monitor")
        known = scores | ({"epoch", "step"} if issubclass(part.cls, ModelCheckpoint) else set())
        if issubclass(part.cls, EarlyStopping | ModelCheckpoint) and monitor and monitor not in known:
            raise UserError(
                f"{part.place}monitor is {monitor!r}; expected one of {', '.join(sorted(known))}"
                f"{nearest(monitor, known)}"
            )


def reported_scores(model: Any) -> set[str]:
    """Return the tags of all metrics that a model of this package reports; empty for other models."""
    if not inspect.isclass(model) or not model.__module__.startswith("lit_gfs."):
        return set()
    return set(getattr(model, "scores", ()))
