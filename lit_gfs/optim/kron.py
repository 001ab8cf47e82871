"""PSGD-Kron, the optimizer of the reference paper for deep networks, in a resumable and faster version."""

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
    """Preconditioned SGD with Kronecker-factored preconditioners; resumes bit for bit.

    Each dimension of a parameter has a factor Q, a triangular or diagonal matrix. The factors are fitted
    online so that their Kronecker product whitens the gradient (PSGD, Li 2018, arXiv 1512.04202). The step is
    the preconditioned momentum, clipped to a root mean square of 1.1. Castanyer et al. 2025 (arXiv
    2506.15544) use it with a third of Adam's learning rate. Among their optimizers, it scales best with depth
    and width.

    Up to rounding, the updates equal those of ``pytorch_optimizer.Kron``, at a lower cost. Parameters of the
    same shape are updated together. Q' Q is cached between updates of the factors, so most steps need only
    one matrix product per dimension of a parameter. The cache needs as much memory as the factors.

    The random probe vectors for the factors depend only on ``seed`` and the step, not on the global
    generators. So a resumed run draws the same vectors as an uninterrupted one, all processes of a
    distributed run draw the same vectors, and other random numbers of the run do not change. Loading a
    checkpoint keeps the dtypes of momentum and factors.

    Args:
        params: Parameters, or parameter groups.
        lr: Learning rate; about a third of a good learning rate of Adam.
        momentum: Decay of the running mean of gradients.
        weight_decay: Weight decay of parameters with at least two dimensions.
        weight_decouple: Whether weight decay bypasses momentum and preconditioner, as in AdamW.
        pre_conditioner_update_probability: Share of the steps that update the factors, evenly spaced;
            ``null`` is the schedule of the paper: 1 for 500 steps, then a decay to 0.03 at step 4,000.
        max_size_triangular: Largest size of a dimension with a triangular factor.
        min_ndim_triangular: Smallest number of dimensions of a parameter with triangular factors.
        memory_save_mode: Which factors are diagonal to save memory; ``null`` for none.
        momentum_into_precondition_update: Whether the factors whiten the momentum instead of the gradient.
        mu_dtype: Dtype of the momentum; ``null`` uses that of the parameter.
        precondition_dtype: Dtype of the factors; ``null`` uses that of the parameter.
        balance_prob: Probability that an update of the factors also balances their norms.
        seed: Seed of the probe vectors, equal in all processes; ``null`` uses that of ``seed_everything``.

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
            "seed": run_seed(seed),
        }
        super().__init__(params, defaults)
        self.balance_prob = balance_prob
        self._places: dict[Tensor, tuple[ParameterStack, int]] = {}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with their own options.

        Args:
            param_group: ``params``, and the options that differ from the defaults.

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
            closure: Computes gradients and returns the loss.

        Returns:
            The result of the closure.

        Raises:
            UserError: If a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        placed = self._placed()
        if not placed:
            return loss  # without gradients the step is skipped, and no counter changes
        first = self.param_groups[0]
        balance, probes = False, {}
        if _is_update_due(first):
            draws = Draws(derive_seed("kron", first["seed"], first.get("step", 0)))
            balance = draws.uniform() < self.balance_prob
            # Draw in the order of the parameters, independent of the stacks.
            probes = {
                parameter: draws.normal(parameter, stack.factors[0].dtype) for parameter, stack, _ in placed
            }
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1

        # One update for all parameters of a stack.
        members: defaultdict[ParameterStack, list[tuple[int, Tensor]]] = defaultdict(list)
        for parameter, stack, row in placed:
            members[stack].append((row, parameter))
        for stack, rows in members.items():
            parameters = [parameter for _, parameter in rows]
            stack_probes = [probes[parameter] for parameter in parameters] if probes else None
            stack.step([row for row, _ in rows], parameters, stack_probes, balance)
        return loss

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Restore a saved state, on the device of the parameters.

        The state may also come from ``pytorch_optimizer.Kron``.
        """
        super().load_state_dict(state_dict)
        for group, saved_group in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.setdefault("seed", self.defaults["seed"])
            for parameter, index in zip(group["params"], saved_group["params"], strict=True):
                if saved := state_dict["state"].get(index):
                    # Restore the saved dtypes, because PyTorch casts the state to the dtype of the parameter.
                    momentum, *factors = (
                        value.to(parameter.device, copy=True)
                        for value in (saved["momentum_buffer"], *saved["Q"])
                    )
                    self.state[parameter] = {"momentum_buffer": momentum, "Q": factors}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, which builds its own stacks."""
        return {**super().__getstate__(), "balance_prob": self.balance_prob}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set the state of a copied, unpickled or loaded optimizer."""
        super().__setstate__(state)
        self._places = {}

    def _placed(self) -> list[tuple[Tensor, ParameterStack, int]]:
        """Return the parameters with a gradient, each with its stack and its row in the stack."""
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
            self._build_stacks()
        return [(parameter, *self._places[parameter]) for _, parameter in active]

    def _is_placed(self, group: dict[str, Any], parameter: Tensor) -> bool:
        # load_state_dict or a move to another device may have replaced the state.
        if parameter not in self._places:
            return False
        stack, row = self._places[parameter]
        return stack.owns(row, group, self.state[parameter])

    def _build_stacks(self) -> None:
        """Build stacks of the parameters with state, one for each group and `stack_key`."""
        self._places = {}
        for group in self.param_groups:
            by_key: defaultdict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if state := self.state.get(parameter):
                    by_key[stack_key(parameter, state)].append(parameter)
            for parameters in by_key.values():
                stack = ParameterStack(group, [self.state[parameter] for parameter in parameters])
                self._places.update({parameter: (stack, row) for row, parameter in enumerate(parameters)})


def _is_update_due(first: dict[str, Any]) -> bool:
    """Count a step in the first parameter group, and return whether it updates the factors."""
    probability = first["pre_conditioner_update_probability"]
    if probability is None:
        probability = min(1.0, max(0.03, math.exp(-0.001 * (first.get("step", 0) - 500))))
    # Update every 1 / probability steps instead of at random.
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
