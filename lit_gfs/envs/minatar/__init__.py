"""The games of MinAtar (Young and Tian 2019, arXiv 1903.03176), many at a time."""

from __future__ import annotations

from lit_gfs.envs.minatar.env import BATCHED_GAMES, MinAtarEnv
from lit_gfs.envs.minatar.seaquest import SeaquestEnv
from lit_gfs.envs.minatar.stream import MinAtarStream
from lit_gfs.envs.suites import Suite

__all__ = ["SUITE", "MinAtarEnv", "MinAtarStream", "SeaquestEnv", "minatar_games"]


def minatar_games() -> dict[str, type[MinAtarEnv] | type[SeaquestEnv]]:
    """Map ``MinAtar/<Game>-v0`` (all six actions) and ``-v1`` (those that do something) to classes.

    ``MinAtar/Stream-v0`` plays several games by turns.
    """
    single: dict[str, type[MinAtarEnv] | type[SeaquestEnv]] = {
        f"MinAtar/{name}-{version}": MinAtarEnv if name in BATCHED_GAMES else SeaquestEnv
        for name in (*BATCHED_GAMES, "Seaquest")
        for version in ("v0", "v1")
    }
    return {**single, "MinAtar/Stream-v0": MinAtarStream}


SUITE = Suite(ids=minatar_games, env_class=lambda env_id: minatar_games()[env_id])
