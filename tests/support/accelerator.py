"""Where end-to-end tests train: on what the environment variable ``ACCELERATOR`` names, by default the CPU.

Trainers of tests are given `ACCELERATOR`. The command line takes what is there, so that GPUs are hidden from
tests on the CPU and from the processes that they start. With ``ACCELERATOR=standin`` all that trains in the
tests' own process does so on the stand-in for a GPU, see `standin`. That shows where a test itself mixes
devices; 16-bit precision, sparse gradients, forks and TorchRL's own rollouts are beyond it.
"""

from __future__ import annotations

import os

ACCELERATOR = os.environ.setdefault("ACCELERATOR", "cpu")

if ACCELERATOR != "cuda":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
# Asked otherwise, CUDA would be begun in the process that tests fork others from.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"

if ACCELERATOR == "standin":
    from support import standin

    standin.register()

TOLERANCE = 0.0 if ACCELERATOR == "cpu" else 1e-3
"""By how much a resumed run may end differently: the kernels of a GPU add in no fixed order."""
