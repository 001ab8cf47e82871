"""Callbacks that reset something, two by two and all together, and on a network with dead units."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from lit_gfs.agents.classifier import Classifier
from lit_gfs.callbacks import AdamResets, AdaptiveGradientClipping, LayerResets, ReDo, ReGraMa
from lit_gfs.callbacks.named import in_order
from lit_gfs.datamodules import LabelShuffleDataModule
from lit_gfs.networks import PlainTrunk
from support.fakes import Records
from support.intervened import fit
from support.probed import Chain
from support.training import MakeTrainer, weights

RESETS: dict[str, Callable[[], Callback]] = {
    "redo": lambda: ReDo(every_n_steps=2, tau=0.5),
    "grama": lambda: ReGraMa(every_n_steps=3, tau=0.5),
    "layer_resets": lambda: LayerResets(every=4),
    "adam_resets": lambda: AdamResets(every_n_steps=3),
    "adaptive_gradient_clipping": AdaptiveGradientClipping,
}


@pytest.mark.parametrize("pair", combinations(RESETS, 2), ids="+".join)
def test_two_work_beside_each_other(pair: tuple[str, str]) -> None:
    found = {}
    for chosen in (pair, pair[:1], pair[1:]):
        module = Chain()
        rows = fit(module, in_order(RESETS[key]() for key in chosen), 10)
        found[chosen] = weights(module)
        tags = {tag.split("/")[1] for row in rows.values() for tag in row if tag.startswith("intervention/")}
        assert tags == set(chosen)
    assert found[pair].isfinite().all()
    # Both have an effect.
    assert not torch.equal(found[pair], found[pair[:1]])
    assert not torch.equal(found[pair], found[pair[1:]])


@pytest.mark.parametrize("make", [None, ReDo, ReGraMa], ids=["nothing", "redo", "grama"])
def test_a_network_with_a_dead_layer_learns_shuffled_labels_again(
    make: Callable[..., Callback] | None, make_trainer: MakeTrainer
) -> None:
    """A layer dies when the labels are shuffled. Without resets, all that is left are biases."""

    class Kill(Callback):
        def on_objective_shift(self, trainer: Trainer, pl_module: LightningModule, reason: str) -> None:
            assert isinstance(pl_module, Classifier)
            with torch.no_grad():
                pl_module.network.trunk.layers[3].bias.fill_(-100.0)

    seed_everything(0)
    data = LabelShuffleDataModule(
        samples=128, batch_size=64, shuffle_every=40, epochs=80, eval_every=80, seed=0
    )
    model = Classifier(
        data.env_spec,
        trunk=lambda features: PlainTrunk(features, 3, 64),
        optimizer=lambda parameters: torch.optim.Adam(parameters, 3e-3),
    )
    records = Records("eval/phase_accuracy")
    resets = [] if make is None else [make(every_n_steps=10)]

    make_trainer(callbacks=[Kill(), *resets], logger=records).fit(model, data)

    before, after = (row["eval/phase_accuracy"] for row in records.rows.values())
    assert before == 1.0
    assert after < 0.25 if make is None else after > 0.8
