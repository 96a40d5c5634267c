"""What an evaluation costs beside its episodes: the rollout runner alone, and ``evaluate`` with the same episodes.

Both are measured in one process, in turn, in processor time. An evaluation writes every episode and makes its report.
At last the same episodes are run with a server in another process, which answers each request after 10 ms.

    python ci/bench/evaluation.py [--episodes 10000] [--turns 5] [--concurrency 10000]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rollout import ENV, Constant, Counter, Script

from gem.evaluation import TokenAgent, evaluate, summarize
from gem.evaluation.client import Client, Server
from gem.evaluation.report import write_report
from gem.evaluation.server import ServerEngine
from gem.rollout import run_episodes
from gem.tasks import make_tasks

GOAL = 1.0
"""Milliseconds of processor time a turn, beyond those of the runner."""


def _answers() -> None:
    """Serve completions on a free port, which is printed."""
    from aiohttp import web

    async def answer(request: web.Request) -> web.Response:
        prompt = (await request.json())["prompt"]
        await asyncio.sleep(0.01)
        logprobs = {"token_logprobs": [-0.5, -0.5]}
        choice = {"token_ids": [5, 2], "prompt_token_ids": prompt, "finish_reason": "stop", "logprobs": logprobs}
        return web.json_response({"choices": [choice]})

    async def serve() -> None:
        app = web.Application()
        app.router.add_post("/v1/completions", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=10_000)
        await site.start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.sleep(3600)

    asyncio.run(serve())


@contextlib.contextmanager
def _server() -> Iterator[str]:
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
        finally:
            process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=10_000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return _answers()
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
    with tempfile.TemporaryDirectory() as folder, _server() as url:
        start, wall = time.process_time(), time.perf_counter()
        engine = ServerEngine(Client(Server(url), args.concurrency), (), size=10)
        agent = TokenAgent("server", engine, Constant(), make_env=lambda task: Counter(args.turns))
        evaluation = evaluate(tasks, agent, folder, concurrency=args.concurrency)
        spent, wall = time.process_time() - start, time.perf_counter() - wall
    assert not evaluation.missing
    print(
        f"with a server, {args.concurrency} episodes at a time: {turns / wall:,.0f} requests per second, "
        f"{1000 * spent / turns:.3f} ms a turn"
    )
    print(f"goal: at most {GOAL:g} ms a turn beyond the runner")
    if worst > GOAL:
        sys.exit(1)


if __name__ == "__main__":
    main()
