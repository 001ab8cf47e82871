"""Environments whose task changes in the course of a run, for work on plasticity."""

from __future__ import annotations

from lit_gfs.errors import UserError


class TaskStream:
    """Mixin of environments that play one task after the other, in a cycle.

    The schedule is a function of environment steps alone. The collector asks `task_at` before each rollout,
    calls `begin_task`, and resets all environments; open episodes are cut. An evaluation plays the task that
    was trained last.

    Args:
        tasks: Names of the tasks, in order.
        switch_every: Environment steps of the run, summed over all environments, between two switches. A
            switch waits for the end of a rollout.

    Raises:
        UserError: If a name is missing, or the period is less than 1.
    """

    def __init__(self, tasks: tuple[str, ...], switch_every: int) -> None:
        if not tasks:
            raise UserError("the stream has no tasks; expected at least one")
        if type(switch_every) is not int or switch_every < 1:
            raise UserError(f"switch_every is {switch_every!r}; expected a whole number of at least 1")
        self.tasks = tasks
        self.switch_every = switch_every
        self.task = 0
        """Index of the present task."""

    def task_at(self, env_steps: int) -> int:
        """Return the index of the task that is played from this number of environment steps on."""
        return env_steps // self.switch_every % len(self.tasks)

    def begin_task(self, task: int) -> None:
        """Change to a task; a reset of all environments must follow."""
        self.task = task
