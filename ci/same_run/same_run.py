"""The same training run: what is the same in all trainers, and what is written of each step.

A run is a trainer's own code from the rollout to the optimiser in one process, on the same tasks, from the same
weights, with the same objective (``SETTINGS`` in each file of this folder), and with coupled sampling in the place of
its engine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gem.core import Env, EnvWrapper, Info
from gem.tasks import Task
from gem.testing.coupled_sampling import CoupledSampler
from gem.testing.scenarios import Scenario

ENVS = ["game:TowerofHanoi-v0-easy", "game:GuessTheNumber-v0-easy", "game:Hangman-v0-easy"]
"""With one turn each, whose rewards tell good from better, and whose answers differ in length."""

LR = 1e-3
GROUPS, COPIES = 4, 4
TOKENS, CONTEXT = 16, 512


RETURNS: list[float] = []
"""Of the episodes that have ended since the last update; all environments are stepped in this process."""


class Numbered(EnvWrapper):
    """Begins the first observation with the task's number, so that no two tasks begin with the same prompt."""

    def __init__(self, env: Env, number: int) -> None:
        super().__init__(env)
        self._number = number
        self._return = 0.0

    def reset(self, seed: int | None = None) -> tuple[str, Info]:
        observation, info = self.env.reset(seed)
        return f"Game {self._number}. {observation}", info

    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        result = self.env.step(action)
        self._return += result[1]
        if result[2] or result[3]:
            RETURNS.append(self._return)
        return result


def numbered(task: Task) -> Env:
    """Return a task's environment, with its number shown."""
    return Numbered(task.make(), task.reset_seed)


@dataclass(frozen=True)
class SameRun(Scenario):
    """All tasks of a run, group after group, in steps of ``GROUPS``."""

    def make_env(self, tokenizer: Any) -> Callable[[Task], Env]:
        return numbered


@dataclass
class Row:
    """A sequence that is learned from.

    Attributes:
        ids: all tokens.
        mask: 1 where a token was sampled.
        advantage: of each sampled token.
    """

    ids: list[int]
    mask: list[int]
    advantages: list[float]


@dataclass
class Run:
    """A run of a trainer.

    Args:
        folder: where each step is written to.
        seed: of tasks and noise.
        steps: updates.
        envs: of the tasks, in turn.
        env_kwargs: arguments of each.
    """

    folder: Path
    seed: int
    steps: int
    envs: list[str]
    env_kwargs: dict[str, Any]
    done: int = field(default=0, init=False)

    @property
    def scenario(self) -> SameRun:
        """All tasks, with the limits."""
        first = 1_000_000 * self.seed
        count = self.steps * GROUPS
        tasks = tuple(Task(self.envs[i % len(self.envs)], first + i, self.env_kwargs) for i in range(count))
        return SameRun("same run", tasks, lambda episode, turn: [], COPIES, TOKENS, CONTEXT)

    def step(self, number: int) -> SameRun:
        """The tasks of a step, from 0."""
        scenario = self.scenario
        tasks = scenario.tasks[number * GROUPS : (number + 1) * GROUPS]
        return SameRun("a step", tasks, scenario.answers, COPIES, TOKENS, CONTEXT)

    def sampler(self, path: Path, tokenizer: Any) -> CoupledSampler:
        """Return the engine, with the weights of the model in a folder."""
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        return CoupledSampler(model, [tokenizer.eos_token_id], self.seed)

    def record(
        self, rows: Iterable[Row], gradient: dict[str, torch.Tensor], model: torch.nn.Module, sampler: CoupledSampler
    ) -> None:
        """Write an update: what was learned from, its gradient, and the weights before it."""
        found = sorted((asdict(row) for row in rows if any(row.mask)), key=lambda row: (row["ids"], row["advantages"]))
        for row in found:
            row["margins"] = _margins(row, sampler)
        before = {name: each.detach() for name, each in model.named_parameters()}
        with open(self.folder / f"{self.done}.json", "w") as file:
            json.dump({"rows": found, "returns": sorted(RETURNS)}, file)
        RETURNS.clear()
        np.savez(self.folder / f"{self.done}.npz", gradient=_flat(gradient), weights=_flat(before))
        self.done += 1
        print(f"step {self.done} of {self.steps}", flush=True)


def _flat(tensors: dict[str, torch.Tensor]) -> np.ndarray:
    return np.concatenate([tensors[name].float().flatten().numpy() for name in sorted(tensors)])


def _margins(row: dict[str, Any], sampler: CoupledSampler) -> list[float]:
    """Return by how much each sampled token has won, turn after turn."""
    margins: list[float] = []
    ids, mask = row["ids"], row["mask"]
    for end in range(1, len(ids) + 1):
        if mask[end - 1] and (end == len(ids) or not mask[end]):
            margins += sampler.margins[tuple(ids[:end])]
    return margins


def main(play: Callable[[Run], None]) -> None:
    """Run a trainer from a command line."""
    parser = argparse.ArgumentParser(description="Make the same training run as the other trainers.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the steps")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--env", nargs="+", default=ENVS)
    parser.add_argument("--env-kwargs", type=json.loads, default={"max_turns": 1})
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    run = Run(args.out, args.seed, args.steps, args.env, args.env_kwargs)
    play(run)
    assert run.done == run.steps
