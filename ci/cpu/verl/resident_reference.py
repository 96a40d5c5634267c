"""verl's reference model (for a KL term) without parameter offloading.

verl builds every engine that only runs forward passes with FSDP2's ``CPUOffloadPolicy(pin_memory=True)``, whatever the
configuration says. It moves parameters between an accelerator and pinned host memory, and without an accelerator torch
cannot pin memory. On a CPU there is nothing to offload, so here the policy is None: the parameters stay where they are.
"""

from __future__ import annotations

import sys
from typing import Any

import verl.utils.fsdp_utils

ENGINE = "verl.workers.engine.fsdp.transformer_impl"


def no_offload(pin_memory: bool = True) -> Any:
    """Stand in for ``CPUOffloadPolicy``: return the policy of parameters that stay where they are."""
    return None


if not hasattr(verl.utils.fsdp_utils, "CPUOffloadPolicy"):
    raise ImportError("verl.utils.fsdp_utils has no CPUOffloadPolicy: this shim was made for verl 0.9.1")
if ENGINE in sys.modules:
    raise ImportError(f"{ENGINE} was imported before this shim, and has its own CPUOffloadPolicy already")
verl.utils.fsdp_utils.CPUOffloadPolicy = no_offload
