"""The few scalars that tell how a run goes, as copies in a group that TensorBoard shows first.

TensorBoard sorts groups by their names, capitals before small letters, and opens the first two. It sorts the
charts of a group too, so numbers keep them in the order of reading: returns, features, gradients, and how
much the interventions did.
"""

from __future__ import annotations

from collections.abc import Mapping

OVERVIEW = {
    "eval/episode_return": "Overview/1_evaluation_return",
    "eval/accuracy": "Overview/1_evaluation_accuracy",
    "train/episode_return": "Overview/2_training_return",
    "train/accuracy": "Overview/2_training_accuracy",
    "representation/effective_rank": "Overview/3_effective_rank",
    "representation/dormant_share": "Overview/4_dormant_share",
    "gradient_flow/max_min_ratio": "Overview/5_gradient_ratio",
    "gradient_flow/global_norm": "Overview/6_gradient_norm",
    "gradient_flow/shortened_layers": "Overview/7_shortened_layers",
    "intervention/temporal_clipping/clipped_layers": "Overview/8_clipped_layers",
    "intervention/gradient_normalization/scale": "Overview/9_normalization_scale",
    "intervention/update_normalization/scale": "Overview/9_update_scale",
}
"""Copies by the tags of their originals."""


def overview_of(scalars: Mapping[str, float]) -> dict[str, float]:
    """Return the copies of those scalars that belong to the overview."""
    return {OVERVIEW[tag]: value for tag, value in scalars.items() if tag in OVERVIEW}
