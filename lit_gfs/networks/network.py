"""An encoder and a trunk in a row: the body that heads stand on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from lit_gfs.networks.encoders import Encoder, default_encoder
from lit_gfs.networks.orthogonal import orthogonal_
from lit_gfs.networks.trunks import Trunk

EncoderFactory = Callable[[tuple[int, ...]], Encoder]
"""Builds an encoder for an observation shape; in YAML a ``class_path`` with ``init_args``."""

TrunkFactory = Callable[[int], Trunk]
"""Builds a trunk for the encoder's feature count; in YAML a ``class_path`` with ``init_args``."""

Initialization = Literal["orthogonal", "torch"]
"""``orthogonal``: gain sqrt(2), zero biases; ``torch``: what each PyTorch layer does by itself."""


class Network(nn.Module):
    """Encoder, trunk and a linear head in a row.

    Args:
        observation_shape: Shape of one observation.
        encoder: Builds the encoder; ``None`` leaves the choice to `lit_gfs.networks.default_encoder`.
        trunk: Builds the trunk.
        initialization: How weights start.
    """

    def __init__(
        self,
        observation_shape: tuple[int, ...],
        encoder: EncoderFactory | None,
        trunk: TrunkFactory,
        initialization: Initialization,
    ) -> None:
        super().__init__()
        self.encoder = (encoder or default_encoder)(observation_shape)
        self.trunk = trunk(self.encoder.out_features)
        if initialization == "orthogonal":
            orthogonal_(self)

    @property
    def out_features(self) -> int:
        """The width of the features that heads read."""
        return self.trunk.out_features

    def features(self, observation: Tensor) -> Tensor:
        """Map observations ``(*batch, *shape)`` to features ``(*batch, out_features)``."""
        return self.trunk(self.encoder(observation))

    def forward(self, observation: Tensor) -> Tensor:
        """Return the features, unless a subclass adds a head."""
        return self.features(observation)
