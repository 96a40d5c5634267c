"""What the rollout runner costs: 10,000 concurrent episodes of 5 turns against a scripted engine.

One process measures both sides of each ratio, in turn, several times, and prints medians:

* ``bare``: the same number of asyncio tasks and turns, each awaiting an engine and appending to a list.
* ``runner``: :func:`gem.rollout.run_episodes`, with an environment and a tokenizer that do next to nothing.
* ``environment and tokenizer``: the same environment steps and renderings, in a plain loop.
* ``runner, blocking environment``: the same of one that is to be stepped in threads.
* ``executor``: its steps in the threads of an executor, by bare asyncio.

The runner's own cost is ``runner`` less ``environment and tokenizer``. A last line plays GuessTheNumber with a
real tokenizer, for scale.

A second table is of episodes of 10, 100 and 1,000 turns, 5,000 turns in all: it plays them, and takes them on to where
trainers and files take them over. Its last line is the growth from 10 turns to 1,000: about 1 where the time is linear
in the episode's length. The memory is what an episode holds, its ids and log-probabilities being 8 bytes each.

    python ci/bench/rollout.py [--episodes 10000] [--turns 5] [--repeats 3]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import resource
import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rich.console import Console
from rich.table import Table

from gem.core import Env, Info, StepResult
from gem.models.demonstrations import CURRICULUM, conversations
from gem.models.tokenizer import train_tokenizer
from gem.rollout import ChatRenderer, Engine, Episode, Limits, Response, run_episodes
from gem.rollout.answers import Answer
from gem.tasks import Task, make_tasks

ENV = "game:GuessTheNumber-v1-easy"
ANSWER = [11, 12, 13, 2]


class Script(Engine):
    """Answers at once, after giving way to the other episodes."""

    async def generate(self, prompt_ids: Sequence[int], max_new_tokens: int, *, episode: int = 0) -> Response:
        await asyncio.sleep(0)
        return Response(ANSWER, None, "stop")


class Counter(Env):
    """An environment that counts."""

    blocking = False

    def __init__(self, turns: int) -> None:
        super().__init__()
        self._turns = turns

    def reset(self, seed: int | None = None) -> tuple[str, Info]:
        """Begin at zero."""
        self.turn = 0
        return "begin", {}

    def step(self, action: str) -> StepResult:
        """Count."""
        self.turn += 1
        return "on", 0.0, self.turn == self._turns, False, {}


class Constant(ChatRenderer):
    """A renderer whose ids are always the same."""

    def __init__(self) -> None:
        self.tool_role = False
        self._first, self._bridge = list(range(40)), list(range(12))

    def first(self, observation: str) -> list[int]:
        """Return 40 ids."""
        return list(self._first)

    def bridge(
        self, response_ids: Sequence[int], observation: str, role: str = "user", first: str | None = None
    ) -> list[int]:
        """Return 12 ids."""
        return self._bridge

    def parse(self, ids: Sequence[int], prompt_ids: Sequence[int]) -> Answer:
        """Return no text."""
        return Answer("")


def bare(episodes: int, turns: int) -> None:
    """Play with nothing but asyncio."""
    engine = Script()

    async def episode() -> list[Any]:
        answers = []
        for _ in range(turns):
            answers.append(await engine.generate((), 8))
        return answers

    async def main() -> None:
        await asyncio.gather(*(episode() for _ in range(episodes)))

    asyncio.run(main())


def parts(episodes: int, turns: int) -> None:
    """Do what environment and tokenizer do, in a plain loop."""
    renderer = Constant()
    for _ in range(episodes):
        env = Counter(turns)
        renderer.first(env.reset()[0])
        for _ in range(turns):
            observation, *_ = env.step(renderer.parse(ANSWER, ()).action)
            renderer.bridge(ANSWER, observation)


def runner(episodes: int, turns: int) -> None:
    """Play with the runner."""
    tasks = make_tasks(ENV, range(episodes))
    done = asyncio.run(run_episodes(tasks, Script(), Constant(), make_env=lambda task: Counter(turns)))
    assert sum(len(episode.turns) for episode in done) == episodes * turns


class Blocking(Counter):
    """The same, to be stepped in threads."""

    blocking = True


def runner_in_threads(episodes: int, turns: int) -> None:
    """Play with the runner, stepping in threads."""
    tasks = make_tasks(ENV, range(episodes))
    done = asyncio.run(run_episodes(tasks, Script(), Constant(), make_env=lambda task: Blocking(turns)))
    assert sum(len(episode.turns) for episode in done) == episodes * turns


def executor(episodes: int, turns: int) -> None:
    """Play with nothing but asyncio and an executor with as many threads as the runner has."""
    engine = Script()

    async def episode(pool: ThreadPoolExecutor) -> None:
        env, loop = Blocking(turns), asyncio.get_running_loop()
        await loop.run_in_executor(pool, env.reset)
        for _ in range(turns):
            await engine.generate((), 8)
            await loop.run_in_executor(pool, env.step, "")

    async def main() -> None:
        with ThreadPoolExecutor(Limits().max_threads) as pool:
            await asyncio.gather(*(episode(pool) for _ in range(episodes)))

    asyncio.run(main())


def real(episodes: int, turns: int) -> None:
    """Play a game with a real tokenizer and template."""
    corpus = [m["content"] for play in conversations(CURRICULUM[-1], 60, seed=0) for m in play]
    renderer = ChatRenderer(train_tokenizer([*corpus, "user", "assistant"], 600))
    assert renderer.end_id is not None
    script = [*renderer.encode("\\boxed{1}"), renderer.end_id]

    class Guess(Script):
        async def generate(self, prompt_ids: Sequence[int], max_new_tokens: int, *, episode: int = 0) -> Response:
            await asyncio.sleep(0)
            return Response(script, None, "stop")

    def make_env(task: Task) -> Env:
        return Task(ENV, task.seed, {"max_number": 1000, "max_turns": turns}).make()

    asyncio.run(run_episodes(make_tasks(ENV, range(episodes)), Guess(), renderer, Limits(), make_env))


def cpu_seconds(play: Callable[[int, int], None], episodes: int, turns: int) -> float:
    """Return the CPU time of one run."""
    gc.collect()
    since = time.process_time()
    play(episodes, turns)
    return time.process_time() - since


class LongAnswers(Script):
    """Answers with 100 tokens."""

    async def generate(self, prompt_ids: Sequence[int], max_new_tokens: int, *, episode: int = 0) -> Response:
        await asyncio.sleep(0)
        return Response([11] * 100, [-0.5] * 100, "stop")


def play_long(episodes: int, turns: int) -> list[Episode]:
    """Play with the runner, five at a time, and return the episodes."""
    tasks, engine, limits = make_tasks(ENV, range(episodes)), LongAnswers(), Limits()
    return asyncio.run(run_episodes(tasks, engine, Constant(), limits, lambda task: Counter(turns), max_concurrent=5))


def long_episodes(turns_in_all: int = 5000) -> Table:
    """Return what a turn and a token cost in episodes of 10, 100 and 1,000 turns."""
    steps: dict[str, Callable[[list[Episode]], object]] = {
        "as_sequence": lambda episodes: [episode.as_sequence() for episode in episodes],
        "to_json": lambda episodes: [episode.to_json() for episode in episodes],
        "append_only": lambda episodes: [episode.append_only for episode in episodes],
    }
    title = "Long episodes: us of CPU a turn, and memory"
    table = Table("turns", "runner", *steps, "from_json", "bytes per token", title=title)
    rows = []
    for turns in (10, 100, 1000):
        seconds = []

        def timed(function: Callable[..., Any], *args: Any, seconds: list[float] = seconds) -> Any:
            gc.collect()
            since = time.process_time()
            made = function(*args)
            seconds.append(time.process_time() - since)
            return made

        episodes = timed(play_long, turns_in_all // turns, turns)
        made = {name: timed(step, episodes) for name, step in steps.items()}
        timed(lambda lines: [Episode.from_json(line) for line in lines], made["to_json"])
        tracemalloc.start()
        held = play_long(1000 // turns, turns)
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        tokens = sum(len(last.prompt_ids) + len(last.response_ids) for last in (episode.turns[-1] for episode in held))
        rows.append([*(1e6 * value / turns_in_all for value in seconds), size / tokens])
        table.add_row(f"{turns:,}", *(f"{value:.1f}" for value in rows[-1]))
    table.add_row("growth", *(f"{last / first:.2f}" for first, last in zip(rows[0], rows[-1], strict=True)))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=10_000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    console = Console()

    sides: dict[str, Callable[[int, int], None]] = {
        **{"bare": bare, "environment and tokenizer": parts, "runner": runner},
        **{"executor": executor, "runner, blocking environment": runner_in_threads},
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(args.repeats):
        for name, play in sides.items():
            console.print(f"[dim]{repeat + 1}/{args.repeats} {name}")
            seconds[name].append(cpu_seconds(play, args.episodes, args.turns))
    small = max(1, args.episodes // 10)
    micro = {name: 1e6 * statistics.median(values) / (args.episodes * args.turns) for name, values in seconds.items()}
    micro["GuessTheNumber, real tokenizer"] = 1e6 * cpu_seconds(real, small, args.turns) / (small * args.turns)
    micro["runner's own"] = micro["runner"] - micro["environment and tokenizer"]

    table = Table(
        "", "us of CPU a turn", "of bare", title=f"{args.episodes:,} concurrent episodes of {args.turns} turns"
    )
    for name, value in micro.items():
        table.add_row(name, f"{value:.1f}", f"{value / micro['bare']:.1f}")
    console.print(table)
    console.print(long_episodes())
    console.print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
