"""Environments that fail, by the thousand: is anything lost, out of order, slow or left behind?

64 environments in processes take 200,000 steps, of which a share raises, hangs, ends its process, or takes all memory.
Every healthy step is held to a mirror of its environment, which plays the same episode undisturbed in this process: it
must be delivered once, and in order. A healthy step that the machine holds up for longer than the timeout counts as
late, not as wrong. Throughput is compared with that of the same run without failures, and processes,
threads, descriptors and memory are counted before and after. Then the same in threads and in asyncio, with what can
happen there.

    python ci/bench/vector_faults.py [--steps 200000] [--share 0.01]

Exit code 1 if anything is lost or left behind, or throughput is below 70% of that without failures.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import sys
import threading
import time
from functools import partial
from typing import Any

import psutil

import gem
from gem.vector.asyncio_vector_env import AsyncioVectorEnv
from gem.vector.process_vector_env import ProcessVectorEnv
from gem.vector.thread_vector_env import ThreadVectorEnv

ENVIRONMENTS = 64
TIMEOUT = 0.5
HANG_SECONDS = 2.0
MEMORY_LIMIT = 512 << 20
LEAST = 0.7
MOST_LATE = 0.0005
"""Share of the healthy steps that may take longer than the timeout, where the machine is busy with something else."""
FAULTS = {
    ProcessVectorEnv: ("raise", "hang", "exit", "memory"),
    ThreadVectorEnv: ("raise", "hang"),
    AsyncioVectorEnv: ("raise", "hang"),
}


class Fragile(gem.Env):
    """A counting game with chance in it, which does what it is told."""

    asynchronous = True
    over = True

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self._seconds = seconds

    def reset(self, seed: int | None = None) -> Any:
        super().reset(seed)
        self.turn, self.over = 0, False
        return f"begin {self.rng.random()}", {}

    async def reset_async(self, seed: int | None = None) -> Any:
        return self.reset(seed)

    def step(self, action: str) -> Any:
        time.sleep(HANG_SECONDS if action == "hang" else self._seconds)
        return self.move(action)

    async def step_async(self, action: str) -> Any:
        await asyncio.sleep(HANG_SECONDS if action == "hang" else self._seconds)
        return self.move(action)

    def move(self, action: str) -> Any:
        if action == "raise":
            raise ValueError("told to")
        if action == "exit":
            os._exit(7)
        if action == "memory":
            self._hoard = [bytearray(1 << 25) for _ in range(1000)]
        if self.over:
            raise gem.ResetNeeded
        self.turn += 1
        self.over = self.turn == 20
        text = f"turn {self.turn} {len(action)} {self.rng.random()}"
        return text, self.rng.random(), self.over, False, {"turn": self.turn}


class Mirror:
    """Plays what an environment of the vector is to have played, and says whether it did.

    Attributes:
        late: healthy steps that took longer than the timeout.
    """

    def __init__(self) -> None:
        self.env = Fragile()
        self.late = 0
        self._known = True
        self._turn = 0

    def agrees(self, action: str, row: tuple[Any, ...], kinds: tuple[str, ...]) -> bool:
        """Return whether a row is what the action must give."""
        observation, reward, terminated, truncated, info = row
        late = action not in kinds and str(info.get("error")).startswith("no answer within")
        if late or action in kinds:
            self.late += late
            self._known = False  # the fresh environment has a seed of its own
            self._turn = 0
            return truncated and "error" in info
        self._turn += 1  # what can be told of any episode: turns come one by one
        agrees = info.get("final_info", info).get("turn") == self._turn and not truncated
        if self._known:
            text, pay, over, _, _ = self.env.step(action)
            agrees = agrees and (pay, over) == (reward, terminated)
            agrees = agrees and (info["final_obs"] if over else observation) == text
            agrees = agrees and (not over or observation == self.env.reset()[0])
        if terminated:
            self._turn = 0
        return agrees


def run(vec: Any, steps: int, share: float, kinds: tuple[str, ...]) -> tuple[float, int, int]:
    """Step; return steps per second, how many were not as they must be, and how many healthy ones were late."""
    rng = random.Random(0)
    observations, _ = vec.reset(seed=0)
    mirrors = [Mirror() for _ in range(vec.num_envs)]
    wrong = sum(
        mirror.env.reset(seed=index)[0] != text
        for index, (mirror, text) in enumerate(zip(mirrors, observations, strict=True))
    )
    sent = dict.fromkeys(range(vec.num_envs), "x")
    vec.send(dict(sent))
    received, begin = 0, time.perf_counter()
    while received < steps:
        ready = vec.recv(timeout=120)
        if not ready.indices:
            raise SystemExit(f"after {received} steps, nothing was received for two minutes")
        wrong += len(set(ready.indices)) != len(ready.indices)
        received += len(ready.indices)
        actions = {}
        for index, *row in zip(*ready, strict=True):
            if not mirrors[index].agrees(sent[index], tuple(row), kinds):
                wrong += 1
                if wrong < 10:
                    print(f"environment {index}, {sent[index]!r}: {row}", file=sys.stderr)
            actions[index] = rng.choice(kinds) if rng.random() < share else "x" * rng.randint(1, 9)
        sent.update(actions)
        vec.send(actions)
    rate = received / (time.perf_counter() - begin)
    return rate, wrong, sum(mirror.late for mirror in mirrors)


def holdings() -> dict[str, int]:
    """Count what may be left behind."""
    gc.collect()
    this = psutil.Process()
    return {
        "processes": len(this.children()),
        "threads": threading.active_count(),
        "descriptors": this.num_fds(),
        "MB": this.memory_info().rss // 1_000_000,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--share", type=float, default=0.01, help="of the steps that fail")
    parser.add_argument("--step-ms", type=float, default=8.0, help="what a step waits")
    parser.add_argument("--workers", type=int, default=16, help="processes")
    raise SystemExit(measure(parser.parse_args()))


def measure(options: argparse.Namespace) -> int:
    """Measure, print a table, and return the exit code."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=max(120, Console().width))
    build = partial(Fragile, options.step_ms / 1e3)
    names = ("steps", "failures", "restarts", "steps/s", "without failures", "times", "wrong", "late", "left behind")
    table = Table("back end", *names)
    failed = False
    for kind, kinds in FAULTS.items():
        more: dict[str, Any] = {"timeout": TIMEOUT}
        if kind is ProcessVectorEnv:
            more |= {"workers": options.workers, "memory_limit": MEMORY_LIMIT}
        new = partial(kind, [""] * ENVIRONMENTS, [build] * ENVIRONMENTS, **more)
        with new() as vec:
            free, wrong, late = run(vec, options.steps // 5, 0.0, kinds)
        before = holdings()
        with new() as vec:
            rate, more_wrong, more_late = run(vec, options.steps, options.share, kinds)
            faults, restarts = sum(vec.faults), vec.restarts
        del vec
        time.sleep(HANG_SECONDS + 0.5)  # threads that hang end after that
        after = holdings()
        wrong, late = wrong + more_wrong, late + more_late
        left = {name: after[name] - before[name] for name in after if after[name] > before[name]}
        if left.get("MB", 0) <= 20:  # what the allocator keeps
            left.pop("MB", None)
        failed = failed or bool(wrong or left) or rate < LEAST * free or late > MOST_LATE * options.steps
        shown = ", ".join(f"{count} {name}" for name, count in left.items()) or "nothing"
        table.add_row(
            kind.__name__.removesuffix("VectorEnv").lower(),
            *(f"{options.steps:,}", f"{faults:,}", f"{restarts:,}", f"{rate:,.0f}", f"{free:,.0f}"),
            *(f"{rate / free:.2f}", str(wrong), str(late), shown),
        )
        console.print(f"  {kind.__name__}: {rate:,.0f} steps/s, without failures {free:,.0f}", highlight=False)
    console.print(table)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
