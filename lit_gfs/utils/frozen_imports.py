"""The last import of a process that forks others: their garbage collectors leave all earlier imports alone.

A collector takes a third of a second to go through hundreds of thousands of objects, and a fork copies each
page of memory that it marks.
"""

from __future__ import annotations

import gc

gc.collect()
gc.freeze()
