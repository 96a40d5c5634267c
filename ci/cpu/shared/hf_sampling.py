"""Sampling by transformers for a batch of prompts: what the CPU engines of several trainers share."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch

from gem.testing.coupled_sampling import CoupledNoise

COUPLED = CoupledNoise.from_environment()
"""With the environment variable ``GEM_COUPLED_SAMPLING`` the noise by which equal weights sample equal tokens."""

Answer = tuple[list[int], list[float]]
"""Sampled ids, the end token included, and their log-probabilities under what was sampled from."""


def load_model(path: str) -> Any:
    """Return the model in float32, for generating."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def end_ids(model: Any) -> set[int]:
    """Return the ids at which the model's answers end."""
    ids = model.generation_config.eos_token_id
    return set(ids if isinstance(ids, list) else [ids])


@torch.no_grad()
def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_tokens: Sequence[int],
    temperatures: Sequence[float],
    generator: torch.Generator | None = None,
    stop_ids: Sequence[Collection[int]] | None = None,
) -> list[Answer]:
    """Continue all prompts, padded on the left, a token at a time.

    Args:
        model: of transformers.
        prompts: ids; B of them.
        max_tokens: the limit of each answer.
        temperatures: of each; 0 is greedy, and its log-probabilities are those of temperature 1.
        generator: of the random numbers; torch's global one by default.
        stop_ids: for each answer, the tokens that end it beside those of the model's generation configuration.
    """
    own = end_ids(model)
    ends = [own.union(ids) for ids in stop_ids or [()] * len(prompts)]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    seen = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    temperature = torch.tensor(temperatures, dtype=torch.float32)[:, None]
    greedy = temperature[:, 0] == 0
    noise = [COUPLED.of(prompt) for prompt in prompts] if COUPLED is not None else []
    answers: list[Answer] = [([], []) for _ in prompts]
    running = set(range(len(prompts)))
    past = None
    while running:
        positions = (seen.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = model(input_ids=ids, attention_mask=seen, position_ids=positions, past_key_values=past, use_cache=True)
        past = output.past_key_values
        logits = output.logits[:, -1].float()
        logprobs = torch.log_softmax(logits / temperature.masked_fill(greedy[:, None], 1.0), dim=-1)
        if noise:
            gumbel = np.stack([own.gumbel(size=logits.shape[1]) for own in noise])
            drawn = (logprobs.double() + torch.from_numpy(gumbel)).argmax(dim=-1)
        else:
            drawn = torch.multinomial(logprobs.exp(), 1, generator=generator)[:, 0]
        sampled = torch.where(greedy, logits.argmax(dim=-1), drawn)
        chosen = logprobs.gather(1, sampled[:, None])[:, 0]
        for i in sorted(running):
            token = int(sampled[i])
            answers[i][0].append(token)
            answers[i][1].append(float(chosen[i]))
            if token in ends[i] or len(answers[i][0]) == max_tokens[i]:
                running.discard(i)
        ids = sampled[:, None]
        seen = torch.cat([seen, torch.ones_like(ids)], dim=1)
    return answers
