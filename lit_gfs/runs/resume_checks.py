"""Whether a checkpoint fits the run that goes on from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch.optim import Optimizer

from lit_gfs.errors import UserError


def optimizer_names(optimizers: Iterable[Optimizer]) -> list[str]:
    """Return the import paths of the optimizers' classes, for a checkpoint."""
    kinds = (type(optimizer) for optimizer in optimizers)
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in kinds]


def require_same_class(module: object, saved: str | None) -> None:
    """Check that a checkpoint is of a module's class, or of one that its class is based on.

    Args:
        module: The module that goes on.
        saved: The name of the class in the checkpoint; ``None`` if the checkpoint names none.

    Raises:
        UserError: If the checkpoint is of another class.
    """
    if saved is not None and saved not in {ancestor.__name__ for ancestor in type(module).__mro__}:
        raise UserError(f"the checkpoint is of {saved}; expected one of {type(module).__name__}")


def require_same_optimizers(optimizers: Iterable[Optimizer], saved: Sequence[str] | None) -> None:
    """Check that a checkpoint's optimizer states are of the run's optimizers.

    Most optimizers load another one's state without a word, and stumble over it at their first step.

    Args:
        optimizers: The optimizers of the run.
        saved: What `optimizer_names` returned when the checkpoint was written; ``None`` if it names none.

    Raises:
        UserError: If a class differs.
    """
    names = optimizer_names(optimizers)
    if saved is not None and list(saved) != names:
        raise UserError(
            f"model.optimizer is {', '.join(names)}, but the checkpoint was written with "
            f"{', '.join(map(str, saved))}; expected the same"
        )
