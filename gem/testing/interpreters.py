"""Other Python processes, in which strings hash otherwise: to find what depends on the process.

They are started once, and play everything that is sent to them, one environment after another: so what they find is
also what depends on the environments that were played before.
"""

from __future__ import annotations

import functools

from gem.workers import Worker

HASH_SEEDS = ("1", "2")
"""``PYTHONHASHSEED`` of the processes: two, since a small set may keep its order in one."""

JOB_SECONDS = 120.0


@functools.cache
def interpreters() -> tuple[Worker, ...]:
    """Return the processes, which all checks share: one for each of :data:`HASH_SEEDS`."""
    return tuple(Worker(variables={"PYTHONHASHSEED": hash_seed}) for hash_seed in HASH_SEEDS)
