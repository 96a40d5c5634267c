"""Vector environments beside those of gem-llm 0.1.0 and Gymnasium 1.x, and beside bare loops, in one run.

gem-llm and Gymnasium share a virtual environment of their own (kept in ``.venvs/gem-llm``). Each side measures in a
process of its own, in turn, round by round. A figure is the best of the rounds, since what else runs on the machine can
only take away from it. What has no goal is shown to be seen.

    python ci/bench/vector.py [--rounds 5] [--only sync,threads,asyncio,resets,straggler,processes,many]

Exit code 1 if a figure falls short of its goal.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sides import Side, install_theirs
from vector_rates import STEP_SECONDS

RATES = Path(__file__).with_name("vector_rates.py")
"""What either side runs, in a process of its own."""
ROUNDS = 5
SECONDS = 1.0
CORES = 1.8
"""What two processes must get for what takes two cores to be measured."""
GOAL_256 = 1.9
"""Times gem-llm's, with 256 environments that block for 10 ms."""


def install_gymnasium(python: str) -> None:
    """Put Gymnasium beside gem-llm, unless it is there."""
    if subprocess.run([python, "-c", "import gymnasium"], capture_output=True, check=False).returncode:
        subprocess.run([python, "-m", "pip", "install", "-q", "gymnasium>=1,<2"], check=True)


class Report:
    """A table of figures, and what falls short."""

    def __init__(self, rounds: int) -> None:
        from rich.console import Console
        from rich.table import Table

        self.console = Console(width=max(120, Console().width))
        self.rounds = rounds
        self.missed: list[str] = []
        self.table = Table("what", "ours", "beside", "", "times", "goal", title="vector environments, steps per second")

    def compare(
        self,
        what: str,
        ours: Callable[[], Any],
        name: str,
        other: Callable[[], Any],
        goal: float | None = None,
        ideal: float = float("inf"),
    ) -> float:
        """Measure two sides in turn, add a row with their ratio, and return that.

        Where the other side is so fast that the goal comes near the ideal, 80% of the ideal is the goal.
        """
        best = [0.0, 0.0]
        for _ in range(self.rounds):
            for number, rate in enumerate((ours(), other())):
                if isinstance(rate, dict):
                    raise SystemExit(f"{what}: {rate['error']}")
                best[number] = max(best[number], rate)
        if goal is not None:
            goal = min(goal, 0.8 * ideal / best[1])
        self.add(what, f"{best[0]:,.0f}", name, f"{best[1]:,.0f}", best[0] / best[1], goal)
        return best[0] / best[1]

    def add(self, what: str, ours: str, name: str, other: str, ratio: float, goal: float | None) -> None:
        short = goal is not None and ratio < goal
        if short:
            self.missed.append(f"{what}: {ratio:.3g} times {name}, goal {goal:g}")
        shown = f"[red]{ratio:.2f}[/]" if short else f"{ratio:.2f}"
        self.table.add_row(what, ours, name, other, shown, "" if goal is None else f"{goal:.3g}")
        self.console.print(f"  {what}: {ours}; {name} {other}: {ratio:.2f}", highlight=False)

    def section(self) -> None:
        self.table.add_section()


def main() -> None:
    parts = "sync,threads,asyncio,resets,straggler,processes,many"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of measuring both sides in turn")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="a measurement")
    parser.add_argument("--only", default=parts)
    options = parser.parse_args()
    raise SystemExit(measure(options.only.split(","), options.rounds, options.seconds))


def wait_for_cores(rate: Callable[[int, float], float]) -> float:
    """Wait, for a minute at most, until two processes get two cores; return how many they got last."""
    for _ in range(20):
        cores = rate(2, 0.5) / rate(1, 0.5)
        if cores >= CORES:
            break
        time.sleep(2)
    return cores


def measure(parts: list[str], rounds: int, seconds: float) -> int:
    """Measure, print the table, and return the exit code."""
    python = install_theirs()
    install_gymnasium(python)
    report = Report(rounds)
    with Side(sys.executable, RATES) as us, Side(python, RATES) as them:
        ours = lambda name, *arguments: partial(us.ask, name, *arguments)  # noqa: E731
        theirs = lambda name, *arguments: partial(them.ask, name, *arguments)  # noqa: E731
        if "sync" in parts:
            games = {
                "the same counting game": ("bench:Count-v0", 2.5),
                "TowerofHanoi-easy": ("game:TowerofHanoi-v0-easy", 2.5),
                "GuessTheNumber-hard": ("game:GuessTheNumber-v0-hard", None),
            }
            for name, (env_id, goal) in games.items():
                arguments = ("step_all", env_id, 64, seconds / 2)
                report.compare(f"sync, n=64, {name}", ours(*arguments), "gem-llm", theirs(*arguments), goal)
            arguments = ("step_all", "bench:Count-v0", 64, seconds / 2)
            gymnasium = theirs("gymnasium_rate", "sync", 64, seconds / 2)
            report.compare("sync, n=64, the same counting game", ours(*arguments), "Gymnasium", gymnasium)
            report.section()
        if "threads" in parts:
            for n in (64, 256):
                what, recv = f"10 ms blocking steps, recv, n={n}", ours("thread_recv", n, seconds)
                report.compare(what, recv, "threads and queues", ours("thread_bare", n, seconds), 0.9)
                report.compare(
                    *(what, recv, "gem-llm", theirs("step_all_in_threads", n, seconds)),
                    *((GOAL_256, n / STEP_SECONDS) if n == 256 else ()),
                )
            gymnasium = theirs("gymnasium_rate", "threads", 64, seconds)
            report.compare("10 ms blocking steps, recv, n=64", ours("thread_recv", 64, seconds), "Gymnasium", gymnasium)
            report.section()
        if "asyncio" in parts:
            for n in (256, 1024, 4096):
                what, recv = f"10 ms async steps, recv, n={n:,}", ours("asyncio_recv", n, seconds)
                report.compare(what, recv, "asyncio, tasks and queues", ours("asyncio_queues", n, seconds), 0.8)
                report.compare(what, recv, "asyncio, tasks alone", ours("asyncio_tasks", n, seconds))
            report.section()
        if "resets" in parts:
            pairs = [(us.ask("reset_all_in_threads", 64), them.ask("reset_all_in_threads", 64)) for _ in range(rounds)]
            took, other = map(min, zip(*pairs, strict=True))
            report.add(
                "64 resets of 50 ms, in ms",
                f"{1e3 * took:.0f}",
                "80 ms",
                f"gem-llm: {1e3 * other:,.0f}",
                0.08 / took,
                1,
            )
            report.section()
        if "straggler" in parts:
            report.compare(
                "63 of 64 environments, one of them 1 s a step",
                ours("straggler", 64, 2 * seconds, 1.0),
                "without it",
                ours("straggler", 64, 2 * seconds, STEP_SECONDS),
                0.95,
            )
            report.section()
        if "processes" in parts:
            cores = wait_for_cores(partial(us.ask, "compute_bare"))
            process = ours("compute", "process", 16, seconds)
            bare = ours("compute_bare", 2, seconds)
            report.compare("computing for 4 ms, 2 processes", process, "2 bare processes", bare, 0.85)
            report.compare(
                "computing for 4 ms, 2 processes", process, "sync", ours("compute", "sync", 16, seconds), 1.7
            )
            if cores < CORES:
                report.missed.append(f"of what takes 2 cores nothing is known: there were {cores:.1f} to be had")
    report.console.print(report.table)
    if "many" in parts:
        from rich.table import Table

        table = Table("10,000 environments in one process", "MB", "µs a step of each")
        for backend, what in (("sync", "sync, GuessTheNumber-hard"), ("asyncio", "asyncio, steps that do not wait")):
            with Side(sys.executable, RATES) as side:
                found = side.ask("many", backend, 10_000)
            if "error" in found:
                raise SystemExit(found["error"])
            table.add_row(what, f"{found['MB']:.0f}", f"{found['us']:.1f}")
        report.console.print(table)
    for line in report.missed:
        report.console.print(f"[red]missed[/] {line}", highlight=False)
    return 1 if report.missed else 0


if __name__ == "__main__":
    main()
