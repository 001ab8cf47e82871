"""Closing environments, which must not cost a run what it has achieved."""

from __future__ import annotations

import sys

from torchrl.envs import EnvBase

from lit_gfs.envs.base import BatchedEnv, Unresponsive
from lit_gfs.errors import STOPS, in_one_line


def close_env(env: EnvBase) -> None:
    """Close environments, visibly to who watches them; one that fails at it is told on stderr, and left."""
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
    """Have nobody close environments any more, as TorchRL does when it throws them away."""
    env.is_closed = True
