"""Silence messages of libraries that do not concern the user, so that the others are seen.

Every entry names one message. No entry silences a whole category or library: warnings about NaN, about the
user's own code, or about a choice that the user can change (a deprecated environment id, a resumed loader
without state, an idle GPU) stay visible.
"""

from __future__ import annotations

import logging
import re
import warnings

WARNINGS: tuple[tuple[str, type[Warning], str], ...] = (
    # An epoch here is one rollout or one stretch between evaluations: often shorter than the log interval.
    (r"The number of training batches \(\d+\) is smaller than the logging interval", Warning, r"lightning\."),
    # Collection happens in the loader's process by design; DataLoader workers would not speed it up.
    (r"The '\w+' does not have many workers which may be a bottleneck", Warning, r"lightning\."),
    # A loader yields None on purpose, to skip the rest of a rollout.
    (r"train_dataloader yielded None", Warning, r"lightning\."),
    # A resumed run continues in its own directory.
    (r"Checkpoint directory .* exists and is not empty", Warning, r"lightning\."),
    # `validate` and `test` load weights and write no checkpoints; any other missing callback is still named.
    (
        r"Be aware that when using `ckpt_path`, callbacks used to create the checkpoint need to be provided"
        r" during `Trainer` instantiation\. Please add the following callbacks:"
        r""" \["(Best|Last|Model)Checkpoint\{[^}]*\}"(, "(Best|Last|Model)Checkpoint\{[^}]*\}")*\]\.$""",
        Warning,
        r"lightning\.",
    ),
    # Shown wherever a Slurm client is installed, even if the run is meant for this machine alone.
    (r"The `srun` command is available on your system but is not used", Warning, r"lightning\."),
    # Lightning's own use of PyTorch: `isinstance` on a private tree type.
    (r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning, r"lightning\.pytorch\.utilities\."),
    # TorchRL derives classes from its own deprecated base class when it is imported.
    (
        r"Creating (Vanilla|MultiProcessed|RemoteModule|Ray)WeightUpdater"
        r" which inherits from WeightUpdaterBase is deprecated",
        DeprecationWarning,
        r"abc$",
    ),
    # Remote collectors get their weights with each request for a rollout.
    (r"RayCollector iteration started before weight synchronization was initialized", Warning, r"torchrl\."),
    (r"The policy is not an nn\.Module\. TorchRL will assume that the parameter set", Warning, r"torchrl\."),
    # TensorBoard releases that still import setuptools' old interface.
    (r"pkg_resources is deprecated as an API", Warning, r"tensorboard"),
)
"""Message (a regular expression for its start), category and module (for the start of its name)."""

LOG_LINES: dict[str, tuple[str, ...]] = {
    "lightning.pytorch.utilities.rank_zero": (
        r"💡 Tip: ",  # advertises Lightning's hosted products
        # The available hardware. The separate warning about an unused GPU stays.
        r"(GPU|TPU|IPU|HPU) available: ",
        # It suggests another precision of matrix products, which a configuration cannot change.
        r"You are using a CUDA device \(",
        r"-+\ndistributed_backend=",  # the number of processes, in a frame
        r"`Trainer\.fit` stopped: `max_epochs=",  # the normal end of a run
    ),
    "lightning.fabric.utilities.distributed": (r"Initializing distributed: ",),
    "lightning.fabric.utilities.seed": (r"(\[rank: \d+\] )?Seed set to ",),  # it is in the run's config
    "lightning.pytorch.accelerators.cuda": (r"LOCAL_RANK: \d+ - CUDA_VISIBLE_DEVICES: ",),
    "torchrl": (r"Initialized \w*Storage with ",),  # the storage's shape, on the first write
}
"""Starts of log lines (regular expressions), by the logger that writes them."""


class _DropLines(logging.Filter):
    """Drops records whose message starts with one of the patterns."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        super().__init__()
        self._pattern = re.compile("|".join(patterns))

    def filter(self, record: logging.LogRecord) -> bool:
        return self._pattern.match(record.getMessage()) is None


_FILTERS = {name: _DropLines(patterns) for name, patterns in LOG_LINES.items()}


def silence_library_noise() -> None:
    """Drop messages of libraries that a user cannot act on.

    Call it before importing ``lightning`` and ``torchrl``, because their import writes some of the messages.
    A second call is harmless, and puts the filters in front of those added since.
    """
    for message, category, module in WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category, module=module)
    for name, line_filter in _FILTERS.items():
        logging.getLogger(name).addFilter(line_filter)
