"""A model in this process, by transformers: token in, token out, several episodes at once.

What a model has computed of an episode (the keys and values of its attention) is kept from turn to turn, so that each
token is fed to it once. What is sampled depends on the seed, the episode's number and the turn, not on what else is in
the batch, but for rounding: the same evaluation gives the same tokens wherever the arithmetic is the same.
"""

from __future__ import annotations

import hashlib
import random
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from gem.evaluation.agents import MakeEnv, TokenAgent
from gem.models.resolve import resolve_model
from gem.rollout.batching import GatheringEngine, Request
from gem.rollout.engine import Response
from gem.rollout.limits import Limits
from gem.rollout.rendering import ChatRenderer
from gem.tasks import Task

HASHED_BYTES = 256 << 20
"""Of a file, up to which its content is in the manifest's fingerprint; of larger ones only the size."""

KEPT_TOKENS = 1_000_000
"""Tokens whose keys and values are kept, of all episodes together; beyond that, the oldest are dropped."""


def local_agent(
    name: str,
    limits: Limits | None = None,
    make_env: MakeEnv = Task.make,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    tool_role: bool = False,
) -> TokenAgent:
    """Return an agent with a model that runs in this process, on a GPU if there is one.

    Args:
        name: ``"embedded"``, ``"smollm2"``, a folder or a hub id.
        limits: of turns, tokens and seconds; the context is that of the model unless it is limited further.
        make_env: builds the environment of a task.
        temperature: 0 takes the most likely token.
        seed: of what is sampled.
        batch_size: episodes that are generated for at once, at most.
        tool_role: show what tools answer in the template's tool role.

    Raises:
        FileNotFoundError, OSError: there is no such model.
        ValueError: it has no chat template, or the temperature is negative.
    """
    folder = resolve_model(name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    renderer = ChatRenderer(tokenizer, tool_role=tool_role)
    limits = limits or Limits()
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and (limits.max_context is None or limits.max_context > context):
        limits = Limits(**{**vars(limits), "max_context": context})
    sampler = Sampler(model, renderer.stop_ids, temperature, seed, batch_size)
    settings = {
        **{"temperature": temperature, "seed": seed, "dtype": str(model.dtype), "tool_role": tool_role},
        "template": hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:16],
        "files": _fingerprint(folder),
    }
    return TokenAgent(name, GatheringEngine(sampler.answer), renderer, limits, make_env, settings)


@dataclass
class _Kept:
    """What was computed of an episode: tokens, and for each layer keys and values, of shape (heads, tokens, size)."""

    ids: list[int]
    layers: list[tuple[torch.Tensor, torch.Tensor]]


class Sampler:
    """Samples answers to requests, in batches.

    Args:
        model: a causal language model of transformers.
        stop_ids: tokens that end an answer.
        temperature: 0 takes the most likely token.
        seed: of what is sampled.
        batch_size: requests at once, at most.

    Raises:
        ValueError: the temperature is negative.
    """

    def __init__(
        self, model: Any, stop_ids: Sequence[int], temperature: float = 1.0, seed: int = 0, batch_size: int = 64
    ) -> None:
        if temperature < 0:
            raise ValueError(f"temperature must be at least 0, got {temperature}")
        self._model = model
        self._stop_ids = frozenset(stop_ids)
        self._temperature = temperature
        self._seed = seed
        self._batch_size = batch_size
        self._kept: OrderedDict[int, _Kept] = OrderedDict()  # by the episode's number, the latest last

    def answer(self, requests: Sequence[Request]) -> list[Response]:
        """Return a response to each request."""
        responses: list[Response] = []
        for start in range(0, len(requests), self._batch_size):
            responses += self._answer_batch(requests[start : start + self._batch_size])
        return responses

    @torch.inference_mode()
    def _answer_batch(self, requests: Sequence[Request]) -> list[Response]:
        prompts = [list(request.prompt_ids) for request in requests]
        kept = [self._take(request.episode, prompt) for request, prompt in zip(requests, prompts, strict=True)]
        new = [prompt[len(each.ids) :] for prompt, each in zip(prompts, kept, strict=True)]
        cache, mask = self._assembled(kept)
        tokens, new_mask = _padded(new, self._model.device)
        mask = torch.cat([mask, new_mask], dim=1)
        draws = [random.Random(f"{self._seed} {r.episode} {len(p)}") for r, p in zip(requests, prompts, strict=True)]
        sampled: list[list[int]] = [[] for _ in requests]
        logprobs: list[list[float]] = [[] for _ in requests]
        running = [True] * len(requests)
        while True:
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
            logits = self._model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            choices, chances = self._choose(logits.float(), draws, running)
            for i, request in enumerate(requests):
                if running[i]:
                    sampled[i].append(choices[i])
                    logprobs[i].append(chances[i])
                    running[i] = choices[i] not in self._stop_ids and len(sampled[i]) < request.max_new_tokens
            if not any(running):
                break
            tokens = torch.tensor([[token] for token in choices], device=mask.device)
            mask = torch.cat([mask, torch.tensor([[int(goes_on)] for goes_on in running], device=mask.device)], dim=1)
        for i, request in enumerate(requests):
            self._keep(request.episode, [*prompts[i], *sampled[i]], cache, mask, i)
        return [
            Response(ids, chances, "stop" if ids[-1] in self._stop_ids else "length")
            for ids, chances in zip(sampled, logprobs, strict=True)
        ]

    def _choose(
        self, logits: torch.Tensor, draws: list[random.Random], running: list[bool]
    ) -> tuple[list[int], list[float]]:
        """Return a token for each row, and its log-probability under the distribution that it was drawn from."""
        if self._temperature == 0:
            chances = torch.log_softmax(logits, dim=-1)
            chosen = chances.argmax(dim=-1)
        else:
            chances = torch.log_softmax(logits / self._temperature, dim=-1)
            sums = chances.exp().double().cumsum(dim=-1)
            points = [draw.random() if goes_on else 0.0 for draw, goes_on in zip(draws, running, strict=True)]
            levels = torch.tensor(points, dtype=torch.double, device=logits.device)[:, None] * sums[:, -1:]
            chosen = torch.searchsorted(sums, levels, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
        return chosen.tolist(), chances.gather(1, chosen[:, None])[:, 0].tolist()

    def _take(self, episode: int, prompt: list[int]) -> _Kept:
        """Return what is kept of an episode, if the prompt goes on from it."""
        kept = self._kept.pop(episode, None)
        if kept is None or len(kept.ids) >= len(prompt) or prompt[: len(kept.ids)] != kept.ids:
            return _Kept([], [])
        return kept

    def _assembled(self, kept: Sequence[_Kept]) -> tuple[Any, torch.Tensor]:
        """Return one cache for all rows, padded on the left, and its mask."""
        cache = DynamicCache()
        length = max(len(each.ids) for each in kept)
        lengths = torch.tensor([len(each.ids) for each in kept], device=self._model.device)[:, None]
        mask = (torch.arange(length, device=self._model.device)[None] >= length - lengths).long()
        some = next((each.layers for each in kept if each.ids), [])
        for i, (key, value) in enumerate(some):
            both = []
            for j, like in enumerate((key, value)):
                whole = like.new_zeros(len(kept), like.shape[0], length, like.shape[2])
                for row, each in enumerate(kept):
                    if each.ids:
                        whole[row, :, length - len(each.ids) :] = each.layers[i][j]
                both.append(whole)
            cache.update(both[0], both[1], i)
        return cache, mask

    def _keep(self, episode: int, ids: list[int], cache: Any, mask: torch.Tensor, row: int) -> None:
        """Keep what was computed of an episode: of all its tokens but those that were not fed."""
        there = mask[row].bool()
        layers = [(layer.keys[row][:, there], layer.values[row][:, there]) for layer in cache.layers]
        self._kept[episode] = _Kept(ids[: int(there.sum())], layers)
        total = sum(len(each.ids) for each in self._kept.values())
        while total > KEPT_TOKENS and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            total -= len(dropped.ids)


def _fingerprint(folder: str) -> str:
    """Return what tells a model's files apart: names, sizes, and the content of the smaller ones; "" for a hub's."""
    path = Path(folder)
    if not path.is_dir():
        return ""
    total = hashlib.sha256()
    for file in sorted(each for each in path.iterdir() if each.is_file()):
        size = file.stat().st_size
        content = hashlib.sha256(file.read_bytes()).hexdigest() if size <= HASHED_BYTES else ""
        total.update(f"{file.name} {size} {content}\n".encode())
    return total.hexdigest()[:16]


def _padded(rows: Sequence[Sequence[int]], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows of ids as a rectangle, padded on the left, and its mask."""
    length = max(map(len, rows))
    ids = [[0] * (length - len(row)) + list(row) for row in rows]
    mask = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
