"""verl's own actor in this process: its worker, engine, loss and optimiser, without Ray.

FSDP2 in float32, gloo between processes; without a GPU on the CPU shims of ``ci/cpu/verl``. To be imported before verl.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed

if not torch.cuda.is_available():
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cpu" / "verl"))
    import cpu_job

    os.environ.update({**cpu_job.environment(), "VERL_USE_EXTERNAL_MODULES": "cpu_platform,resident_reference"})

from omegaconf import DictConfig
from tensordict import TensorDict
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM
from two_processes import join_alone, rank, world
from verl.utils import tensordict_utils
from verl.workers.engine_workers import ActorRolloutRefWorker

T = TypeVar("T")


class Worker:
    """A worker of verl's, whose methods are called with rows of the queue, as its worker groups do.

    Args:
        config: verl's, of actor, rollout and reference.
        queue: where the rows are.
        role: ``"actor"`` or ``"ref"``.

    Attributes:
        updates: for each update the gradient before it is clipped, and the policy as it was.
    """

    def __init__(self, config: DictConfig, queue: Any, role: str) -> None:
        join_alone()
        self.queue, self.path = queue, config.model.path
        self.worker = ActorRolloutRefWorker(config, role)
        self.worker.init_model()
        self.updates: list[tuple[dict[str, torch.Tensor], Any]] = []
        if role == "actor":
            engine = self.worker.actor.engine
            step = engine.optimizer_step

            def recorded() -> float:
                gradient = {name: _whole(each.grad) for name, each in engine.module.named_parameters()}
                self.updates.append((gradient, self.model()))
                return step()

            engine.optimizer_step = recorded

    def model(self) -> Any:
        """Return a copy of the policy as it is now."""
        model = AutoModelForCausalLM.from_pretrained(self.path, dtype=torch.float32)
        engine = (self.worker.actor or self.worker.ref).engine
        model.load_state_dict({name: _whole(each) for name, each in engine.module.state_dict().items()})
        return model

    def __call__(self, method: str, batch: Any) -> TensorDict:
        """Call a method of verl's worker with this rank's rows of a batch; columns that it returns are stored."""
        keys = self.own(batch.keys)
        data = self.queue.kv_batch_get(keys, batch.partition_id)
        for name, value in batch.extra_info.items():
            tensordict_utils.assign_non_tensor_data(data, name, value)
        output = getattr(self.worker, method)(data)
        columns = {name: value.unbind() for name, value in output.items() if isinstance(value, torch.Tensor)}
        parts: list[Any] = [None] * world()
        distributed.all_gather_object(parts, columns)
        for name in columns:
            for key, value in zip(batch.keys, [row for part in parts for row in part[name]], strict=True):
                self.queue.rows[key][name] = value
        return output

    def own(self, rows: Sequence[T]) -> Sequence[T]:
        """Return those of a batch's rows that are this rank's, as verl's dispatch shares them."""
        size = len(rows) // world()
        return rows[rank() * size :][:size]


def _whole(value: torch.Tensor) -> torch.Tensor:
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
