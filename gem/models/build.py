"""Building the embedded model: tokenizer, architecture, supervised play.

The result comes with the package. To make it anew, which takes two to three minutes on a CPU and gives other digits on
other machines::

    python -m gem.models.build gem/models/embedded
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from transformers import Qwen3Config, Qwen3ForCausalLM

from gem.models.demonstrations import CURRICULUM, Message, conversations
from gem.models.tokenizer import END_OF_TEXT, TURN_END, TURN_START, train_tokenizer

HEAD_DIM = 32
"""The smallest for which vLLM has attention kernels."""

_IGNORE = -100
"""The label of tokens that the loss leaves out."""

Example = tuple[list[int], list[int]]
"""Ids and labels of an episode."""


@dataclass(frozen=True)
class Recipe:
    """What decides the embedded model, beside the code of this package.

    Attributes:
        vocab_size: tokens, at most.
        hidden_size: width, a multiple of 32; feed-forward layers are three times as wide.
        layers: decoder layers.
        context: positions.
        episodes: recorded episodes to learn from.
        steps: optimizer steps.
        batch_size: episodes per step.
        learning_rate: at its highest; it rises for a tenth of the steps, then falls to zero.
        seed: of weights, play and order.
    """

    vocab_size: int = 1024
    hidden_size: int = 64
    layers: int = 2
    context: int = 4096
    episodes: int = 12000
    steps: int = 3000
    batch_size: int = 16
    learning_rate: float = 1e-2
    seed: int = 0


def build(folder: Path, recipe: Recipe) -> None:
    """Build model and tokenizer, and save both into ``folder``, for transformers 4.56 or newer."""
    parts = [
        conversations(part, round(recipe.episodes * part.share), recipe.seed + i) for i, part in enumerate(CURRICULUM)
    ]
    corpus = [m["content"] for c in parts[-1] for m in c] + ["system", "user", "assistant"] * 100
    tokenizer = train_tokenizer(corpus, recipe.vocab_size)
    model = new_model(tokenizer, recipe)
    encoded = [list(map(_encoder(tokenizer), part)) for part in parts]
    warm_up(model, encoded, recipe)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _name_as_transformers_4_does(folder / "tokenizer_config.json")


def _name_as_transformers_4_does(path: Path) -> None:
    """Give what transformers 5 has saved the names that transformers 4 knows; 5 reads both."""
    config = json.loads(path.read_text())
    config.pop("backend", None)
    extra = list(config.pop("extra_special_tokens", None) or config.get("additional_special_tokens", []))
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": extra}
    path.write_text(json.dumps(config, indent=2) + "\n")


def new_model(tokenizer: Any, recipe: Recipe) -> Any:
    """Return an untrained Qwen3 model of transformers, for the tokenizer's vocabulary.

    Args:
        tokenizer: a Hugging Face tokenizer.
        recipe: has the model's sizes and the seed of its weights.
    """
    end, pad = (tokenizer.convert_tokens_to_ids(token) for token in (TURN_END, END_OF_TEXT))
    heads = recipe.hidden_size // HEAD_DIM
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=3 * recipe.hidden_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        head_dim=HEAD_DIM,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        eos_token_id=end,
        pad_token_id=pad,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):  # the weights are made on the CPU
        torch.manual_seed(recipe.seed)
        model = Qwen3ForCausalLM(config)
    model.generation_config.eos_token_id = end
    model.generation_config.pad_token_id = pad
    return model


def _encoder(tokenizer: Any) -> Callable[[list[Message]], Example]:
    """Return a function from a conversation to its ids, with labels for the answers and their end tokens."""

    @cache
    def piece(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def encode(conversation: list[Message]) -> Example:
        ids: list[int] = []
        labels: list[int] = []
        for message in conversation:
            answer = message["role"] == "assistant"
            for text, learn in (
                (f"{TURN_START}{message['role']}\n", False),
                (f"{message['content']}{TURN_END}", answer),
                ("\n", False),
            ):
                ids += piece(text)
                labels += piece(text) if learn else [_IGNORE] * len(piece(text))
        return ids, labels

    return encode


def warm_up(model: Any, parts: list[list[Example]], recipe: Recipe) -> None:
    """Train the model, part after part, to answer as the policies did."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    rise = max(1, recipe.steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rise, (recipe.steps - step) / (recipe.steps - rise))
    )
    for ids, labels in track(_batches(parts, recipe), "Building the embedded model", total=recipe.steps):
        # Padding is on the right, where causal attention never looks back at it; logits are needed for answers only.
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
        learned = labels[:, 1:] != _IGNORE
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[learned]), labels[:, 1:][learned])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def _batches(parts: list[list[Example]], recipe: Recipe) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield ``recipe.steps`` batches: each part its share, episodes of similar length together."""
    rng = random.Random(recipe.seed)
    for part, examples in zip(CURRICULUM, parts, strict=True):
        ordered = sorted(examples, key=lambda example: len(example[0]))
        batches = [ordered[i : i + recipe.batch_size] for i in range(0, len(ordered), recipe.batch_size)]
        for batch in rng.choices(batches, k=round(recipe.steps * part.share)):
            length = max(len(ids) for ids, _ in batch)
            yield (
                _padded([ids for ids, _ in batch], length, 0),
                _padded([labels for _, labels in batch], length, _IGNORE),
            )


def _padded(rows: list[list[int]], length: int, value: int) -> torch.Tensor:
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


if __name__ == "__main__":
    build(Path(sys.argv[1]), Recipe())
