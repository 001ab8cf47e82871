"""The network below the heads: an encoder followed by a trunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor, nn

from lit_gfs.errors import require_one_of
from lit_gfs.networks.encoders import Encoder, default_encoder
from lit_gfs.networks.orthogonal import orthogonal_
from lit_gfs.networks.trunks import Trunk

EncoderFactory = Callable[[tuple[int, ...]], Encoder]
"""A function from an observation shape to an encoder; in YAML a ``class_path`` with ``init_args``."""

TrunkFactory = Callable[[int], Trunk]
"""A function from the number of encoder features to a trunk; in YAML a ``class_path`` with ``init_args``."""

Initialization = Literal["orthogonal", "torch"]
"""``orthogonal``: zero biases and gain sqrt(2), less for leaky ReLUs; ``torch``: PyTorch's defaults."""


class Network(nn.Module):
    """An encoder followed by a trunk; subclasses may add a head.

    Args:
        observation_shape: Shape of one observation.
        encoder: Builds the encoder; ``None`` uses `lit_gfs.networks.default_encoder`.
        trunk: Builds the trunk.
        initialization: Initialization of the weights.

    Raises:
        UserError: If there is no such initialization.
    """

    def __init__(
        self,
        observation_shape: tuple[int, ...],
        encoder: EncoderFactory | None,
        trunk: TrunkFactory,
        initialization: Initialization,
    ) -> None:
        super().__init__()
        require_one_of(get_args(Initialization), initialization=initialization)
        self.initialization: Initialization = initialization
        self.encoder = (encoder or default_encoder)(observation_shape)
        self.trunk = trunk(self.encoder.out_features)
        if initialization == "orthogonal":
            orthogonal_(self.encoder, self.encoder.gain)
            orthogonal_(self.trunk, self.trunk.gain)

    @property
    def out_features(self) -> int:
        """Number of features, the input width of heads."""
        return self.trunk.out_features

    def features(self, observation: Tensor) -> Tensor:
        """Map observations ``(*batch, *shape)`` to features ``(*batch, out_features)``."""
        return self.trunk(self.encoder(observation))

    def forward(self, observation: Tensor) -> Tensor:
        """Return the features, unless a subclass adds a head."""
        return self.features(observation)
