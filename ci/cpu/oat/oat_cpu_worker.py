"""Oat's extension of vLLM's workers, for weights on the CPU."""

from __future__ import annotations

from typing import Any

import oat_cpu  # noqa: F401 - a worker is a process of its own
import torch
from oat.utils.distributed import WorkerWrap, torch_type_codec


class CpuWorker(WorkerWrap):
    def init_process_group(self, *args: Any, **kwargs: Any) -> None:
        super().init_process_group(*args, **kwargs)  # what it returns cannot be sent to another process

    def update_weight(
        self, name: str, dtype: str, shape: Any, cuda_ipc_handles: Any = None, empty_cache: bool = False
    ) -> None:
        """Receive a weight; with the last one load all of them.

        vLLM packs linear weights on a CPU and drops the originals, so one alone cannot be loaded.
        """
        weight = torch.empty(shape, dtype=torch_type_codec(dtype))
        torch.distributed.broadcast(weight, 0, group=self._model_update_group)
        self._received = [*getattr(self, "_received", []), (name, weight)]
        if empty_cache:
            self.model_runner.reload_weights(weights_iterator=iter(self._received))
            self._received = []
