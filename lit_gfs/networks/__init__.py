"""Networks: an encoder for the observation, a trunk of variable depth, and heads for the outputs."""

from lit_gfs.networks.branch_factors import BranchFactor, ConstantFactor, TrainedFactor
from lit_gfs.networks.components import CReLU, FourierFeatures
from lit_gfs.networks.copies import frozen, move_towards_
from lit_gfs.networks.encoders import (
    Encoder,
    ImpalaCNN,
    MinAtarCNN,
    NatureCNN,
    PixelEncoder,
    PooledCNN,
    VectorEncoder,
    default_encoder,
)
from lit_gfs.networks.heads import ActionValueHead, LinearHead
from lit_gfs.networks.layer_names import numbered_layers
from lit_gfs.networks.layers import is_hidden_matrix, named_layers
from lit_gfs.networks.network import EncoderFactory, Initialization, Network, TrunkFactory
from lit_gfs.networks.noise import NoisyLinear
from lit_gfs.networks.normalization import RunningNorm
from lit_gfs.networks.simba import SimbaTrunk
from lit_gfs.networks.trunks import (
    DenseTrunk,
    MultiSkipBranch,
    MultiSkipTrunk,
    PlainTrunk,
    ResidualBranch,
    ResidualTrunk,
    Trunk,
)

__all__ = [
    "ActionValueHead",
    "BranchFactor",
    "CReLU",
    "ConstantFactor",
    "DenseTrunk",
    "Encoder",
    "EncoderFactory",
    "FourierFeatures",
    "ImpalaCNN",
    "Initialization",
    "LinearHead",
    "MinAtarCNN",
    "MultiSkipBranch",
    "MultiSkipTrunk",
    "NatureCNN",
    "Network",
    "NoisyLinear",
    "PixelEncoder",
    "PlainTrunk",
    "PooledCNN",
    "ResidualBranch",
    "ResidualTrunk",
    "RunningNorm",
    "SimbaTrunk",
    "TrainedFactor",
    "Trunk",
    "TrunkFactory",
    "VectorEncoder",
    "default_encoder",
    "frozen",
    "is_hidden_matrix",
    "move_towards_",
    "named_layers",
    "numbered_layers",
]
