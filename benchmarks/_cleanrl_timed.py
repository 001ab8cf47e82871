"""Runs a script of CleanRL or LeanRL and notes the clock whenever the script tells its speed.

    python _cleanrl_timed.py OUTPUT SECONDS CLOCK SCRIPT [OPTION ...]

It runs in the script's own environment, and needs only the standard library. CleanRL's scripts print their
speed, LeanRL's show it beside a bar of tqdm. OUTPUT becomes a JSON object with
`lines`, pairs of the clock (s) and the script's `global_step`, and the script's settings. CLOCK is `wall` or
`cpu`; it is read within the script's process, so a late reader of the script's output does not matter. The
process ends with the first such line after SECONDS.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import platform
import runpy
import sys
import time
from pathlib import Path
from typing import Any

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

FEWEST_LINES = 6
"""Minimum number of lines of speed, regardless of the time."""

LIBRARIES = ("torch", "numpy", "gymnasium", "gym", "ale_py", "envpool")


class SpeedLines:
    """Replacement of `print` and of a bar's `set_description`: it also notes the clock and the script's step
    count at each speed.

    Args:
        output: The file to write.
        seconds: Wall time of the script from its first speed on.
        clock: Name of the clock to note.
    """

    def __init__(self, output: Path, seconds: float, clock: str) -> None:
        self._output = output
        self._seconds = seconds
        self._clock = CLOCKS[clock]
        self._print = builtins.print
        self._began = 0.0
        self._lines: list[tuple[float, int]] = []
        self._script: dict[str, Any] = {}

    def __call__(self, *values: Any, **options: Any) -> None:
        self._print(*values, **options)
        if values and str(values[0]).startswith("SPS"):
            self._note(sys._getframe(1).f_globals)

    def watch_bars(self) -> None:
        """Note the speeds beside the bars of tqdm, if it is installed."""
        try:
            from tqdm import tqdm
        except ImportError:
            return
        show = tqdm.set_description

        def set_description(bar: Any, text: str | None = None, *arguments: Any, **options: Any) -> None:
            show(bar, text, *arguments, **options)
            if (text or "").startswith("speed:"):
                self._note(sys._getframe(1).f_globals)

        tqdm.set_description = set_description

    def _note(self, script: dict[str, Any]) -> None:
        # The step count is a variable of the script, because the number of steps between two lines varies.
        self._script = script
        self._lines.append((self._clock(), int(self._script["global_step"])))
        now = time.perf_counter()
        self._began = self._began or now
        if now - self._began >= self._seconds and len(self._lines) >= FEWEST_LINES:
            self.write()
            # End here, without the end of the script: training is far from over.
            os._exit(0)

    def write(self) -> None:
        """Write the data so far."""
        torch = sys.modules.get("torch")
        known = {
            "lines": self._lines,
            "num_envs": getattr(self._script.get("args"), "num_envs", None),
            "threads": torch.get_num_threads() if torch else None,
            "versions": {
                "python": platform.python_version(),
                **{
                    name: getattr(sys.modules[name], "__version__", None)
                    for name in LIBRARIES
                    if name in sys.modules
                },
            },
        }
        self._output.write_text(json.dumps(known))


def main() -> None:
    output, seconds, clock, script, *options = sys.argv[1:]
    # The import registers its games with gymnasium; CleanRL's scripts leave this to gymnasium.
    with contextlib.suppress(ImportError):
        import ale_py  # noqa: F401
    speeds = SpeedLines(Path(output), float(seconds), clock)
    builtins.print = speeds
    speeds.watch_bars()
    sys.argv = [script, *options]
    sys.path[0] = str(Path(script).parent)
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        speeds.write()


if __name__ == "__main__":
    main()
