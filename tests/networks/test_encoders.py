from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor, nn
from torch.nn import functional

from lit_gfs.errors import UserError
from lit_gfs.networks import (
    Encoder,
    ImpalaCNN,
    MinAtarCNN,
    NatureCNN,
    Network,
    PlainTrunk,
    PooledCNN,
    VectorEncoder,
    default_encoder,
    named_layers,
)

FRAMES = (4, 84, 84)


@pytest.mark.parametrize(
    ("encoder", "features"),
    [
        (NatureCNN(FRAMES), 64 * 7 * 7),
        (NatureCNN((3, 64, 64)), 64 * 4 * 4),
        (NatureCNN((1, 36, 36)), 64),
        (ImpalaCNN(FRAMES), 32 * 11 * 11),
        (ImpalaCNN(FRAMES, channels=(8, 8), width_scale=2), 16 * 21 * 21),
        (ImpalaCNN((3, 64, 48)), 32 * 8 * 6),
        (MinAtarCNN((4, 10, 10)), 16 * 8 * 8),
        (MinAtarCNN((3, 7, 5), channels=2), 2 * 5 * 3),
        (MinAtarCNN((1, 3, 3)), 16),
    ],
)
def test_pixel_encoders_count_their_features(encoder: Encoder, features: int) -> None:
    assert encoder.out_features == features
    image = torch.zeros(encoder.observation_shape, dtype=torch.uint8)
    assert encoder(image).shape == (features,)


@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("build", [NatureCNN, partial(ImpalaCNN, channels=(4,)), MinAtarCNN])
def test_any_batch_dimensions_give_the_features_of_single_images(
    build: Callable[..., Encoder], norm: str
) -> None:
    encoder = build((2, 40, 40), norm=norm)
    images = torch.randint(0, 256, (2, 3, 2, 40, 40), dtype=torch.uint8)

    features = encoder(images)

    assert features.shape == (2, 3, encoder.out_features)
    torch.testing.assert_close(features[1, 2], encoder(images[1, 2]))
    torch.testing.assert_close(features[0], encoder(images[0]))
    assert encoder(images[:0]).shape == (0, 3, encoder.out_features)


@pytest.mark.parametrize(
    "encoder", [NatureCNN((1, 36, 36)), ImpalaCNN((1, 36, 36), channels=(4,)), MinAtarCNN((1, 36, 36))]
)
def test_bytes_are_scaled_to_the_unit_interval(encoder: Encoder) -> None:
    images = torch.randint(0, 256, (5, 1, 36, 36), dtype=torch.uint8)

    torch.testing.assert_close(encoder(images), encoder(images.double() / 255))


@pytest.mark.parametrize(
    "encoder",
    [NatureCNN(FRAMES), ImpalaCNN(FRAMES), NatureCNN(FRAMES, norm="layer"), ImpalaCNN(FRAMES, norm="layer")],
)
def test_gradient_reaches_every_layer_and_features_are_rectified(encoder: Encoder) -> None:
    features = encoder(torch.randint(0, 256, (8, *FRAMES), dtype=torch.uint8))
    features.square().sum().backward()

    assert features.min() == 0
    assert features.max() > 0
    gradients = {name: parameter.grad for name, parameter in encoder.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.any()] == []


def test_networks_have_the_published_layers() -> None:
    def convolutions(encoder: Encoder) -> list[tuple[int, int, int, int]]:
        found = [layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d)]
        return [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0]) for c in found]

    assert convolutions(NatureCNN(FRAMES)) == [(4, 32, 8, 4), (32, 64, 4, 2), (64, 64, 3, 1)]
    # kenjyoung/MinAtar, examples/dqn.py.
    assert convolutions(MinAtarCNN((4, 10, 10))) == [(4, 16, 3, 1)]
    # Espeholt et al. 2018, figure 3: 15 convolutions, 5 a stage.
    assert convolutions(ImpalaCNN(FRAMES)) == [
        *[(4, 16, 3, 1), *[(16, 16, 3, 1)] * 4],
        *[(16, 32, 3, 1), *[(32, 32, 3, 1)] * 4],
        *[(32, 32, 3, 1)] * 5,
    ]


def test_impala_blocks_are_residual() -> None:
    encoder = ImpalaCNN((2, 16, 16), channels=(4,))
    stage = encoder.convolutions[0]
    for block in (stage[2], stage[3]):
        nn.init.zeros_(block.branch[-1].weight)
        nn.init.zeros_(block.branch[-1].bias)
    images = torch.rand(3, 2, 16, 16)

    torch.testing.assert_close(encoder(images), stage[1](stage[0](images)).relu().flatten(1))


class ByHand:
    """Applies an encoder's convolutions, and what normalizes each, in their order."""

    def __init__(self, encoder: Encoder) -> None:
        for parameter in encoder.parameters():
            nn.init.normal_(parameter, std=0.3)  # so that an exchanged or forgotten layer changes the output
        self.layers = iter(named_layers(encoder).values())

    def __call__(self, images: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        convolution, norm = next(self.layers), next(self.layers)
        images = functional.conv2d(images, convolution.weight, convolution.bias, stride, padding)
        centred = images - images.mean((1, 2, 3), keepdim=True)
        deviation = (centred.square().mean((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        return centred / deviation * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)

    def all_used(self) -> bool:
        return next(self.layers, None) is None


def test_nature_normalizes_each_convolution_over_channels_and_positions() -> None:
    encoder = NatureCNN((2, 44, 52), norm="layer")
    normalized, images = ByHand(encoder), torch.rand(3, 2, 44, 52)

    expected = normalized(images, stride=4).relu()
    expected = normalized(expected, stride=2).relu()
    expected = normalized(expected).relu()

    assert normalized.all_used()
    torch.testing.assert_close(encoder(images), expected.flatten(1), rtol=1e-4, atol=1e-4)


def test_minatar_normalizes_its_convolution() -> None:
    encoder = MinAtarCNN((2, 10, 7), norm="layer")
    normalized, images = ByHand(encoder), torch.rand(3, 2, 10, 7)

    expected = normalized(images).relu()

    assert normalized.all_used()
    torch.testing.assert_close(encoder(images), expected.flatten(1), rtol=1e-4, atol=1e-4)


def test_binary_images_are_zeros_and_ones() -> None:
    encoder = MinAtarCNN((4, 10, 10))
    images = torch.rand(5, 4, 10, 10) < 0.3

    torch.testing.assert_close(encoder(images), encoder(images.float()), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 84, 84), NatureCNN),
        ((1, 36, 36), NatureCNN),
        ((1, 36, 35), MinAtarCNN),
        ((10, 10, 10), MinAtarCNN),
        ((3, 7, 7), MinAtarCNN),
        ((17,), VectorEncoder),
        ((2, 3), VectorEncoder),
        ((), VectorEncoder),
    ],
)
def test_the_default_encoder_reads_what_there_is(shape: tuple[int, ...], expected: type[Encoder]) -> None:
    encoder = default_encoder(shape)

    assert type(encoder) is expected
    assert encoder(torch.zeros(2, *shape)).shape == (2, encoder.out_features)


def test_impala_normalizes_each_convolution_before_it_is_pooled_or_added() -> None:
    encoder = ImpalaCNN((2, 12, 16), channels=(4, 6), norm="layer")
    normalized, images = ByHand(encoder), torch.rand(3, 2, 12, 16)

    stream = images
    for _ in range(2):
        stream = functional.max_pool2d(normalized(stream, padding=1), 3, 2, 1)
        for _ in range(2):
            hidden = normalized(stream.relu(), padding=1)
            stream = stream + normalized(hidden.relu(), padding=1)

    assert normalized.all_used()
    torch.testing.assert_close(encoder(images), stream.relu().flatten(1), rtol=1e-4, atol=1e-4)


def test_almost_black_regions_do_not_swell_a_gradient() -> None:
    torch.manual_seed(0)
    encoder = NatureCNN(FRAMES, norm="layer")
    for layer in encoder.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)
    images = torch.rand(8, *FRAMES)
    images[..., :42] = 1 / 255

    encoder(images).backward(torch.randn(8, encoder.out_features))

    first = encoder.convolutions[0]
    assert first.bias.grad.norm() < first.weight.grad.norm()


def test_without_normalization_nothing_stands_in_its_place() -> None:
    assert list(NatureCNN(FRAMES).state_dict()) == [
        f"convolutions.{index}.{name}" for index in (0, 2, 4) for name in ("weight", "bias")
    ]
    assert list(named_layers(ImpalaCNN(FRAMES, channels=(4,)))) == [
        "convolutions.0.0",
        *(f"convolutions.0.{block}.branch.{index}" for block in (2, 3) for index in (1, 3)),
    ]


@pytest.mark.parametrize("build", [NatureCNN, ImpalaCNN, MinAtarCNN])
def test_other_normalizations_are_refused(build: type[Encoder]) -> None:
    with pytest.raises(
        UserError, match=rf"^{build.__name__} has no norm 'rms'; expected one of layer, none$"
    ):
        build(FRAMES, norm="rms")
    with pytest.raises(UserError, match="did you mean 'layer'"):
        build(FRAMES, norm="layr")


def test_the_command_line_knows_the_normalizations() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(NatureCNN, "encoder", skip={"observation_shape"})

    assert parser.parse_args(["--encoder.norm", "layer"]).encoder.norm == "layer"
    with pytest.raises(ArgumentError, match="'layer', 'none'"):
        parser.parse_args(["--encoder.norm", "rms"])


@pytest.mark.parametrize(("shape", "features"), [((5,), 5), ((2, 3), 6), ((), 1)])
def test_vector_encoder_flattens_to_float(shape: tuple[int, ...], features: int) -> None:
    encoder = VectorEncoder(shape)
    observation = torch.randint(-9, 9, (4, 2, *shape))

    encoded = encoder(observation)

    assert encoder.out_features == features
    assert list(encoder.parameters()) == []
    assert encoded.dtype == torch.float32
    assert encoded.tolist() == observation.reshape(4, 2, features).tolist()


@pytest.mark.parametrize("build", [NatureCNN, ImpalaCNN, MinAtarCNN])
@pytest.mark.parametrize("shape", [(17,), (), (2, 3)])
def test_pixel_encoders_refuse_vectors(build: type[Encoder], shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"use VectorEncoder$"):
        build(shape)


def test_vector_encoder_refuses_images() -> None:
    with pytest.raises(UserError, match=r"images \(4, 84, 84\); use NatureCNN, ImpalaCNN or MinAtarCNN$"):
        VectorEncoder(FRAMES)


def test_too_small_images_are_refused() -> None:
    with pytest.raises(UserError, match="at least 36 x 36 pixels, got 35 x 84"):
        NatureCNN((4, 35, 84))
    with pytest.raises(UserError, match="at least 3 x 3 pixels, got 2 x 9"):
        default_encoder((4, 2, 9))


def test_impala_refuses_channels_that_are_not_positive() -> None:
    with pytest.raises(UserError, match="positive numbers of channels"):
        ImpalaCNN(FRAMES, width_scale=0)
    with pytest.raises(UserError, match="positive numbers of channels"):
        ImpalaCNN(FRAMES, channels=())


def test_minatar_refuses_channels_that_are_not_positive() -> None:
    with pytest.raises(UserError, match="channels is 0; expected a whole number of at least 1"):
        MinAtarCNN((4, 10, 10), channels=0)


def test_observations_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected observations .*got \(7, 4\)"):
        VectorEncoder((5,))(torch.zeros(7, 4))


@pytest.mark.parametrize("build", [NatureCNN, ImpalaCNN, MinAtarCNN])
def test_a_leaky_encoder_has_its_slope_everywhere_and_the_gain_of_it(build: type[Encoder]) -> None:
    relu = build((4, 36, 36))
    network = Network((4, 36, 36), partial(build, negative_slope=0.5), PlainTrunk, "orthogonal")

    slopes = [each.negative_slope for each in network.encoder.modules() if isinstance(each, nn.LeakyReLU)]

    assert slopes == [0.5] * sum(isinstance(each, nn.ReLU) for each in relu.modules())
    assert not any(isinstance(each, nn.ReLU) for each in network.encoder.modules())
    for part, gain in ((network.encoder, 1.6**0.5), (network.trunk, 2**0.5)):
        for layer in part.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                singular = torch.linalg.svdvals(layer.weight.detach().flatten(1))
                torch.testing.assert_close(singular, torch.full_like(singular, gain), rtol=1e-4, atol=0)
    with pytest.raises(UserError, match=r"negative_slope 2\.0; expected a number from 0 to 1"):
        build((4, 36, 36), negative_slope=2.0)


# -- pooled blocks ---------------------------------------------------------------------------------------


def test_pooled_blocks_are_those_of_the_paper() -> None:
    encoder = PooledCNN((3, 32, 32))
    kinds = [type(layer).__name__ for layer in encoder.convolutions]
    block = ["Conv2d", "ReLU", "Conv2d", "ReLU", "MaxPool2d", "Dropout2d"]
    assert kinds == 3 * block
    widths = [layer.out_channels for layer in encoder.convolutions if isinstance(layer, nn.Conv2d)]
    assert widths == [32, 64, 64, 128, 128, 128]
    assert encoder.out_features == 2_048 == encoder(torch.rand(2, 3, 32, 32)).shape[1]


def test_pooled_blocks_by_hand() -> None:
    encoder = PooledCNN((2, 8, 12), channels=((3,), (4,)), dropout=0.5).eval()
    images = torch.rand(3, 2, 8, 12)
    first, second = (layer for layer in encoder.convolutions if isinstance(layer, nn.Conv2d))
    hidden = functional.max_pool2d(functional.conv2d(images, first.weight, first.bias, padding=1).relu(), 2)
    hidden = functional.max_pool2d(functional.conv2d(hidden, second.weight, second.bias, padding=1).relu(), 2)
    torch.testing.assert_close(encoder(images), hidden.flatten(1))
    assert encoder.out_features == 4 * 2 * 3


def test_dropout_silences_whole_channels_in_training_alone() -> None:
    torch.manual_seed(0)
    encoder = PooledCNN((1, 4, 4), channels=((400,),), dropout=0.25)
    nn.init.constant_(encoder.convolutions[0].bias, 10.0)  # no channel is silent by itself
    channels = encoder(torch.rand(1, 1, 4, 4)).view(400, 4)
    silent = (channels == 0).all(1)
    assert torch.equal(silent, (channels == 0).any(1))
    assert 0.18 < silent.float().mean() < 0.32  # more than three standard deviations around a quarter
    assert (encoder.eval()(torch.rand(1, 1, 4, 4)) > 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": ()}, r"channels is \(\); expected positive numbers, in a list for each block"),
        ({"channels": ((8, 0),)}, "expected positive numbers"),
        ({"dropout": 1.5}, "dropout is 1.5; expected"),
        (
            {"channels": ((8,),) * 4},
            "PooledCNN with 4 blocks needs images of at least 16 x 16 pixels, got 8 x 8",
        ),
    ],
)
def test_pooled_blocks_refuse_what_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PooledCNN((1, 8, 8), **options)
