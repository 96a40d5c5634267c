"""A verl rollout named ``hf``: transformers generates, in a Ray actor, where vLLM and SGLang do not run.

The three parts that verl asks of a rollout engine: a server that answers ``generate``, a replica that launches it,
and, in the actor's worker, an adapter that sends it the weights after every step. The server answers whatever
requests are waiting as one batch.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import ray
import torch
from verl.workers.rollout.base import _ROLLOUT_REGISTRY, BaseRollout
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry, TokenOutput

sys.path.append(str(Path(__file__).resolve().parents[1] / "shared"))

from hf_sampling import Answer, load_model, sample

GATHERING = 0.003
"""Seconds that the server waits for more requests before it begins a batch."""


class HFServer:
    """Generates with transformers in float32.

    Args:
        config: verl's rollout configuration.
        model_path: a folder that ``from_pretrained`` takes.
        max_batch: requests answered at the same time, at most.
    """

    def __init__(self, config: Any, model_path: str, max_batch: int = 256) -> None:
        torch.set_num_threads(1)  # for models small enough for a CPU, more threads are slower
        torch.manual_seed(config.seed)
        self.config = config
        self.max_batch = max_batch
        self.model = load_model(model_path)
        self.global_steps: int | None = None
        self.waiting: asyncio.Queue[tuple[list[int], dict[str, Any], asyncio.Future[Answer]]] = asyncio.Queue()
        self.worker = asyncio.get_running_loop().create_task(self._serve())

    async def generate(
        self, prompt_ids: list[int], sampling_params: dict[str, Any], request_id: str, **_: Any
    ) -> TokenOutput:
        room = self.config.prompt_length + self.config.response_length - len(prompt_ids)
        asked = sampling_params.get("max_tokens", self.config.response_length)
        params = {**sampling_params, "max_tokens": max(1, min(asked, room))}
        supported = {"temperature", "max_tokens", "logprobs", "stop_token_ids"}
        neutral = {"top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0}
        for name, value in params.items():
            if name not in supported and value != neutral.get(name):
                raise ValueError(f"the CPU rollout samples by temperature only, and was given {name}={value}")
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        global_steps = self.global_steps
        await self.waiting.put((list(prompt_ids), params, answer))
        ids, logprobs = await answer
        return TokenOutput(
            token_ids=ids,
            log_probs=logprobs if params.get("logprobs") else None,
            stop_reason="completed",  # as verl's vLLM server says it, at an end token and at the limit
            extra_fields={"global_steps": global_steps},
        )

    async def _serve(self) -> None:
        while True:
            batch = [await self.waiting.get()]
            await asyncio.sleep(GATHERING)
            while len(batch) < self.max_batch and not self.waiting.empty():
                batch.append(self.waiting.get_nowait())
            try:
                answers = await asyncio.to_thread(self._sample, [(ids, params) for ids, params, _ in batch])
            except Exception as error:  # noqa: BLE001 - it is raised where the request was made
                for *_, answer in batch:
                    answer.set_exception(error)
                continue
            for (*_, answer), (ids, logprobs) in zip(batch, answers, strict=True):
                answer.set_result((ids, logprobs))

    def _sample(self, batch: list[tuple[list[int], dict[str, Any]]]) -> list[Answer]:
        prompts = [ids for ids, _ in batch]
        limits = [params["max_tokens"] for _, params in batch]
        temperatures = [float(params["temperature"]) for _, params in batch]
        stop_ids = [params.get("stop_token_ids") or () for _, params in batch]
        return sample(self.model, prompts, limits, temperatures, stop_ids=stop_ids)

    async def load_weights(self, weights: dict[str, torch.Tensor], global_steps: int | None) -> None:
        missing, unexpected = self.model.load_state_dict(weights, strict=False)
        tied = set(self.model.state_dict()) - {name for name, _ in self.model.named_parameters()}
        if unexpected or set(missing) - tied:
            raise ValueError(f"these weights are not of this model: {missing=}, {unexpected=}")
        if global_steps is not None:
            self.global_steps = global_steps

    async def ready(self) -> bool:
        return True

    # There is no cache to free and no other owner of the memory, so there is nothing to do for these.
    async def sleep(self, *_: Any, **__: Any) -> None:
        return None

    wake_up = clear_kv_cache = release_kv_cache = resume_kv_cache = sleep
    abort_all_requests = resume_generation = start_profile = stop_profile = sleep


def _server_name(replica_rank: int) -> str:
    return f"hf_server_{replica_rank}"


class HFReplica(RolloutReplica):
    """Launches one server."""

    async def launch_servers(self) -> None:
        options = {"name": _server_name(self.replica_rank), "num_cpus": 0, "max_concurrency": self.max_concurrency}
        server = ray.remote(HFServer).options(**options).remote(self.config, os.path.expanduser(self.model_config.path))
        await server.ready.remote()
        self.servers = [server]
        self._server_handle = server
        self._server_address = f"ray:{_server_name(self.replica_rank)}"


class HFServerAdapter(BaseRollout):
    """Lives in the actor's worker; sends the weights to the server."""

    async def resume(self, tags: list[str]) -> None:
        return None

    async def release(self) -> None:
        return None

    async def update_weights(
        self,
        weights: Generator[tuple[str, torch.Tensor], None, None],
        wire_format: str = "named_tensors",
        global_steps: int | None = None,
        **_: Any,
    ) -> None:
        if wire_format != "named_tensors":
            raise ValueError(f"the CPU rollout takes weights as named_tensors, not as {wire_format}")
        plain = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in weights}
        server = ray.get_actor(_server_name(int(os.environ["RANK"])))
        await server.load_weights.remote(plain, global_steps)


RolloutReplicaRegistry.register("hf", lambda: HFReplica)
# The replica has a public registry, the adapter beside it does not.
_ROLLOUT_REGISTRY["hf", "async"] = f"{__name__}.HFServerAdapter"
