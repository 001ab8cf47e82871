"""Encoders: map observations (pixels or vectors) to flat features."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lit_gfs.errors import UserError, require_between, require_positive
from lit_gfs.networks.components import activation_gain, make_activation, require_choice, require_slope
from lit_gfs.utils.memory import require_memory

ImageNorm = Literal["layer", "none"]
"""Normalization of images: over channels and positions together, or none."""


class Encoder(nn.Module):
    """Base of the encoders.

    ``forward`` maps observations ``(*batch, *observation_shape)``, with any number of batch dimensions, to
    features ``(*batch, out_features)``; it raises a ``ValueError`` for observations of another shape.

    Args:
        observation_shape: Shape of one observation.
    """

    out_features: int
    """Number of features per observation."""

    gain: float = math.sqrt(2)
    """Gain of orthogonal layers in front of the activation."""

    def __init__(self, observation_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.observation_shape = torch.Size(observation_shape)

    def _batch_shape(self, observation: Tensor) -> torch.Size:
        batch_dims = observation.ndim - len(self.observation_shape)
        if batch_dims < 0 or observation.shape[batch_dims:] != self.observation_shape:
            raise ValueError(
                f"expected observations (*batch, *{tuple(self.observation_shape)}), "
                f"got {tuple(observation.shape)}"
            )
        return observation.shape[:batch_dims]


class VectorEncoder(Encoder):
    """Flattens a vector to float32 features; it has no parameters.

    Args:
        observation_shape: Shape of one observation.

    Raises:
        UserError: If the observations are images.
    """

    def __init__(self, observation_shape: tuple[int, ...]) -> None:
        super().__init__(observation_shape)
        if len(observation_shape) == 3:
            raise UserError(
                f"VectorEncoder reads vectors, but the observations are images {tuple(observation_shape)}; "
                "use NatureCNN, ImpalaCNN or MinAtarCNN"
            )
        self.out_features = math.prod(observation_shape)

    def forward(self, observation: Tensor) -> Tensor:
        """Map ``(*batch, *observation_shape)`` to float32 ``(*batch, out_features)``.

        Raises:
            ValueError: If observations have another shape.
        """
        return observation.reshape(*self._batch_shape(observation), self.out_features).float()


class PixelEncoder(Encoder):
    """Base of the convolutional encoders; a subclass sets `convolutions` and `out_features`.

    Bytes are scaled to [0, 1]; pixels of other types are not scaled. Images are stored channels-last in
    memory, because convolutions are faster on this layout; shapes stay channels-first.

    Args:
        observation_shape: ``(channels, height, width)``; stacked frames are channels.
        norm: Normalization after each convolution.
        negative_slope: Slope of the activation below 0, from 0 (ReLU) to 1.

    Raises:
        UserError: If the observations are not images or are too small, or the normalization is unknown.
    """

    smallest_image: ClassVar[int] = 1
    """Smallest height and width for which the output has at least one position."""

    convolutions: nn.Module
    """Maps ``(batch, channels, height, width)`` to ``(batch, features, rows, columns)``."""

    def __init__(
        self, observation_shape: tuple[int, ...], norm: ImageNorm = "none", negative_slope: float = 0.0
    ) -> None:
        super().__init__(observation_shape)
        name = type(self).__name__
        require_choice(name, "norm", norm, ImageNorm)
        require_slope(name, negative_slope)
        self.gain = activation_gain("leaky_relu", negative_slope)
        if len(observation_shape) != 3:
            raise UserError(
                f"{name} reads images (channels, height, width), but the observations have shape "
                f"{tuple(observation_shape)}; use VectorEncoder"
            )
        _, height, width = observation_shape
        if min(height, width) < self.smallest_image:
            raise UserError(
                f"{name} needs images of at least {self.smallest_image} x {self.smallest_image} pixels, "
                f"got {height} x {width}"
            )

    @torch.no_grad()
    def _count_features(self) -> int:
        return self.convolutions(torch.zeros(1, *self.observation_shape)).numel()

    def forward(self, observation: Tensor) -> Tensor:
        """Map images ``(*batch, channels, height, width)`` to ``(*batch, out_features)``.

        Raises:
            ValueError: If images have another shape.
        """
        batch = self._batch_shape(observation)
        images = observation.reshape(batch.numel(), *self.observation_shape)
        # The layout of the image alone selects the convolution algorithm; the weights keep their layout.
        # Convert while pixels are still bytes, because that moves less memory.
        images = images.contiguous(memory_format=torch.channels_last)
        images = images / 255 if images.dtype == torch.uint8 else images.float()
        return self.convolutions(images).reshape(*batch, self.out_features)


class NatureCNN(PixelEncoder):
    """The three convolutions of Mnih et al. (2015); their layer of 512 units belongs to the trunk.

    Args:
        observation_shape: ``(channels, height, width)``; stacked frames are channels.
        norm: Normalization after each convolution, before its activation.
        negative_slope: Slope of the activation below 0, from 0 (ReLU) to 1.

    Raises:
        UserError: If the observations are not images or are smaller than 36 x 36, or the normalization is
            unknown.
    """

    smallest_image = 36

    def __init__(
        self, observation_shape: tuple[int, ...], norm: ImageNorm = "none", negative_slope: float = 0.0
    ) -> None:
        super().__init__(observation_shape, norm, negative_slope)
        self.convolutions = nn.Sequential(
            *_normalized(nn.Conv2d(observation_shape[0], 32, kernel_size=8, stride=4), norm),
            _rectifier(negative_slope),
            *_normalized(nn.Conv2d(32, 64, kernel_size=4, stride=2), norm),
            _rectifier(negative_slope),
            *_normalized(nn.Conv2d(64, 64, kernel_size=3, stride=1), norm),
            _rectifier(negative_slope),
        )
        self.out_features = self._count_features()


class MinAtarCNN(PixelEncoder):
    """The single convolution of Young and Tian (2019); their layer of 128 units belongs to the trunk.

    Args:
        observation_shape: ``(channels, height, width)``, at least 3 x 3.
        channels: Output channels.
        norm: Normalization after the convolution, before its activation.
        negative_slope: Slope of the activation below 0, from 0 (ReLU) to 1.

    Raises:
        UserError: If the observations are not images or are smaller than 3 x 3, the number of channels is not
            positive, or the normalization is unknown.
    """

    smallest_image = 3

    def __init__(
        self,
        observation_shape: tuple[int, ...],
        channels: int = 16,
        norm: ImageNorm = "none",
        negative_slope: float = 0.0,
    ) -> None:
        super().__init__(observation_shape, norm, negative_slope)
        require_positive(channels=channels)
        require_memory(
            f"weights of MinAtarCNN with {channels} channels", 36 * observation_shape[0] * channels
        )
        self.convolutions = nn.Sequential(
            *_normalized(nn.Conv2d(observation_shape[0], channels, kernel_size=3, stride=1), norm),
            _rectifier(negative_slope),
        )
        self.out_features = self._count_features()


class PooledCNN(PixelEncoder):
    """Blocks of 3 x 3 convolutions, each block with pooling and dropout at its end.

    The default is the network of the supervised experiments of Castanyer et al. (2025, arXiv 2506.15544), as
    in their code. It draws from the global generator in training, and not in evaluation.

    Args:
        observation_shape: ``(channels, height, width)``; each block halves height and width.
        channels: Output channels of each convolution, block by block.
        dropout: Probability that a block's channel is silenced for an image (Tompson et al. 2015).
        norm: Normalization after each convolution, before its activation.
        negative_slope: Slope of the activation below 0, from 0 (ReLU) to 1.

    Raises:
        UserError: If the observations are not images or are too small, or an option is out of range.
    """

    def __init__(
        self,
        observation_shape: tuple[int, ...],
        channels: tuple[tuple[int, ...], ...] = ((32, 64), (64, 128), (128, 128)),
        dropout: float = 0.2,
        norm: ImageNorm = "none",
        negative_slope: float = 0.0,
    ) -> None:
        super().__init__(observation_shape, norm, negative_slope)
        require_between(0, 1, dropout=dropout)
        blocks = [tuple(block) for block in channels]
        if not blocks or any(not block or min(block) < 1 for block in blocks):
            raise UserError(
                f"channels is {channels}; expected positive numbers, in a list for each block, such as "
                "[[32, 64], [64, 128]]"
            )
        smallest = 2 ** len(blocks)
        if min(observation_shape[1:]) < smallest:
            raise UserError(
                f"PooledCNN with {len(blocks)} blocks needs images of at least {smallest} x {smallest} "
                f"pixels, got {observation_shape[1]} x {observation_shape[2]}"
            )
        widths = [observation_shape[0], *(width for block in blocks for width in block)]
        weights = sum(9 * before * after for before, after in pairwise(widths))
        require_memory(f"weights of PooledCNN with channels {channels}", 4 * weights)
        layers: list[nn.Module] = []
        before = observation_shape[0]
        for block in blocks:
            for after in block:
                layers += _normalized(nn.Conv2d(before, after, kernel_size=3, padding=1), norm)
                layers.append(_rectifier(negative_slope))
                before = after
            layers += [nn.MaxPool2d(2), nn.Dropout2d(dropout)]
        self.convolutions = nn.Sequential(*layers)
        height, width = (size // smallest for size in observation_shape[1:])
        self.out_features = before * height * width


class ImpalaCNN(PixelEncoder):
    """The deep residual network of Espeholt et al. (2018), up to the ReLU after the last convolution.

    Each stage has a convolution, a max-pooling that halves the image, and two residual blocks.

    Args:
        observation_shape: ``(channels, height, width)``; stacked frames are channels.
        channels: Output channels of each stage.
        width_scale: Factor on all of ``channels``.
        norm: Normalization after each convolution; in a residual block, before the addition to the stream.
        negative_slope: Slope of the activation below 0, from 0 (ReLU) to 1.

    Raises:
        UserError: If the observations are not images, a number of channels is not positive, or the
            normalization is unknown.
    """

    def __init__(
        self,
        observation_shape: tuple[int, ...],
        channels: tuple[int, ...] = (16, 32, 32),
        width_scale: int = 1,
        norm: ImageNorm = "none",
        negative_slope: float = 0.0,
    ) -> None:
        super().__init__(observation_shape, norm, negative_slope)
        widths = [width_scale * count for count in channels]
        if not widths or min(widths) < 1:
            raise UserError(
                f"ImpalaCNN needs positive numbers of channels, got channels={tuple(channels)} times "
                f"width_scale={width_scale}"
            )
        weights = sum(9 * before * after + 36 * after**2 for before, after in pairwise([1, *widths]))
        require_memory(
            f"weights of ImpalaCNN with channels {tuple(channels)} times width_scale {width_scale}",
            4 * weights,
        )
        stages = [
            _impala_stage(before, after, norm, negative_slope)
            for before, after in pairwise([observation_shape[0], *widths])
        ]
        self.convolutions = nn.Sequential(*stages, _rectifier(negative_slope))
        self.out_features = self._count_features()


class _ImpalaBlock(nn.Module):
    def __init__(self, channels: int, norm: ImageNorm, negative_slope: float) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            _rectifier(negative_slope),
            *_normalized(nn.Conv2d(channels, channels, kernel_size=3, padding=1), norm),
            _rectifier(negative_slope),
            *_normalized(nn.Conv2d(channels, channels, kernel_size=3, padding=1), norm),
        )

    def forward(self, images: Tensor) -> Tensor:
        return images + self.branch(images)


def _impala_stage(in_channels: int, out_channels: int, norm: ImageNorm, negative_slope: float) -> nn.Module:
    return nn.Sequential(
        *_normalized(nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1), norm),
        nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        _ImpalaBlock(out_channels, norm, negative_slope),
        _ImpalaBlock(out_channels, norm, negative_slope),
    )


def _rectifier(negative_slope: float) -> nn.Module:
    return make_activation("leaky_relu", negative_slope) if negative_slope else nn.ReLU()


def _normalized(convolution: nn.Conv2d, norm: ImageNorm) -> list[nn.Module]:
    """List a convolution and its normalization, if there is one."""
    if norm == "none":
        return [convolution]
    # GroupNorm with one group is LayerNorm over (channels, rows, columns), but with a gain and a shift per
    # channel instead of per position. LayerNorm over the channels of each position, as in purejaxql, divides
    # by almost zero where the image is almost black. At initialization, the gradient of the first bias is
    # then the largest of all.
    return [convolution, nn.GroupNorm(1, convolution.out_channels)]


def default_encoder(observation_shape: tuple[int, ...]) -> Encoder:
    """Build the default encoder for an observation shape.

    Images of at least 36 x 36 pixels get `NatureCNN`, smaller ones `MinAtarCNN`. All other observations are
    flattened by `VectorEncoder`.

    Args:
        observation_shape: Shape of one observation; ``(channels, height, width)`` for images.

    Raises:
        UserError: If the images are too small for any encoder.
    """
    if len(observation_shape) != 3:
        return VectorEncoder(observation_shape)
    large = min(observation_shape[1:]) >= NatureCNN.smallest_image
    return NatureCNN(observation_shape) if large else MinAtarCNN(observation_shape)
