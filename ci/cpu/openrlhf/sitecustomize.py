"""Lets OpenRLHF 0.11.2 run on a CPU: replaces the lines that name CUDA, as its modules are imported.

With this folder on ``PYTHONPATH`` Python imports this file when it starts, in every process that Ray starts too. No
installed file is changed. A line that is not where it was is an ImportError, so that another version of OpenRLHF or
vLLM is never half replaced. Each replacement is explained in README.md.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType
from typing import Any

Replacement = tuple[str, str]
"""What is there, and what takes its place, wherever in the module it is."""

NO_FLASH_ATTENTION = [
    (
        "from flash_attn.bert_padding import index_first_axis, pad_input, rearrange, unpad_input\n",
        "index_first_axis = pad_input = rearrange = unpad_input = None\n",
    ),
    ("from flash_attn.utils.distributed import all_gather\n", "all_gather = None\n"),
]

NO_DEVICE: list[Replacement] = [("torch.cuda.current_device()", '"cpu"')]
NO_WAITING: list[Replacement] = [("torch.cuda.synchronize()", "None")]

NOTHING_COMPILED: list[Replacement] = [  # which DeepSpeed does for a minute each, in every run
    ("\nimport deepspeed\n", '\nimport deepspeed\ndeepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False\n'),
    ('"type": "AdamW",\n                "params": {\n', '"type": "AdamW", "params": {\n"torch_adam": True,\n'),
]

GLOO_GROUP = '''
class _GlooGroup:
    """The part of PyNccl's interface that OpenRLHF calls, over gloo."""

    def __init__(self, host, port, rank, world_size):
        from vllm.distributed.utils import stateless_init_torch_distributed_process_group

        self.group = stateless_init_torch_distributed_process_group(host, port, rank, world_size, "gloo")

    def broadcast(self, tensor, src, stream=None):
        import torch

        options = torch.distributed.BroadcastOptions()
        options.rootRank, options.rootTensor = src, 0
        data = tensor.detach().contiguous()
        self.group.broadcast([data.view(torch.uint8)], options).wait()
        if data.data_ptr() != tensor.data_ptr():
            tensor.copy_(data)


'''

REPLACEMENTS: dict[str, list[Replacement]] = {
    "openrlhf.models.ring_attn_utils": NO_FLASH_ATTENTION,
    "openrlhf.utils.deepspeed.deepspeed": [
        ("torch.cuda.set_device(local_rank)", "None"),
        ('"cuda", (dp_size,', '"cpu", (dp_size,'),
        *NO_DEVICE,
        *NOTHING_COMPILED,
    ],
    "openrlhf.utils.distributed_util": [
        *NO_WAITING,
        ("    from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator\n", ""),
        ("    from vllm.distributed.utils import StatelessProcessGroup\n", ""),
        (
            "    pg = StatelessProcessGroup.create(host=master_address, port=master_port, rank=rank, "
            "world_size=world_size)\n    pynccl = PyNcclCommunicator(pg, device=device)\n    return pynccl\n",
            "    return _GlooGroup(master_address, master_port, rank, world_size)\n",
        ),
        ("def stateless_init_process_group(", GLOO_GROUP.lstrip("\n") + "def stateless_init_process_group("),
    ],
    "openrlhf.trainer.ppo_utils.replay_buffer": [
        ('torch.device(f"cuda:{torch.cuda.current_device()}")', 'torch.device("cpu")'),
        *NO_DEVICE,
    ],
    "openrlhf.trainer.ray.launcher": [*NO_DEVICE, *NO_WAITING],
    "openrlhf.trainer.ray.ppo_actor": [*NO_DEVICE, *NO_WAITING, ("torch.cuda.current_stream()", "None")],
    "openrlhf.trainer.ray.ppo_critic": [*NO_DEVICE, *NO_WAITING],
    "openrlhf.trainer.ray.vllm_worker_wrap": [
        ('device="cuda"', 'device="cpu"'),
        ("torch.cuda.current_stream()", "None"),
    ],
    "vllm.model_executor.layers.utils": [
        (
            "    # skip for missing layers\n",
            "    layer.cpu_linear = torch.nn.functional.linear\n    return\n    # skip for missing layers\n",
        ),
    ],
}


class _ReplacingLoader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        source = self.get_source(fullname) or ""
        for old, new in REPLACEMENTS[fullname]:
            if old not in source:
                raise ImportError(f"{self.path} has no {old!r}, which the CPU shim of OpenRLHF 0.11.2 replaces")
            source = source.replace(old, new)
        return compile(source, self.path, "exec", dont_inherit=True)


class _ReplacingFinder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname not in REPLACEMENTS:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.origin is not None:
            spec.loader = _ReplacingLoader(fullname, spec.origin)
        return spec


sys.meta_path.insert(0, _ReplacingFinder())
