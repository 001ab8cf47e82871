"""PSGD-Kron: the optimizer that scales with depth in the reference paper, made resumable and fast."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT, StateDict

from lit_gfs.errors import UserError, nearest, require_between
from lit_gfs.optim.draws import Draws
from lit_gfs.optim.kronecker import MemorySaveMode
from lit_gfs.optim.parameter_stack import ParameterStack, initial_state, stack_key
from lit_gfs.utils.seeding import derive_seed, run_seed

Precision = Literal["float32", "bfloat16"]


class Kron(Optimizer):
    """Preconditioned SGD with Kronecker-factored preconditioners, which resumes bit for bit.

    Every dimension of a parameter has a factor Q, a triangular matrix or a diagonal, fitted online so that
    the product of the factors whitens the gradient (PSGD, Li 2018, arXiv 1512.04202). The step is the
    preconditioned momentum, clipped to a root mean square of 1.1. Castanyer et al. 2025 (arXiv 2506.15544)
    use it at a third of the learning rate that Adam has, and find no other optimizer to scale as well with
    depth and width.

    The updates are those of ``pytorch_optimizer.Kron``, to rounding. They cost less: parameters of one shape
    are updated together, and Q' Q is kept between the updates of the factors, so that an ordinary step takes
    one product of matrices per dimension of a parameter. Keeping it needs as much memory as the factors.

    The random numbers (the probe vectors for the factors) come from ``seed`` and the step count instead of
    the global generators: a resumed run draws what the uninterrupted one would have drawn, all processes of
    a distributed run draw alike, and nobody else's draws are disturbed. Loading a checkpoint keeps the
    precision of momentum and factors.

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
        UserError: If an argument is out of range, or a parameter is complex.
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
        require_between(
            0,
            1,
            pre_conditioner_update_probability=pre_conditioner_update_probability,
            balance_prob=balance_prob,
        )
        require_between(0, float("inf"), lr=lr, weight_decay=weight_decay, seed=seed)
        if not 0 <= momentum < 1:
            raise UserError(f"momentum is {momentum}; expected a number of at least 0 and less than 1")
        _require_choice("memory_save_mode", memory_save_mode, get_args(MemorySaveMode))
        _require_choice("mu_dtype", mu_dtype, get_args(Precision))
        _require_choice("precondition_dtype", precondition_dtype, get_args(Precision))
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "weight_decouple": weight_decouple,
            "pre_conditioner_update_probability": pre_conditioner_update_probability,
            "max_size_triangular": max_size_triangular,
            "min_ndim_triangular": min_ndim_triangular,
            "memory_save_mode": memory_save_mode,
            "momentum_into_precondition_update": momentum_into_precondition_update,
            "precondition_lr": 0.1,
            "precondition_init_scale": 1.0,
            "mu_dtype": getattr(torch, mu_dtype) if mu_dtype else None,
            "precondition_dtype": getattr(torch, precondition_dtype) if precondition_dtype else None,
            "seed": run_seed() if seed is None else seed,
        }
        super().__init__(params, defaults)
        self.balance_prob = balance_prob
        self._places: dict[Tensor, tuple[ParameterStack, int]] = {}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with settings of their own.

        Args:
            param_group: ``params``, and whatever differs from the defaults.

        Raises:
            UserError: If a parameter is complex.
        """
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if parameter.is_complex():
                self.param_groups.pop()
                raise UserError(
                    f"Kron got a parameter {tuple(parameter.shape)} of {parameter.dtype}; expected a real one"
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update the parameters that have a gradient.

        Args:
            closure: Computes gradients and returns the loss; it draws from the global generators as ever.

        Returns:
            What the closure returned.

        Raises:
            UserError: If a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        placed = self._placed()
        if not placed:
            return loss  # a step that is skipped: no counter moves either
        first = self.param_groups[0]
        balance, probes = False, {}
        if _is_due(first):
            draws = Draws(derive_seed("kron", first["seed"], first.get("step", 0)))
            balance = draws.uniform() < self.balance_prob
            # In the order of the parameters: draws do not depend on how these are stacked.
            probes = {
                parameter: draws.normal(parameter, stack.factors[0].dtype) for parameter, stack, _ in placed
            }
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1

        members: defaultdict[ParameterStack, list[tuple[int, Tensor]]] = defaultdict(list)
        for parameter, stack, row in placed:
            members[stack].append((row, parameter))
        for stack, rows in members.items():
            parameters = [parameter for _, parameter in rows]
            drawn = [probes[parameter] for parameter in parameters] if probes else None
            stack.step([row for row, _ in rows], parameters, drawn, balance)
        return loss

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Restore what `state_dict` returned, on the device of the parameters.

        A checkpoint of ``pytorch_optimizer.Kron`` is taken as well.
        """
        super().load_state_dict(state_dict)
        for group, saved_group in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.setdefault("seed", self.defaults["seed"])
            for parameter, index in zip(group["params"], saved_group["params"], strict=True):
                if saved := state_dict["state"].get(index):
                    # PyTorch casts state to the parameter's precision, whatever its own was.
                    momentum, *factors = (
                        value.to(parameter.device, copy=True)
                        for value in (saved["momentum_buffer"], *saved["Q"])
                    )
                    self.state[parameter] = {"momentum_buffer": momentum, "Q": factors}

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs; it arranges stacks of its own."""
        return {**super().__getstate__(), "balance_prob": self.balance_prob}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over the state of a copied, unpickled or loaded optimizer."""
        super().__setstate__(state)
        self._places = {}

    def _placed(self) -> list[tuple[Tensor, ParameterStack, int]]:
        """Return the parameters that have a gradient, each with its stack and its row there."""
        active = [
            (group, parameter)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        for group, parameter in active:
            if parameter.grad.is_sparse:
                shape = tuple(parameter.shape)
                raise UserError(f"Kron got a sparse gradient of a parameter {shape}; expected a dense one")
            if not self.state[parameter]:
                self.state[parameter].update(initial_state(parameter, group))
        if not all(self._is_placed(group, parameter) for group, parameter in active):
            self._arrange()
        return [(parameter, *self._places[parameter]) for _, parameter in active]

    def _is_placed(self, group: dict[str, Any], parameter: Tensor) -> bool:
        # The state may have been replaced, by load_state_dict or a move to another device.
        if parameter not in self._places:
            return False
        stack, row = self._places[parameter]
        return stack.owns(row, group, self.state[parameter])

    def _arrange(self) -> None:
        """Stack the parameters that have state."""
        self._places = {}
        for group in self.param_groups:
            alike: defaultdict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if state := self.state.get(parameter):
                    alike[stack_key(parameter, state)].append(parameter)
            for parameters in alike.values():
                stack = ParameterStack(group, [self.state[parameter] for parameter in parameters])
                self._places.update({parameter: (stack, row) for row, parameter in enumerate(parameters)})


def _is_due(first: dict[str, Any]) -> bool:
    """Count a step in the first parameter group, and tell whether it updates the factors."""
    probability = first["pre_conditioner_update_probability"]
    if probability is None:
        probability = min(1.0, max(0.03, math.exp(-0.001 * (first.get("step", 0) - 500))))
    counter = first.get("update_counter", 0) + 1
    due = probability > 0 and counter >= 1 / probability
    first["update_counter"] = 0 if due else counter
    return due


def _require_choice(argument: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise UserError(
            f"Kron has no {argument} {value!r}; expected null or one of {', '.join(choices)}"
            f"{nearest(str(value), choices)}"
        )
