"""What RL2 needs where there is no GPU: import this before ``RL2``. Each part is explained in README.md.

.. code-block:: bash

    torchrun --nproc_per_node=1 ci/cpu/rl2/rl2_cpu.py rollout.env_path=...   # instead of -m RL2.trainer.ppo
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

import torch
import torch.distributed as dist
import transformers

ATTENTION = "packed_sdpa"
"""The name by which transformers finds the attention of packed sequences."""


def _module(name: str, **members: Any) -> None:
    """Put a module, and the packages that it is in, where ``import`` finds them."""
    parts = name.split(".")
    for i in range(1, len(parts) + 1):
        path = ".".join(parts[:i])
        if path not in sys.modules:
            sys.modules[path] = ModuleType(path)
            sys.modules[path].__path__ = []
            if i > 1:
                setattr(sys.modules[".".join(parts[: i - 1])], parts[i - 1], sys.modules[path])
    sys.modules[name].__dict__.update(members)


def _cuda() -> None:
    """One device, the CPU: the names of ``torch.cuda`` that RL2 calls."""
    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.cuda.set_device = lambda *_: None
    torch.cuda.empty_cache = lambda: None


def _process_groups() -> None:
    """Gloo for NCCL, and meshes of CPUs."""
    init_process_group, init_device_mesh = dist.init_process_group, dist.device_mesh.init_device_mesh
    dist.init_process_group = lambda _, **options: init_process_group("gloo", **options)
    dist.device_mesh.init_device_mesh = lambda _, *args, **options: init_device_mesh("cpu", *args, **options)


def _fsdp() -> None:
    """FSDP refuses to broadcast the first weights from a CPU; every process has loaded the same ones."""
    import torch.distributed.fsdp as fsdp

    real = fsdp.FullyShardedDataParallel

    class OnCpu(real):
        def __init__(self, *args: Any, sync_module_states: bool, **options: Any) -> None:
            super().__init__(*args, **options)

    fsdp.FullyShardedDataParallel = OnCpu


def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    softmax_scale: float | None = None,
    **_: Any,
) -> torch.Tensor:
    """Causal attention inside every one of the packed sequences; (tokens, heads, width) each."""
    lengths = cu_seqlens_q.diff().tolist()
    padded = [
        torch.nn.utils.rnn.pad_sequence(tensor.split(lengths), batch_first=True).transpose(1, 2)
        for tensor in (query, key, value)
    ]
    # Padding is on the right, where causal attention never looks.
    out = torch.nn.functional.scaled_dot_product_attention(
        *padded, is_causal=True, scale=softmax_scale, enable_gqa=True
    ).transpose(1, 2)
    return torch.cat([row[:length] for row, length in zip(out, lengths, strict=True)])


def _one_device(cu_seqlens: torch.Tensor, causal: bool, rank: int, world_size: int) -> tuple[Any, ...]:
    """Return what each device attends to, where there is one."""
    if world_size != 1:
        raise NotImplementedError("without a GPU, sequences are not spread over devices: leave actor.sp_size at 1")
    longest = int(cu_seqlens.diff().max())
    return cu_seqlens, cu_seqlens, longest, longest, slice(0, int(cu_seqlens[-1]))


def _attention_forward(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None, **options: Any
) -> tuple[torch.Tensor, None]:
    """Hand on what transformers' attention layers give, by way of RL2's own function."""
    forward = transformers.modeling_flash_attention_utils._flash_attention_forward
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    out = forward(query, key, value, attention_mask, query.shape[1], is_causal=True, softmax_scale=scaling)
    return out[None], None


def _attention() -> None:
    """Attention by torch, where flash-attn and ring-flash-attn cannot be installed."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    _module(
        "ring_flash_attn.llama3_flash_attn_varlen",
        llama3_flash_attn_varlen_func=packed_attention,
        llama3_flash_attn_prepare_cu_seqlens=_one_device,
    )
    _module("ring_flash_attn.adapters.hf_adapter", flash_attention_forward=_attention_forward)
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention_forward)
    for cls in (transformers.AutoModelForCausalLM, transformers.AutoModelForTokenClassification):
        cls.from_pretrained = classmethod(_with_attention(cls.from_pretrained.__func__))


def _with_attention(load: Callable[..., Any]) -> Callable[..., Any]:
    def from_pretrained(cls: Any, *args: Any, **options: Any) -> Any:
        if options.get("attn_implementation") == "flash_attention_2":
            options["attn_implementation"] = ATTENTION  # transformers would ask for flash-attn
        return load(cls, *args, **options)

    return from_pretrained


def local_serialized_tensor(values: list[bytes]) -> list[bytes]:
    """Return a tensor on its way to the engine: an entry a device of the engine."""
    return values


class MultiprocessingSerializer:
    """Tensors as they are; a handle of memory that is shared on a GPU means nothing here."""

    serialize = staticmethod(pickle.dumps)
    deserialize = staticmethod(pickle.loads)


class ServerArgs:
    """The arguments of a server; any that sglang has are taken."""

    def __init__(self, host: str, port: int, **options: Any) -> None:
        self.host, self.port = host, port
        self.options = options

    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


def launch_server(args: ServerArgs) -> None:
    """Become the server; RL2 calls this in a process of its own."""
    config = json.dumps({"host": args.host, "port": args.port, **args.options})
    os.execv(sys.executable, [sys.executable, str(Path(__file__).with_name("sglang_server.py")), config])


def _sglang() -> None:
    """A server over transformers, which speaks sglang's protocol; sglang itself needs a GPU."""
    _module("sglang.srt.utils", MultiprocessingSerializer=MultiprocessingSerializer)
    _module("sglang.srt.model_executor.model_runner", LocalSerializedTensor=local_serialized_tensor)
    _module("sglang.srt.patch_torch", monkey_patch_torch_reductions=lambda: None)
    _module("sglang.srt.server_args", ServerArgs=ServerArgs)
    _module("sglang.srt.entrypoints.http_server", launch_server=launch_server)


def _router() -> None:
    """Of sglang's router, which says a line about every request, warnings are enough."""
    from sglang_router import launch_router

    class QuietArgs(launch_router.RouterArgs):
        def __init__(self, **options: Any) -> None:
            super().__init__(**{"log_level": "warn", **options})

    launch_router.RouterArgs = QuietArgs


_router()
_cuda()
_process_groups()
_fsdp()
_attention()
_sglang()

if __name__ == "__main__":
    import runpy

    runpy.run_module("RL2.trainer.ppo", run_name="__main__", alter_sys=True)
