"""TRL's own generation, for the requests of episodes."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import Any

import torch
from trl import GRPOTrainer
from trl import __version__ as trl_version

from gem.rollout import ChatRenderer, Request, Response

logger = logging.getLogger("gem.trl")


def stop_at(stop_ids: Sequence[int], trainer: GRPOTrainer) -> None:
    """Add to the tokens at which the trainer's generation stops, whatever it generates with.

    TRL stops at the end tokens of the tokenizer and of the model's generation configuration. Those of a base model
    are not the token with which a chat template ends an answer.
    """

    def with_ours(known: int | Sequence[int] | None) -> list[int]:
        known = [] if known is None else [known] if isinstance(known, int) else known
        return list(dict.fromkeys([*known, *stop_ids]))

    if hasattr(trainer, "eos_token_ids"):  # since TRL 1.15: where it cuts answers, and what does not count as clipped
        trainer.eos_token_ids = with_ours(trainer.eos_token_ids)
    if trainer.use_vllm and hasattr(getattr(trainer, "vllm_generation", None), "generation_kwargs"):
        engine = trainer.vllm_generation
        stops = with_ours(engine.generation_kwargs.get("stop_token_ids"))
        engine.generation_kwargs = {**engine.generation_kwargs, "stop_token_ids": stops}
    elif not trainer.use_vllm and hasattr(trainer, "generation_config") and hasattr(trainer, "generation_kwargs"):
        ends = with_ours(trainer.generation_config.eos_token_id)
        trainer.generation_config.eos_token_id = trainer.generation_kwargs["eos_token_id"] = ends
    else:
        logger.warning(
            "TRL %s cannot be told to stop at the tokens %s, with which the chat template ends an answer: what is "
            "generated after them costs time, and is cut off",
            trl_version,
            list(stop_ids),
        )


def generate(batch: list[Request], most: int, trainer: GRPOTrainer, renderer: ChatRenderer) -> list[Response]:
    """Generate for one batch of requests with whatever the trainer is configured to use (transformers, vLLM).

    Generation may be collective (vLLM server, sharded parameters), so every rank asks for ``most`` answers.
    """
    prompts = [list(request.prompt_ids) for request in batch]
    filler = prompts[0] if prompts else [renderer.tokenizer.pad_token_id]
    prompts += [filler] * (most - len(prompts))
    ids, logprobs = _generate_single_turn(prompts, trainer)
    ends = {*(getattr(trainer, "eos_token_ids", None) or [renderer.tokenizer.eos_token_id]), *renderer.stop_ids}
    return [
        _response(ids[i], None if logprobs is None else logprobs[i], ends, renderer.stop_ids) for i in range(len(batch))
    ]


def _response(ids: list[int], logprobs: list[float] | None, ends: set[int], stop_ids: Sequence[int]) -> Response:
    """Return what was sampled up to the end of the answer."""
    length = next((place for place, token in enumerate(ids, start=1) if token in stop_ids), len(ids))
    ids, logprobs = ids[:length], None if logprobs is None else logprobs[:length]
    if not ids:
        return Response(ids, logprobs, "abort")
    return Response(ids, logprobs, "stop" if ids[-1] in ends else "length")


def most_requests(batch: list[Request], trainer: GRPOTrainer) -> int:
    """Return how many requests the rank with the most of them has: all go on together until it has none."""
    if trainer.accelerator.num_processes == 1:
        return len(batch)
    waiting = torch.tensor([len(batch)], device=trainer.accelerator.device)
    return int(trainer.accelerator.gather(waiting).max())


def _generate_single_turn(prompts: list[list[int]], trainer: GRPOTrainer) -> tuple[list[list[int]], Any]:
    """Call TRL's own generation, the step that its tool loop is made of.

    It is private, and what it takes has changed from release to release.

    Raises:
        RuntimeError: this release of TRL takes something that is not known here.
    """
    known: dict[str, Any] = {"prompt_ids": prompts, "images": None, "multimodal_fields": {}, "num_generations": 1}
    generate = getattr(trainer, "_generate_single_turn", None)
    parameters = inspect.signature(generate).parameters if generate is not None else {}
    required = [name for name, p in parameters.items() if p.default is p.empty]
    if not required or not set(required) <= set(known):
        raise RuntimeError(
            f"TRL {trl_version} generates in a way that gem_trl does not know (_generate_single_turn takes "
            f"{', '.join(parameters) or 'nothing'}). Tested versions are in ci/constraints/trl.txt: "
            "install gem-adapters[trl] with -c ci/constraints/trl.txt"
        )
    assert generate is not None
    return generate(**{name: known[name] for name in required})
