"""A stand-in for the part of vLLM that Oat and its actors use: transformers generates, in float32, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

IS_STAND_IN = True
__version__ = "0.8.4"  # what Oat asks for


@dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    max_tokens: int = 16
    logprobs: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class LLM:
    """Generates for a list of prompts of token ids."""

    source: Any = None
    """The learner's model, whose weights are copied."""

    def __init__(self, model: str, seed: int = 0, **_: Any) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.random = torch.Generator().manual_seed(int(seed))
        self.llm_engine = SimpleNamespace(reset_prefix_cache=lambda: None)
        end = self.model.generation_config.eos_token_id
        self.end_ids = set(end if isinstance(end, list) else [end])

    def get_tokenizer(self) -> Any:
        return self.tokenizer

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[dict[str, list[int]]], sampling_params: Sequence[SamplingParams], **_: Any
    ) -> list[SimpleNamespace]:
        """Continue all prompts at once, padded on the left, a token at a time."""
        for params in sampling_params:
            if (params.n, params.top_p, params.top_k) != (1, 1.0, -1):
                raise ValueError(f"this engine samples one answer by temperature only, and was asked for {params}")
        rows = [prompt["prompt_token_ids"] for prompt in prompts]
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
        seen = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        temperature = torch.tensor([[float(params.temperature)] for params in sampling_params])
        greedy = temperature[:, 0] == 0
        answers = [SimpleNamespace(token_ids=[], logprobs=[], text="", finish_reason="length") for _ in rows]
        running = set(range(len(rows)))
        past = None
        while running:
            positions = (seen.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            output = self.model(
                input_ids=ids, attention_mask=seen, position_ids=positions, past_key_values=past, use_cache=True
            )
            past = output.past_key_values
            logits = output.logits[:, -1].float()
            logprobs = torch.log_softmax(logits / temperature.masked_fill(greedy[:, None], 1.0), dim=-1)
            drawn = torch.multinomial(logprobs.exp(), 1, generator=self.random)[:, 0]
            sampled = torch.where(greedy, logits.argmax(dim=-1), drawn)
            for i in sorted(running):
                token = int(sampled[i])
                answers[i].token_ids.append(token)
                answers[i].logprobs.append({token: SimpleNamespace(logprob=float(logprobs[i, token]))})
                if token in self.end_ids:
                    answers[i].finish_reason = "stop"
                if token in self.end_ids or len(answers[i].token_ids) == sampling_params[i].max_tokens:
                    running.discard(i)
            ids = sampled[:, None]
            seen = torch.cat([seen, torch.ones_like(ids)], dim=1)
        return [
            SimpleNamespace(prompt_token_ids=list(row), outputs=[answer])
            for row, answer in zip(rows, answers, strict=True)
        ]

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
