"""A CPU shim for the part of vLLM that Oat and its actors use: transformers generates, in float32, in this process."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[3] / "shared"))

from hf_sampling import end_ids, load_model, sample

IS_CPU_SHIM = True
__version__ = "0.8.4"  # what Oat asks for


@dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    max_tokens: int = 16
    logprobs: int | None = None
    stop_token_ids: list[int] | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class LLM:
    """Generates for a list of prompts of token ids."""

    source: Any = None
    """The learner's model, whose weights are copied."""

    def __init__(self, model: str, seed: int = 0, tokenizer: str | None = None, **_: Any) -> None:
        from transformers import AutoTokenizer

        self.model = load_model(model)
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer or model)
        self.random = torch.Generator().manual_seed(int(seed))
        self.llm_engine = SimpleNamespace(reset_prefix_cache=lambda: None)
        self.end_ids = end_ids(self.model)

    def get_tokenizer(self) -> Any:
        return self.tokenizer

    def generate(
        self, prompts: Sequence[dict[str, list[int]]], sampling_params: Sequence[SamplingParams], **_: Any
    ) -> list[SimpleNamespace]:
        """Continue all prompts at once."""
        for params in sampling_params:
            if (params.n, params.top_p, params.top_k) != (1, 1.0, -1):
                raise ValueError(f"this engine samples one answer by temperature only, and was asked for {params}")
        rows = [list(prompt["prompt_token_ids"]) for prompt in prompts]
        limits = [params.max_tokens for params in sampling_params]
        temperatures = [float(params.temperature) for params in sampling_params]
        stop_ids = [params.stop_token_ids or [] for params in sampling_params]
        answers = sample(self.model, rows, limits, temperatures, self.random, stop_ids)
        return [
            SimpleNamespace(prompt_token_ids=row, outputs=[self._output(*answer, stops)])
            for row, answer, stops in zip(rows, answers, stop_ids, strict=True)
        ]

    def _output(self, ids: list[int], logprobs: list[float], stop_ids: Sequence[int]) -> SimpleNamespace:
        of_tokens = [{token: SimpleNamespace(logprob=logprob)} for token, logprob in zip(ids, logprobs, strict=True)]
        finish_reason = "stop" if ids[-1] in self.end_ids.union(stop_ids) else "length"
        return SimpleNamespace(token_ids=ids, logprobs=of_tokens, text="", finish_reason=finish_reason)

    def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[None]:
        """Do what Oat's extension of vLLM's workers does."""
        if method == "update_weight":
            name = args[0]
            with torch.no_grad():
                self.model.get_parameter(name).copy_(LLM.source.get_parameter(name))
        elif method != "init_process_group":
            raise ValueError(f"this engine has no {method}")
        return [None]

    def sleep(self, level: int = 1) -> None:
        return None

    def wake_up(self) -> None:
        return None
