"""A verl platform named ``cpu``, so that verl's workers run where there is no accelerator.

verl's plug-in point for hardware: ``VERL_USE_EXTERNAL_MODULES=cpu_platform`` registers it in every process and
``VERL_PLATFORM=cpu`` selects it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry


def _device_module() -> ModuleType:
    """Return ``torch.cpu``, with the functions of ``torch.cuda`` that verl calls and ``torch.cpu`` lacks."""
    module = ModuleType("verl_cpu")
    module.__dict__.update({name: getattr(torch.cpu, name) for name in dir(torch.cpu) if not name.startswith("__")})

    def nothing(*_: Any, **__: Any) -> None:
        return None

    def zero(*_: Any, **__: Any) -> int:
        return 0

    of_memory = ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved")
    of_state = ("empty_cache", "ipc_collect", "reset_peak_memory_stats", "set_device", "set_rng_state")
    module.__dict__.update(dict.fromkeys(of_memory, zero))
    module.__dict__.update(dict.fromkeys(of_state, nothing))
    module.__dict__.update(
        manual_seed=torch.manual_seed,
        manual_seed_all=torch.manual_seed,
        get_rng_state=lambda *_: torch.get_rng_state(),
        mem_get_info=lambda *_: (0, 0),
        current_device=lambda: "cpu",
        device_count=lambda: 1,
        get_device_name=lambda *_: "cpu",
    )
    return module


@PlatformRegistry.register(platform="cpu")
class CpuPlatform(PlatformBase):
    """One process is one "device"; there is nothing to select, to empty, to profile or to wait for."""

    device_name = "cpu"
    vendor_name = "cpu"
    device_module = _device_module()

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return False  # never chosen unasked

    def current_device(self) -> Any:
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        return None

    def synchronize(self, device_index: int | None = None) -> None:
        return None

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        return None

    def empty_cache(self) -> None:
        return None

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        """Return gloo, and open its process group.

        verl asks for the group ``cpu:gloo,<device>:<backend>``, which torch refuses where the device is the CPU
        too; and it asks for none where there is one. So it is opened here.
        """
        needed = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
        if needed <= set(os.environ) and not torch.distributed.is_initialized():
            rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        return None

    def profiler_stop(self) -> None:
        return None

    def ray_resource_name(self) -> str:
        return "GPU"  # as a number that Ray counts: ray.init(num_gpus=...) says how many

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> None:
        return None
