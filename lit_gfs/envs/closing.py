"""Closing of environments: a failure there must not cost a run its results."""

from __future__ import annotations

import sys

from torchrl.envs import EnvBase

from lit_gfs.envs.activity import Unresponsive
from lit_gfs.envs.base import BatchedEnv
from lit_gfs.errors import STOPS, in_one_line


def close_env(env: EnvBase) -> None:
    """Close environments, under the watch of a step timeout; print a warning for one that fails to close."""
    if not isinstance(env, BatchedEnv):
        env.close()
        return
    activity = env.activity
    activity.index, activity.work = None, "closing"
    activity.calls += 1
    try:
        env.close()
    except STOPS:
        raise
    except BaseException as error:
        what = str(error) if isinstance(error, Unresponsive) else f"raised {in_one_line(error)} on closing"
        print(f"lit_gfs: warning: {env.env_id} {what}; it is left open", file=sys.stderr)
    finally:
        activity.calls += 1
        leave_open(env)


def leave_open(env: EnvBase) -> None:
    """Mark environments as closed: otherwise TorchRL closes them when they are deleted."""
    env.is_closed = True
