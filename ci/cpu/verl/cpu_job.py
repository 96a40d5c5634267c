"""What a verl job needs on a machine without a GPU beside the modules of this folder: keys, environment variables."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
MODULES = ("cpu_platform", "hf_rollout", "sdpa_critic", "resident_reference")
"""The CPU shims that verl imports at its start."""


def keys(ray_folder: str) -> list[str]:
    """Return the keys of ``keys.txt``, and one for the folder of Ray's own files."""
    lines = (FOLDER / "keys.txt").read_text().splitlines()
    return [*(line for line in lines if "#" not in line), f"+ray_kwargs.ray_init._temp_dir={ray_folder}"]


def environment() -> dict[str, str]:
    """Return environment variables, in which those of this process are kept."""
    yours = filter(None, [os.environ.get("VERL_USE_EXTERNAL_MODULES")])
    return {
        "PYTHONPATH": os.pathsep.join([str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "VERL_PLATFORM": "cpu",
        "VERL_USE_EXTERNAL_MODULES": ",".join([*MODULES, *yours]),
        "VERL_ENGINE_DEVICE": "cuda",  # under this name verl registers the FSDP engine; it runs on any device
        "OMP_NUM_THREADS": "1",
    }
