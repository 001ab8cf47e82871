"""PSGD-Kron: the optimizer that scales with depth in the reference paper, made resumable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import numpy as np
import pytorch_optimizer
import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT, StateDict

from lit_gfs.errors import UserError, nearest, require_between
from lit_gfs.seeding import derive_seed, run_seed

MemorySaveMode = Literal["one_diag", "smart_one_diag", "all_diag"]
"""Which factors are diagonal: the largest dimension's, that one if it is strictly the largest, or all."""

Precision = Literal["float32", "bfloat16"]


class Kron(pytorch_optimizer.Kron):
    """Preconditioned SGD with Kronecker-factored preconditioners, which resumes bit for bit.

    Every dimension of a parameter has a factor Q, a triangular matrix or a diagonal, fitted online so that
    the product of the factors whitens the gradient (PSGD, Li 2018, arXiv 1512.04202). The step is the
    preconditioned momentum, clipped to a root mean square of 1.1. Castanyer et al. 2025 (arXiv 2506.15544)
    use it at a third of the learning rate that Adam has, and find no other optimizer to scale as well with
    depth and width.

    The algorithm is that of ``pytorch_optimizer.Kron``; what differs is around it. Its random numbers (the
    probe vectors for the factors) come from ``seed`` and the step count instead of the global generators: a
    resumed run draws what the uninterrupted one would have drawn, all processes of a distributed run draw
    alike, and nobody else's draws are disturbed (on CPU and CUDA). Loading a checkpoint keeps the precision
    of momentum and factors, and a copy of the optimizer works.

    Args:
        params: Parameters, or parameter groups.
        lr: Learning rate; about a third of what suits Adam.
        momentum: Decay of the running mean of gradients.
        weight_decay: Weight decay of parameters of at least two dimensions.
        weight_decouple: Whether weight decay is apart from the preconditioned gradient, as in AdamW.
        pre_conditioner_update_probability: Share of the steps that update the factors, evenly spaced;
            ``null`` is the paper's schedule, 1 for 500 steps and down to 0.03 by step 4,000.
        max_size_triangular: Largest dimension, in units, whose factor is a matrix.
        min_ndim_triangular: Fewest dimensions of a parameter whose factors are matrices.
        memory_save_mode: Which factors are diagonal to save memory; ``null`` for none.
        momentum_into_precondition_update: Whether factors are fitted to the momentum, not to the gradient.
        mu_dtype: Precision of the momentum; ``null`` is the parameter's.
        precondition_dtype: Precision of the factors; ``null`` is the parameter's.
        balance_prob: Probability with which an update of the factors evens out their norms.
        seed: Seed of the draws, equal in all processes; ``null`` takes that of ``seed_everything``.

    Raises:
        UserError: If an argument is out of range, or the package ``opt_einsum`` is missing.
        ValueError: If the momentum is outside of [0, 1).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 3e-4,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        weight_decouple: bool = True,
        pre_conditioner_update_probability: float | None = None,
        max_size_triangular: int = 8192,
        min_ndim_triangular: int = 2,
        memory_save_mode: MemorySaveMode | None = None,
        momentum_into_precondition_update: bool = True,
        mu_dtype: Precision | None = None,
        precondition_dtype: Precision | None = "float32",
        balance_prob: float = 0.01,
        seed: int | None = None,
    ) -> None:
        # Without it PyTorch contracts from left to right: 17 GB for a layer of 256 x 256.
        if not torch.backends.opt_einsum.is_available():
            raise UserError(
                "Kron needs the package opt_einsum, which is not installed; pip install opt_einsum"
            )
        require_between(
            0,
            1,
            pre_conditioner_update_probability=pre_conditioner_update_probability,
            balance_prob=balance_prob,
        )
        require_between(0, float("inf"), lr=lr, weight_decay=weight_decay, seed=seed)
        _require_choice("memory_save_mode", memory_save_mode, get_args(MemorySaveMode))
        _require_choice("mu_dtype", mu_dtype, get_args(Precision))
        _require_choice("precondition_dtype", precondition_dtype, get_args(Precision))
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            weight_decouple=weight_decouple,
            pre_conditioner_update_probability=pre_conditioner_update_probability,
            max_size_triangular=max_size_triangular,
            min_ndim_triangular=min_ndim_triangular,
            memory_save_mode=memory_save_mode,
            momentum_into_precondition_update=momentum_into_precondition_update,
            mu_dtype=getattr(torch, mu_dtype) if mu_dtype else None,
            precondition_dtype=getattr(torch, precondition_dtype) if precondition_dtype else None,
            balance_prob=balance_prob,
        )
        self.defaults["seed"] = run_seed() if seed is None else seed
        self._complete_groups()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters that have a gradient.

        Args:
            closure: Computes gradients and returns the loss; it draws from the global generators as ever.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        first = self.param_groups[0]
        devices = {parameter.device for group in self.param_groups for parameter in group["params"]}
        with _draws_seeded(derive_seed("kron", first["seed"], first.get("step", 0)), devices):
            super().step()
        return loss

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Restore what `state_dict` returned, on the device of the parameters.

        A checkpoint of ``pytorch_optimizer.Kron`` is taken as well.
        """
        super().load_state_dict(state_dict)
        self._complete_groups()
        # PyTorch casts state to the parameter's precision, whatever its own was.
        for group, saved_group in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for parameter, index in zip(group["params"], saved_group["params"], strict=True):
                if index in state_dict["state"]:
                    self.state[parameter] = _copied(state_dict["state"][index], parameter.device)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs: all that `step` reads, not only what PyTorch's optimizers share."""
        own = {"balance_prob": self.balance_prob, "eps": self.eps, "maximize": self.maximize}
        return {**super().__getstate__(), **own}

    def _complete_groups(self) -> None:
        for group in self.param_groups:
            group.setdefault("seed", self.defaults["seed"])


def _require_choice(argument: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise UserError(
            f"Kron has no {argument} {value!r}; expected null or one of {', '.join(choices)}"
            f"{nearest(str(value), choices)}"
        )


def _copied(value: Any, device: torch.device) -> Any:
    """Copy a parameter's state to a device, precisions and strings as they are."""
    if isinstance(value, Tensor):
        return value.to(device, copy=True)
    if isinstance(value, dict):
        return {key: _copied(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(item, device) for item in value)
    return value


@contextmanager
def _draws_seeded(seed: int, devices: set[torch.device]) -> Iterator[None]:
    """Seed the global generators of NumPy and of devices for a while, then put them back."""
    generators = [torch.default_generator]
    generators += [torch.cuda.default_generators[device.index] for device in devices if device.type == "cuda"]
    states = [generator.get_state() for generator in generators]
    numpy_state = np.random.get_state()  # noqa: NPY002 - the global generator is what the parent draws from
    try:
        np.random.seed(seed)  # noqa: NPY002
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
