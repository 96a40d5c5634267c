"""Tools beside those of gem-llm 0.1.0: Python code, alone and 64 calls at once; and search, which gem-llm has not.

Both packages run ``print(1)`` by ``run_python``, each in a process of its own and in turn: ours in its default sandbox,
gem-llm's with ``"none"``, which isolates nothing. Processor time is that of the process and of all that it started.

    python ci/bench/tools.py [--rounds 5]

Exit code 1 if a figure falls short of :data:`GOALS`.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sides import Side, install_theirs, resident, serve

GOALS = {"latency": 4.0, "processor time": 4.0, "64 at once": 4.0}
"""Ratios: how many times less, or more calls per second, than gem-llm."""
TIMEOUT = (1.0, 1.3)
"""Seconds that a hanging program with ``timeout=1`` may take."""
SEARCH_SECONDS = 0.010
"""Median of a query."""
SHARED_BYTES = 0.1
"""What 256 environments may add to the memory of one, as a part of the index's size."""
PASSAGES, WORDS = 100_000, 20_000


# --- In either side's process: nothing here knows which side it is on. ---


def call(timeout: float = 10.0, code: str = "print(1)") -> None:
    """Run a program, and see to it that it did what it should."""
    from gem.utils.sandbox import run_python

    sandbox_type = run_python.__defaults__[0] if len(run_python.__defaults__) > 2 else "none"
    success, stdout, stderr = run_python(code, sandbox_type, timeout=timeout)
    if code == "print(1)" and (not success or stdout != "1\n"):
        raise RuntimeError(f"print(1) failed: {stderr}")


def one_at_a_time(count: int) -> dict[str, float]:
    """Return the median seconds of a call, and its mean processor seconds."""
    call()
    latencies = []
    before = _processor_seconds()
    for _ in range(count):
        begin = time.perf_counter()
        call()
        latencies.append(time.perf_counter() - begin)
    return {"latency": statistics.median(latencies), "processor": (_processor_seconds() - before) / count}


def at_once(threads: int, count: int) -> float:
    """Return calls per second."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: call(), range(threads)))
        begin = time.perf_counter()
        list(pool.map(lambda _: call(), range(count)))
        return count / (time.perf_counter() - begin)


def hanging() -> float:
    """Return the seconds of a call that hangs, with a limit of one second."""
    begin = time.perf_counter()
    call(1, "while True: pass")
    return time.perf_counter() - begin


def _processor_seconds() -> float:
    """Return the processor time of this process, of those that it started, and of those that they waited for."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    running = 0
    for process in _descendants(os.getpid()):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        running += sum(map(int, fields[11:15]))
    return time.process_time() + ended.ru_utime + ended.ru_stime + running / os.sysconf("SC_CLK_TCK")


def _descendants(process: int) -> list[int]:
    children = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        for child in path.read_text().split():
            children += [int(child), *_descendants(int(child))]
    return children


def search(path: str, queries: list[str]) -> dict[str, float]:
    """Return the median seconds of a query, the index's bytes, and what 255 environments add to the memory of one."""
    import gem
    from gem.tools.search_tool import SearchTool
    from gem.tools.tool_env_wrapper import ToolEnvWrapper

    def make() -> ToolEnvWrapper:
        env = ToolEnvWrapper(gem.make("game:GuessTheNumber-v0"), [SearchTool(corpus=path)], max_tool_uses=None)
        env.reset(seed=0)
        env.step(f"<search>{queries[0]}</search>")
        return env

    envs = [make()]
    latencies = []
    for query in queries:
        begin = time.perf_counter()
        observation = envs[0].step(f"<search>{query}</search>")[0]
        latencies.append(time.perf_counter() - begin)
        if "<information>" not in observation:
            raise RuntimeError(observation)
    gc.collect()
    before = resident()
    envs += [make() for _ in range(255)]
    gc.collect()
    return {"latency": statistics.median(latencies), "added": resident() - before}


# --- In the process that compares. ---


def write_corpus(path: Path) -> list[str]:
    """Write passages of 100 words, drawn as in a language (Zipf); return queries of 8 words."""
    rng = random.Random(0)
    words = [f"{rng.choice('bcdfghklmnprst')}{n:x}" for n in range(WORDS)]
    weights = [1 / (n + 10) for n in range(WORDS)]
    drawn = rng.choices(words, weights, k=PASSAGES * 100)
    with path.open("w") as file:
        for at in range(PASSAGES):
            text = " ".join(drawn[100 * at : 100 * at + 100])
            file.write(f'{{"title": "passage {at}", "text": "{text}"}}\n')
    return [" ".join(rng.choices(words, weights, k=8)) for _ in range(300)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of measuring both sides in turn")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve({"one": one_at_a_time, "many": at_once, "hanging": hanging, "search": search})
        return
    raise SystemExit(compare(options.rounds))


def compare(rounds: int) -> int:
    """Measure, print tables, and return the exit code."""
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from gem.sandbox import describe

    console = Console()
    theirs_python = install_theirs()
    missed: list[str] = []

    def verdict(name: str, shown: str, is_met: bool) -> str:
        if not is_met:
            missed.append(f"{name}: {shown}")
        return shown if is_met else f"[red]{shown}[/]"

    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as home:
        os.chdir(folder)  # gem-llm writes its temporary folders into the working folder
        variables = {"GEM_HOME": home}
        with Side(sys.executable, __file__, variables) as ours, Side(theirs_python, __file__, variables) as theirs:
            figures: dict[str, list[tuple[float, float]]] = {name: [] for name in GOALS}
            for _ in track(range(rounds), "Python", console=console, transient=True):
                pair = [side.ask("one", 100) for side in (ours, theirs)]
                figures["latency"].append((1e3 * pair[0]["latency"], 1e3 * pair[1]["latency"]))
                figures["processor time"].append((1e3 * pair[0]["processor"], 1e3 * pair[1]["processor"]))
                figures["64 at once"].append((ours.ask("many", 64, 2048), theirs.ask("many", 64, 512)))
            table = Table("print(1)", f"ours, {describe().backend}", "gem-llm, not isolated", "times", title="Python")
            for name, unit in zip(GOALS, ("ms", "ms", "calls/s"), strict=True):
                times = statistics.median(b / a if unit == "ms" else a / b for a, b in figures[name])
                a, b = (statistics.median(side) for side in zip(*figures[name], strict=True))
                table.add_row(
                    name, f"{a:.2f} {unit}", f"{b:.2f} {unit}", verdict(name, f"{times:.2f}", times >= GOALS[name])
                )
            a, b = ours.ask("hanging"), theirs.ask("hanging")
            name = "hanging, timeout=1"
            table.add_row(name, verdict(name, f"{a:.3f} s", TIMEOUT[0] <= a <= TIMEOUT[1]), f"{b:.3f} s", "")
            console.print(table)

        path = Path(folder, "corpus.jsonl")
        queries = write_corpus(path)
        for _ in range(2):  # the first builds the index
            with Side(sys.executable, __file__, variables) as side:
                figure = side.ask("search", str(path), queries)
        size = sum(each.stat().st_size for each in Path(home).rglob("*") if each.is_file())
        table = Table("search", "ours", title=f"{PASSAGES:,} passages, {size / 1e6:.0f} MB of index")
        median = figure["latency"]
        table.add_row("query, median", verdict("query", f"{1e3 * median:.2f} ms", median < SEARCH_SECONDS))
        added = figure["added"]
        table.add_row("256 environments add", verdict("memory", f"{added / 1e6:.1f} MB", added < SHARED_BYTES * size))
        console.print(table)
        os.chdir("/")
    for line in missed:
        console.print(f"[red]missed[/] {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    main()
