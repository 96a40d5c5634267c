"""What Oat needs where there is no GPU: import this before ``oat``. Each part is explained in README.md."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import uuid
from collections.abc import Iterator
from types import ModuleType
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ.setdefault("VLLM_WORKER_MULTIPROCESSING_METHOD", "spawn")

import pyarrow
import torch


def _cuda() -> None:
    """One device, the CPU: the names of ``torch.cuda`` that Oat calls."""
    torch.cuda.device_count = lambda: 1
    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.cuda.set_device = lambda *_: None
    torch.cuda.synchronize = lambda *_: None
    torch.cuda.empty_cache = lambda: None
    torch.cuda.memory_allocated = lambda *_: 0


def _plasma() -> None:
    """``pyarrow.plasma``, which pyarrow has dropped, as a dictionary: all nodes are in one process."""
    if hasattr(pyarrow, "plasma"):
        return
    stored: dict[bytes, Any] = {}

    class ObjectID:
        def __init__(self, name: bytes) -> None:
            self.name = bytes(name)

        def binary(self) -> bytes:
            return self.name

    class Client:
        def put(self, value: Any) -> ObjectID:
            name = uuid.uuid4().bytes
            stored[name] = value
            return ObjectID(name)

        def get(self, name: ObjectID) -> Any:
            return stored[name.name]

        def delete(self, names: tuple[ObjectID, ...]) -> None:
            for name in names:
                del stored[name.name]

    @contextlib.contextmanager
    def start_plasma_store(plasma_store_memory: int) -> Iterator[tuple[str, None]]:
        yield "in this process", None

    module = ModuleType("pyarrow.plasma")
    module.__dict__.update(ObjectID=ObjectID, connect=lambda _: Client(), start_plasma_store=start_plasma_store)
    pyarrow.plasma = sys.modules["pyarrow.plasma"] = module


def _process_groups() -> None:
    """Oat compares torch's version as text (``"2.13" >= "2.6"`` is false), and so calls an option by its old name."""
    import oat.utils.distributed as distributed

    new_group = distributed._new_process_group_helper

    def renamed(*args: Any, pg_options: Any = None, **kwargs: Any) -> Any:
        return new_group(*args, **{"backend_options": pg_options, **kwargs})

    distributed._new_process_group_helper = renamed


def _nothing_compiled() -> None:
    """DeepSpeed compiles its Adam and its collectives in shared memory for a minute each: torch's Adam, and gloo."""
    from deepspeed import ops
    from oat.utils import deepspeed

    ops.__compatible_ops__["deepspeed_shm_comm"] = False

    def create_optimizer(self: Any, model: Any, **kwargs: Any) -> torch.optim.Optimizer:
        inner = model.model if hasattr(model, "model") else model
        groups = deepspeed.get_optimizer_grouped_parameters(inner, kwargs["weight_decay"])
        return torch.optim.AdamW(groups, lr=kwargs["lr"], betas=kwargs["betas"])

    deepspeed.DeepspeedStrategy.create_optimizer = create_optimizer


def _engine_in_this_process() -> None:
    """With transformers as the engine, learner and engine share the process: a group of one, and a copy."""
    import vllm

    if not getattr(vllm, "IS_CPU_SHIM", False):
        return
    import oat.learners.base as base

    base.init_process_group = lambda **_: torch.distributed.new_group([0], backend="gloo")
    broadcast = base.LearnerBase._broadcast_to_vllm

    def with_source(self: Any) -> None:
        vllm.LLM.source = self.model.model.module
        broadcast(self)

    base.LearnerBase._broadcast_to_vllm = with_source


def _one_model_at_a_time() -> None:
    """Learner and engine load their models at the same time, and transformers' way of it is not for two threads."""
    from transformers import PreTrainedModel

    lock = threading.RLock()
    load = PreTrainedModel.from_pretrained.__func__

    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        with lock:
            return load(cls, *args, **kwargs)

    PreTrainedModel.from_pretrained = classmethod(from_pretrained)


def _critic() -> None:
    """Oat's critic is of the time of transformers 4: a model that does not set which of its weights are tied."""
    from transformers import PreTrainedModel

    if not hasattr(PreTrainedModel, "all_tied_weights_keys"):
        PreTrainedModel.all_tied_weights_keys = {}  # every other model sets its own


def _vllm_workers() -> None:
    """The real vLLM, built for CPUs: eager, in this process, and with a worker that takes weights on the CPU."""
    import vllm

    if getattr(vllm, "IS_CPU_SHIM", False):
        return
    real = vllm.LLM

    def on_the_cpu(**kwargs: Any) -> Any:
        extension = {"worker_extension_cls": "oat_cpu_worker.CpuWorker"}
        return real(**{**kwargs, **extension, "enforce_eager": True, "distributed_executor_backend": "uni"})

    vllm.LLM = on_the_cpu


_cuda()
_plasma()
_one_model_at_a_time()
_critic()
_vllm_workers()
_process_groups()
_nothing_compiled()
_engine_in_this_process()
