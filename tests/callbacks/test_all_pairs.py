"""All interventions two by two: each pair learns shuffled labels for a few steps, and both members act."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from typing import Any

import pytest
import torch

from lit_gfs.agents.classifier import Classifier
from lit_gfs.callbacks import GradientNormalization, TemporalGradientClipping
from lit_gfs.callbacks.named import INTERVENTIONS, in_order
from lit_gfs.configuration.method_names import METHOD_NAMES
from lit_gfs.datamodules import LabelShuffleDataModule
from lit_gfs.networks import PlainTrunk
from support.training import MakeTrainer, weights

EARLY: dict[str, dict[str, Any]] = {
    "path_init": {"mirrored": True},
    "layer_rates": {"hidden_factor": 0.5},
    "temporal_clipping": {"warmup": 2, "shift_grace": 0, "z_threshold": 0.1},
    "churn_penalty": {"warmup": 2},
    "update_clipping": {"threshold": 0.1},
    "shrink_and_perturb": {"shrink": 0.99},
    "redo": {"every_n_steps": 2, "tau": 0.5},
    "grama": {"every_n_steps": 3, "tau": 0.5},
    "layer_resets": {"every": 3},
}
"""Arguments by which an intervention acts within twelve steps."""
KEYS = [key for key in INTERVENTIONS if key in METHOD_NAMES]
NEIGHBOURS = set(zip(KEYS, [*KEYS[1:], KEYS[0]], strict=True))
# Neighbours of a ring have every intervention twice; the slow tests have all pairs.
PAIRS = [
    pytest.param(pair, marks=() if pair in NEIGHBOURS or pair[::-1] in NEIGHBOURS else pytest.mark.slow)
    for pair in combinations(KEYS, 2)
]


def learned(keys: tuple[str, ...], make_trainer: MakeTrainer) -> torch.Tensor:
    """Return the weights after twelve steps with these interventions."""
    torch.manual_seed(0)
    data = LabelShuffleDataModule(samples=64, batch_size=16, shuffle_every=1, epochs=3, eval_every=9, seed=0)
    model = Classifier(data.env_spec, trunk=partial(PlainTrunk, depth=3, width=16))
    callbacks = in_order(INTERVENTIONS[key](**EARLY.get(key, {})) for key in keys)
    make_trainer(callbacks=callbacks).fit(model, data)
    return weights(model)


ALONE: dict[str, torch.Tensor] = {}
"""Weights that each intervention leaves alone: two pairs have it."""


def learned_alone(key: str, make_trainer: MakeTrainer) -> torch.Tensor:
    if key not in ALONE:
        ALONE[key] = learned((key,), make_trainer)
    return ALONE[key]


def test_every_intervention_is_here() -> None:
    assert {"redo", "l2_init", "weight_projection", "path_init"} < set(KEYS)
    assert len(NEIGHBOURS) == len(KEYS) >= 20
    assert {TemporalGradientClipping, GradientNormalization} < {INTERVENTIONS[key] for key in KEYS}


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_two_interventions_work_beside_each_other(pair: tuple[str, str], make_trainer: MakeTrainer) -> None:
    both = learned(pair, make_trainer)
    assert both.isfinite().all()
    for key in pair:
        assert not torch.equal(both, learned_alone(key, make_trainer)), key
