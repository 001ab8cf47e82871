"""Terms that are added to the loss of a module's ``training_step``, whatever the module is."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lit_gfs.errors import UserError, nearest
from lit_gfs.metrics.feature_recorder import FeatureRecorder, last_activation
from lit_gfs.metrics.gradient_flow import parameters_by_layer
from lit_gfs.metrics.module_protocol import (
    layers_of,
    observations_of,
    policy_features,
    policy_head,
    require_policy_features,
    trained_parameters,
    trains_policy,
)
from lit_gfs.steps.second_pass import is_compiled, uncompiled

INPUTS = ("module", "batch", "outputs", "parameters", "features", "pre_activations")
"""Everything that a term may ask for, by the names of its arguments."""


class LossTerm(Protocol):
    """A term of the loss."""

    name: str

    def term(self, *arguments: Any, **inputs: Any) -> Tensor:
        """Return the term ``()`` from the inputs that its arguments name."""

    def weighted(self, value: Tensor, loss: Tensor) -> Tensor:
        """Return what is added to the loss ``()``: the term's value ``()`` times its weight."""


class LossTerms:
    """Takes the place of a module's ``training_step``, and adds terms to the loss that it returns.

    So terms belong to the same forward and the same backward pass as the loss: loss scales, accumulation, the
    reduction of DDP, guards and clipping treat them as any part of it, and a CUDA graph that captures
    ``training_step`` captures them too. A ``training_step`` that returns ``None`` skips them. While the
    module's ``is_probed`` is true there are no terms, and `own_training_step` never has any.

    Features are recorded during the forward pass, by hooks that exist only then. Compiled networks do not
    call hooks; for these, ``policy_features`` computes the features of the batch's observations once more.

    Args:
        pl_module: The module.
        terms: The terms, which add up.
        record: Takes the values of the terms by tag, once for each loss.

    Raises:
        UserError: If a term asks for something unknown, or for features that the module does not have.
    """

    def __init__(
        self,
        pl_module: LightningModule,
        terms: Sequence[LossTerm],
        record: Callable[[Mapping[str, Tensor]], None],
    ) -> None:
        self._module = pl_module
        self._inputs = {term: _inputs_of(term) for term in terms}
        self._record = record
        self._recorder = self._make_recorder()
        self._hides_hooks: bool | None = None
        """Whether the head is part of a compiled network; unknown before the first step."""
        self._trained: list[int] = []
        self._by_layer: dict[str, list[nn.Parameter]] = {}
        self._replaced = vars(pl_module).get("training_step")
        self._ordinary: Callable[..., Any] = pl_module.training_step

    def install(self) -> None:
        """Take the place of ``training_step``."""

        # Lightning reads the signature of the original to know which arguments it takes.
        @functools.wraps(self._ordinary, updated=())
        def training_step(*arguments: Any, **options: Any) -> Any:
            return self._training_step(*arguments, **options)

        training_step.own_training_step = self._ordinary  # type: ignore[attr-defined]
        vars(self._module)["training_step"] = training_step

    def remove(self) -> None:
        """Give ``training_step`` back its place."""
        vars(self._module).pop("training_step", None)
        if self._replaced is not None:
            vars(self._module)["training_step"] = self._replaced

    # ----------------------------------------------------------------------------------------------------

    def _training_step(self, *arguments: Any, **options: Any) -> Any:
        # TD3 trains its policy in some steps alone. Terms belong to these, those about all weights too.
        if getattr(self._module, "is_probed", False) or not trains_policy(self._module):
            return self._ordinary(*arguments, **options)
        with self._recording():
            outputs = self._ordinary(*arguments, **options)
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, Tensor):
            return outputs
        batch = arguments[0] if arguments else options.get("batch")
        self._record_again(batch)
        total, values = self._add(loss, batch, outputs)
        self._record({f"loss/{name}": value.detach() for name, value in values.items()})
        return {**outputs, "loss": total} if isinstance(outputs, Mapping) else total

    def _add(self, loss: Tensor, batch: Any, outputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of loss and terms, and the values of the terms by name."""
        total, values = loss, {}
        for term, names in self._inputs.items():
            value = term.term(**{name: self._input(name, batch, outputs) for name in names})
            if not isinstance(value, Tensor) or value.ndim:
                got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise UserError(f"{type(term).__name__}.term returned {got}; expected a tensor of shape ()")
            total = total + term.weighted(value, loss)
            values[term.name] = value
        if self._recorder is not None:
            self._recorder.forget()
        return total, values

    def _input(self, name: str, batch: Any, outputs: Any) -> Any:
        if name == "parameters":
            return self._parameters()
        if name in ("features", "pre_activations"):
            recorded = getattr(self._recorder, name)
            if recorded is None:
                raise UserError(
                    f"the training_step of {type(self._module).__name__} did not run policy_head, or without "
                    "gradients, so a term of the loss has no features; expected policy_head(features)"
                )
            return recorded
        return {"module": self._module, "batch": batch, "outputs": outputs}[name]

    def _parameters(self) -> dict[str, list[nn.Parameter]]:
        """Return the trained parameters by layer."""
        trained = [p for each in self._module.trainer.optimizers for p in trained_parameters(each)]
        if [id(parameter) for parameter in trained] != self._trained:
            self._trained = [id(parameter) for parameter in trained]
            self._by_layer = parameters_by_layer(layers_of(self._module), trained)
        return self._by_layer

    # -- features ----------------------------------------------------------------------------------------

    def _make_recorder(self) -> FeatureRecorder | None:
        """Build a recorder if a term asks for features."""
        reads = {name: term for term, names in self._inputs.items() for name in names}
        asked = reads.get("pre_activations") or reads.get("features")
        if asked is None:
            return None
        asked_by = type(asked).__name__
        # The head may be wrapped, as one of distributions is; the step runs the layer within.
        own = set(self._module.modules())
        wrapped, activation = policy_head(self._module, asked_by), None
        head = next((each for each in wrapped.modules() if each in own), wrapped)
        if "pre_activations" in reads:
            activation = last_activation(getattr(self._module, "trunk", self._module))
            if activation is None:
                raise UserError(
                    f"{asked_by} reads the input of the last activation of {type(self._module).__name__}, "
                    "which has no activation module; expected one, such as nn.ReLU"
                )
        return FeatureRecorder(head, activation)

    def _recording(self) -> AbstractContextManager[Any]:
        if self._recorder is None:
            return nullcontext()
        if self._hides_hooks is None:
            watched = {self._recorder.head, self._recorder.activation}
            compiled = (each for each in self._module.modules() if is_compiled(each))
            self._hides_hooks = any(watched.intersection(each.modules()) for each in compiled)
            if self._hides_hooks:
                require_policy_features(self._module, "a term of the loss")
        return nullcontext() if self._hides_hooks else self._recorder.recording()

    def _record_again(self, batch: Any) -> None:
        """Record a further pass if the network is compiled."""
        if self._recorder is None or not self._hides_hooks:
            return
        with self._recorder.recording(), uncompiled(self._module):
            features = policy_features(self._module, observations_of(batch, "a term of the loss"))
        self._recorder.features = features


def own_training_step(pl_module: LightningModule) -> Callable[..., Any]:
    """Return the ``training_step`` of a module without the terms of callbacks."""
    return getattr(pl_module.training_step, "own_training_step", pl_module.training_step)


def _inputs_of(term: LossTerm) -> list[str]:
    names = list(inspect.signature(term.term).parameters)
    for name in names:
        if name not in INPUTS:
            raise UserError(
                f"{type(term).__name__}.term asks for {name!r}; expected any of {', '.join(INPUTS)}"
                f"{nearest(name, INPUTS)}"
            )
    return names
