"""OpenRLHF's vLLM engine, as the executor uses it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from gem.rollout import Engine, Response


class VLLM(Engine):
    """OpenRLHF's sampler, a vLLM engine in whose process the executor runs, as one episode asks it."""

    def __init__(self, engine: Any, sampling_params: Any, stop_ids: Sequence[int]) -> None:
        self.engine = engine
        self.stop_ids = frozenset(stop_ids)
        self.sampling_params = deepcopy(sampling_params)  # one object serves the whole group
        own = getattr(sampling_params, "stop_token_ids", None) or ()
        self.sampling_params.stop_token_ids = sorted(self.stop_ids.union(own))
        # vLLM has made another field of them already, of what may not be sampled before min_tokens.
        derived: set[int] = getattr(self.sampling_params, "all_stop_token_ids", set())
        derived.update(self.stop_ids)

    async def generate(self, prompt_ids: Sequence[int], max_new_tokens: int, *, episode: int = 0) -> Response:
        """Sample a continuation; see :class:`gem.rollout.Engine`."""
        params = deepcopy(self.sampling_params)
        params.max_tokens = max_new_tokens
        params.min_tokens = min(params.min_tokens, max_new_tokens)
        answer = (await self.engine.generate(list(prompt_ids), params)).outputs[0]
        ids = list(answer.token_ids)
        logprobs = None
        if params.logprobs is not None:
            logprobs = [of_token[token].logprob for token, of_token in zip(ids, answer.logprobs, strict=True)]
        return Response.of_server(ids, logprobs, answer.finish_reason, self.stop_ids)


class WeightUpdates:
    """Counts how often vLLM got the actor's weights: after every step, whose number OpenRLHF does not hand over.

    Args:
        engine: vLLM's asynchronous engine.

    Attributes:
        count: updates from now on.
    """

    def __init__(self, engine: Any) -> None:
        self.count = 0
        call = engine.collective_rpc

        async def counting(method: str, *others: Any, args: tuple[Any, ...] = (), **options: Any) -> Any:
            result = await call(method, *others, args=args, **options)
            if method in ("update_weight", "update_weight_cuda_ipc"):
                *_, is_last = args  # OpenRLHF has vLLM empty its cache after the last weight
                self.count += bool(is_last)
            return result

        engine.collective_rpc = counting
