"""What an evaluation costs beside its episodes: the rollout runner alone, and ``evaluate`` with the same episodes.

Both are measured in one process, in turn, in processor time. An evaluation writes every episode and makes its report.

    python ci/bench/evaluation.py [--episodes 10000] [--turns 5] [--concurrency 10000]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from rollout import ENV, Constant, Counter, Script

from gem.evaluation import TokenAgent, evaluate, summarize
from gem.evaluation.report import write_report
from gem.rollout import run_episodes
from gem.tasks import make_tasks

GOAL = 1.0
"""Milliseconds of processor time a turn, beyond those of the runner."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=10_000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    tasks, turns = make_tasks(ENV, range(args.episodes)), args.episodes * args.turns
    worst = 0.0
    for _ in range(args.repeats):
        start = time.process_time()
        asyncio.run(run_episodes(tasks, Script(), Constant(), make_env=lambda task: Counter(args.turns)))
        runner = time.process_time() - start
        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time()
            agent = TokenAgent("scripted", Script(), Constant(), make_env=lambda task: Counter(args.turns))
            evaluation = evaluate(tasks, agent, folder, concurrency=args.concurrency)
            played = time.process_time() - start
            summarize(evaluation)
            write_report(Path(folder, "report.html"), evaluation)
            whole = time.process_time() - start
        assert not evaluation.missing
        extra = 1000 * (played - runner) / turns
        worst = max(worst, extra)
        print(
            f"{args.episodes} episodes of {args.turns} turns: runner {1000 * runner / turns:.3f} ms a turn, evaluation "
            f"{extra:+.3f} ms; summary and report {1000 * (whole - played) / turns:.3f} ms a turn"
        )
    print(f"goal: at most {GOAL:g} ms a turn beyond the runner")
    if worst > GOAL:
        sys.exit(1)


if __name__ == "__main__":
    main()
