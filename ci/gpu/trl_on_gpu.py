"""TRL's example on a GPU, measured: does it learn, does sampling agree with the loss, what does a rollout cost.

``examples/train_trl.py`` is imported and run as it is, with SmolLM2-135M-Instruct; only its trainer class is replaced,
by a subclass that measures. Into ``--out`` go ``results.json``, ``train/metrics.jsonl`` and ``train/curve.png``.

* **agreement**: the log-probabilities with which a batch was sampled, beside those that the loss of the same step
  computes for the same tokens, before the first update: in float32, in float32 with bfloat16 autocast (what the
  example does on a GPU), and with weights in bfloat16.
* **train**: 100 steps of GRPO, with gradient checkpointing; success rates of the first and the last ten steps, tokens
  a second, peak memory.
* **rebn**: three steps of ``--algorithm rebn``.

    python ci/gpu/trl_on_gpu.py --out out/gpu            # ten minutes on an H200
    python ci/gpu/trl_on_gpu.py --out out/gpu --quick    # two steps of everything, the embedded model; also on a CPU
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from trl import GRPOConfig, GRPOTrainer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import train_trl as example

ENV = "game:GuessTheNumber-v0-easy"
WINDOW = 10


class Measured(GRPOTrainer):
    """The trainer, timed; with ``compared``, the log-probabilities of sampling are handed on, as vLLM's would be."""

    compared = False
    seconds_of_generate = 0.0
    seconds_of_rollout = 0.0
    rows: list[tuple[list[int], list[float]]]
    """What the loss saw: the ids of each row, and the log-probability of each of its last tokens."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rows = []
        rollout, generate = self.rollout_func, self.model.generate

        def timed_rollout(*args: Any) -> Any:
            begin = time.perf_counter()
            output = rollout(*args)
            self.seconds_of_rollout += time.perf_counter() - begin
            return output

        def timed_generate(**kwargs: Any) -> Any:
            begin = time.perf_counter()
            more = {"return_dict_in_generate": True, "output_scores": True} if self.compared else {}
            output = generate(**kwargs, **more)
            synchronise()
            self.seconds_of_generate += time.perf_counter() - begin
            if not self.compared:
                return output
            sampled = output.sequences[:, -len(output.scores) :]
            of_steps = [
                scores.float().log_softmax(-1).gather(1, ids[:, None])[:, 0]
                for scores, ids in zip(output.scores, sampled.unbind(1), strict=True)
            ]
            self._logprobs = torch.stack(of_steps, dim=1).tolist()
            return output.sequences

        self.rollout_func = timed_rollout
        self.model.generate = timed_generate

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, num_generations: int, has_tool_images: bool = False
    ) -> Any:
        ids, logprobs = super()._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations)
        if not self.compared:
            return ids, logprobs
        return ids, [row[: len(own)] for row, own in zip(self._logprobs, ids, strict=True)]

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> Any:
        output = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )
        of_rows = zip(input_ids, attention_mask.bool(), output[0].detach(), strict=True) if self.compared else ()
        for ids, kept, logps in of_rows:
            self.rows.append((ids[kept].tolist(), logps[kept[-logits_to_keep:]].tolist()))
        return output


def run(args: example.Args, dtype: str, compared: bool = False) -> tuple[Measured | None, Any]:
    """Run the example, with the trainer of this module; it is None where the algorithm is not GRPO."""
    made: list[Measured] = []

    def trainer_class(**kwargs: Any) -> Measured:
        made.append(Measured(**kwargs))
        made[0].compared = compared
        return made[0]

    def config(**kwargs: Any) -> GRPOConfig:
        return GRPOConfig(**{**kwargs, "bf16": dtype == "autocast"})

    example.GRPOTrainer, example.GRPOConfig = trainer_class, config
    tokenizer, model = example.load(args)
    log = example.train(args, tokenizer, model.to(torch.bfloat16) if dtype == "bfloat16" else model)
    return (made[0] if made else None), log


def agreement(args: example.Args, dtype: str) -> dict[str, Any]:
    """One step: the log-probabilities of sampling beside those of the loss."""
    episodes: list[Any] = []
    with recorded(episodes):
        trainer, _ = run(args, dtype, compared=True)
    seen = {tuple(ids): logps for ids, logps in trainer.rows}
    differences, tokens = [], 0
    for episode in episodes:
        row = episode.as_sequence()
        loss = torch.tensor(seen[(*row.prompt_ids.tolist(), *row.completion_ids.tolist())])
        learned = torch.tensor(row.mask).bool()
        differences.append((loss - torch.tensor(row.logprobs, dtype=torch.float32))[learned])
        tokens += int(learned.sum())
    of_tokens = torch.cat(differences)
    size = of_tokens.abs()
    return {
        "tokens": tokens,
        "mean": of_tokens.mean().item(),
        "mean_absolute": size.mean().item(),
        "p99_absolute": size.quantile(0.99).item(),
        "max_absolute": size.max().item(),
    }


@contextmanager
def recorded(episodes: list[Any]) -> Iterator[None]:
    """Keep the episodes of a run's first batch."""
    original = example.TrainingLog.record

    def record(log: Any, batch: Any) -> Any:
        episodes.extend(batch if not episodes else [])
        return original(log, batch)

    example.TrainingLog.record = record
    try:
        yield
    finally:
        example.TrainingLog.record = original


def train(args: example.Args) -> dict[str, Any]:
    """The example, and what it took."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    trainer, log = run(args, "autocast" if torch.cuda.is_available() else "float32")
    seconds = time.perf_counter() - begin
    rates, returns = ([getattr(m, name) for m in log.metrics] for name in ("success_rate", "mean_return"))
    window = min(WINDOW, len(rates) // 2)
    tokens = sum(m.sampled_tokens for m in log.metrics)
    return {
        "steps": len(rates),
        "episodes_a_step": args.batch_size,
        "success_rate": [sum(rates[:window]) / window, sum(rates[-window:]) / window],
        "mean_return": [sum(returns[:window]) / window, sum(returns[-window:]) / window],
        "seconds": seconds,
        "sampled_tokens": tokens,
        "seconds_of_rollout": trainer.seconds_of_rollout,
        "seconds_of_generate": trainer.seconds_of_generate,
        "tokens_a_second_of_generate": tokens / trainer.seconds_of_generate,
        "tokens_a_second_of_rollout": tokens / trainer.seconds_of_rollout,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None,
    }


def rebn(args: example.Args) -> dict[str, Any]:
    """A few steps of ReBN: does it run, and are its returns finite."""
    args.algorithm = "rebn"
    _, log = run(args, "autocast" if torch.cuda.is_available() else "float32")
    return {"steps": len(log.metrics), "mean_return": [m.mean_return for m in log.metrics]}


def synchronise() -> None:
    """Wait for the GPU, so that a time is one of work done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    parser.add_argument("--quick", action="store_true", help="two steps of everything, with the embedded model")
    parser.add_argument("--only", choices=("agreement", "rebn", "train"), help="one of the checks")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-5)
    options = parser.parse_args()

    def arguments(name: str, steps: int, batch_size: int) -> example.Args:
        quick = {"model": "embedded", "env": ENV}
        full = {"model": "smollm2", "env": ENV, "lr": options.lr, "max_new_tokens": 32, "group_size": 16}
        args = example.Args(
            steps=steps, batch_size=batch_size, out=str(options.out / name), **(quick if options.quick else full)
        )
        args.fill_in()
        return args

    torch.set_float32_matmul_precision("highest")
    begin = time.perf_counter()
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {platform.machine()}",
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "accelerate")},
        "quick": options.quick,
    }

    def keep(name: str, value: Any) -> None:
        results[name] = value
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        print(f"{time.perf_counter() - begin:.0f} s, {name}: {json.dumps(value)}", flush=True)

    on_gpu = torch.cuda.is_available()
    wanted = [options.only] if options.only else ["agreement", "rebn", "train"]
    if "agreement" in wanted:
        for dtype in ("float32", "autocast", "bfloat16") if on_gpu else ("float32",):
            keep(f"agreement_{dtype}", agreement(arguments(f"agreement_{dtype}", 1, 64), dtype))
    if "rebn" in wanted:
        keep("rebn", rebn(arguments("rebn", 3, 64)))
    if "train" in wanted:
        keep("train", train(arguments("train", 2 if options.quick else options.steps, options.batch_size)))


if __name__ == "__main__":
    main()
