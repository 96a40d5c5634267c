"""The same evaluation by four toolkits: `gem eval`, inspect_ai, lm-evaluation-harness and verifiers.

    python ci/venv.py inspect && python ci/venv.py lm-eval && python ci/venv.py verifiers
    .venvs/trl/bin/python ci/bench/toolkits.py --out toolkits.md

Each asks the same questions (of reasoning_gym) of the same chat server, whose answers are right in half of the cases,
by its own command, with its own default retries, 16 requests at a time, and 5 seconds for an answer where it has such a
flag. Three runs each: a healthy server; one where 30% of the requests get a 429, 5% a 500, 5% half an answer and 2%
none; and one that is killed (SIGKILL, with all its processes) after half of the answers and resumed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE / "toolkits"))

from chat_server import ChatServer  # noqa: E402

ENV_ID = "rg:letter_counting"
FAULTS = {"429": 0.3, "500": 0.05, "torn": 0.05, "hang": 0.02}
CONCURRENCY = 16
ANSWER_SECONDS = 5
LIMIT = 900.0
"""Seconds of a run."""

Scores = dict[int, float]
"""The score of each question that has one."""


class Toolkit(ABC):
    """Runs the evaluation in a folder.

    Args:
        python: of the virtual environment where it is installed.
    """

    name: str
    venv: str

    def __init__(self, python: Path) -> None:
        self.bin = python.parent

    @abstractmethod
    def begin(self, url: str, count: int) -> list[str]:
        """Return the command, started in a folder with `questions.jsonl` and what is in `toolkits`."""

    @abstractmethod
    def resume(self, folder: Path, url: str, count: int) -> list[list[str]]:
        """Return the commands that go on after a crash."""

    @abstractmethod
    def read(self, folder: Path) -> tuple[float | None, Scores]:
        """Return the success rate that the toolkit reports, and its scores."""

    def version(self) -> str:
        """Return the version that is installed."""
        code = f"import importlib.metadata as m; print(m.version({self.name!r}))"
        return subprocess.check_output([str(self.bin / "python"), "-c", code], text=True).strip()


class Gem(Toolkit):
    name, venv = "gem-adapters", "trl"

    def begin(self, url: str, count: int) -> list[str]:
        model = ["--model", url, "--chat", "--server-model", "fake", "--answer-timeout", str(ANSWER_SECONDS)]
        run = ["--tasks", str(count), "--concurrency", str(CONCURRENCY), "--out", "out"]
        return [str(self.bin / "gem"), "eval", ENV_ID, *model, *run]

    def resume(self, folder: Path, url: str, count: int) -> list[list[str]]:
        return [[*self.begin(url, count), "--resume"]]

    def read(self, folder: Path) -> tuple[float | None, Scores]:
        from gem.evaluation import read_evaluation

        summary = json.loads((folder / "out" / "summary.json").read_text())
        evaluation = read_evaluation(folder / "out")
        scores = {task: float(episode.success) for (task, _), episode in evaluation.episodes.items()}
        return summary["environments"][ENV_ID]["success"]["mean"], scores


class Inspect(Toolkit):
    name, venv = "inspect_ai", "inspect"
    flags = ("--max-connections", str(CONCURRENCY), "--attempt-timeout", str(ANSWER_SECONDS), "--display", "none")

    def begin(self, url: str, count: int) -> list[str]:
        command = [str(self.bin / "inspect"), "eval", "inspect_letters.py", "--model", "openai-api/fake/fake"]
        return [*command, "--limit", str(count), "--log-dir", "out", *self.flags]

    def resume(self, folder: Path, url: str, count: int) -> list[list[str]]:
        log = self._log(folder)
        recovered = str(folder / "out" / f"{log.stem}-recovered.eval")
        return [
            [str(self.bin / "inspect"), "log", "recover", str(log), "--output", recovered],
            [str(self.bin / "inspect"), "eval-retry", recovered, "--log-dir", "out", *self.flags],
        ]

    def read(self, folder: Path) -> tuple[float | None, Scores]:
        dump = subprocess.check_output([str(self.bin / "inspect"), "log", "dump", str(self._log(folder))], text=True)
        log = json.loads(dump)
        reported = log["results"]["scores"][0]["metrics"]["accuracy"]["value"] if log.get("results") else None
        rows = [row for row in log.get("samples") or [] if row.get("scores") and not row.get("error")]
        return reported, {int(row["id"]): float(row["scores"]["boxed"]["value"]) for row in rows}

    @staticmethod
    def _log(folder: Path) -> Path:
        return max((folder / "out").glob("*.eval"), key=lambda path: path.stat().st_mtime)


class LmEval(Toolkit):
    name, venv = "lm_eval", "lm-eval"

    def begin(self, url: str, count: int) -> list[str]:
        model = f"model=fake,base_url={url}/chat/completions,num_concurrent={CONCURRENCY},timeout={ANSWER_SECONDS}"
        task = ["--tasks", "letters", "--include_path", "lm_eval_letters"]
        run = ["--apply_chat_template", "--log_samples", "--output_path", "out", "--use_cache", "cache"]
        command = [str(self.bin / "lm_eval"), "run", "--model", "local-chat-completions", "--model_args", model]
        return [*command, *task, "--limit", str(count), *run]

    def resume(self, folder: Path, url: str, count: int) -> list[list[str]]:
        return [self.begin(url, count)]

    def read(self, folder: Path) -> tuple[float | None, Scores]:
        files = sorted((folder / "out").rglob("samples_*.jsonl"))
        if not files:
            return None, {}
        result = json.loads(max((folder / "out").rglob("results_*.json")).read_text())
        rows = [json.loads(line) for line in files[-1].read_text().splitlines()]
        return result["results"]["letters"]["exact_match,boxed"], {r["doc_id"]: r["exact_match"] for r in rows}


class Verifiers(Toolkit):
    name, venv = "verifiers", "verifiers"
    agent = ("--env.agent.harness.id", "null", "--env.agent.runtime.type", "subprocess")

    def begin(self, url: str, count: int) -> list[str]:
        client = ["--client.base-url", url, "--client.api-key-var", "FAKE_API_KEY"]
        client += ["--client.timeout.read", str(ANSWER_SECONDS)]
        run = ["-m", "fake", "-n", str(count), "-c", str(CONCURRENCY), "--no-push", "--no-rich", "-o", "out"]
        return [str(self.bin / "vf-eval"), "verifiers_letters", *run, *self.agent, *client]

    def resume(self, folder: Path, url: str, count: int) -> list[list[str]]:
        config = next((folder / "out").glob("*/configs/resolved/eval.json"))
        return [[str(self.bin / "vf-eval"), "@", str(config), "--resume"]]

    def read(self, folder: Path) -> tuple[float | None, Scores]:
        rows = [json.loads(line) for line in next((folder / "out").glob("*/traces.jsonl")).read_text().splitlines()]
        runs = [run for row in rows for run in row["traces"]]
        scores = {
            run["task"]["data"]["idx"]: float(run["rewards"]["boxed"]["score"]) for run in runs if not run["errors"]
        }
        return (sum(scores.values()) / len(scores) if scores else None), scores  # as its dashboard has it


@dataclass
class Run:
    """What a run did: seconds of wall clock and CPU, bytes written, score reported, scores, exit code."""

    wall: float
    cpu: float
    size: int
    reported: float | None
    scores: Scores
    code: int | None
    answered: int


def environment(toolkit: Toolkit, folder: Path, url: str) -> dict[str, str]:
    """Return what the commands see: no hub, and the index of packages for the scripts that verifiers installs."""
    from_pip = subprocess.check_output([sys.executable, "-m", "pip", "config", "list"], text=True)
    indexes = re.findall(r"index-url='(.*)'", from_pip)
    return {
        **os.environ,
        "PATH": f"{toolkit.bin}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "QUESTIONS": str(folder / "questions.jsonl"),
        "FAKE_API_KEY": "none",
        "FAKE_BASE_URL": url,
        "OPENAI_API_KEY": "none",
        "HF_HOME": str(folder / "hub"),
        "HF_HUB_OFFLINE": "1",
        "UV_INDEX": " ".join(indexes),
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }


def call(command: list[str], folder: Path, env: dict[str, str], server: ChatServer, stop_at: int | None) -> int | None:
    """Run a command; kill it with all its processes once the server has answered `stop_at` requests."""
    with (folder / "output.txt").open("ab") as output:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=output, stderr=output, start_new_session=True)
    deadline = time.monotonic() + LIMIT
    while process.poll() is None:
        if (stop_at is not None and sum(server.answered.values()) >= stop_at) or time.monotonic() > deadline:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            for member in family:
                try:
                    member.send_signal(signal.SIGKILL)
                except psutil.NoSuchProcess:
                    continue
            process.wait()
            return None
        time.sleep(0.01)
    return process.returncode


def run(toolkit: Toolkit, rows: list[dict[str, str]], folder: Path, faults: dict[str, float], kill: bool) -> Run:
    """Evaluate once in a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(HERE / "toolkits", folder)
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with ChatServer(rows, faults, latency=0.5) as server:
        env = environment(toolkit, folder, server.url)
        code = call(toolkit.begin(server.url, len(rows)), folder, env, server, len(rows) // 2 if kill else None)
        if kill:
            for command in toolkit.resume(folder, server.url, len(rows)):
                code = call(command, folder, env, server, None)
        answered = sum(server.answered.values())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    written = [path for path in (folder / "out").rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in written if path.suffix != ".html")
    reported, scores = toolkit.read(folder) if written else (None, {})
    return Run(time.monotonic() - begin, cpu, size, reported, scores, code, answered)


def questions(count: int) -> list[dict[str, str]]:
    """Return what `gem eval` asks, with the right answers."""
    from gem.tasks import make_tasks

    rows = []
    for task in make_tasks(ENV_ID, range(count), split="eval"):
        with task.make() as env:
            question, _ = env.reset(seed=task.reset_seed)
            rows.append({"question": question, "answer": re.findall(r"\\boxed\{(.*)\}", env.reference_action())[0]})
    return rows


def row_of(toolkit: Toolkit, rows: list[dict[str, str]], folder: Path) -> str:
    """Return a toolkit's row of the table."""
    few = run(toolkit, rows[: len(rows) // 5], folder / "few", {}, kill=False)  # once more: the first compiles
    few = run(toolkit, rows[: len(rows) // 5], folder / "few", {}, kill=False)
    healthy = run(toolkit, rows, folder / "healthy", {}, kill=False)
    if len(healthy.scores) < len(rows):
        sys.exit(f"{toolkit.name} does not run: see {folder}/healthy/output.txt")
    faulty = run(toolkit, rows, folder / "faulty", FAULTS, kill=False)
    killed = run(toolkit, rows, folder / "killed", {}, kill=True)
    more = len(rows) - len(rows) // 5
    wrong = sum(score != healthy.scores.get(number) for number, score in faulty.scores.items())
    shown = "none" if faulty.reported is None else f"{faulty.reported:.3f}"
    cells = [
        f"{toolkit.name} {toolkit.version()}",
        f"{len(rows)}",
        f"{healthy.reported:.3f}",
        f"{shown} (exit code {faulty.code})",
        f"{len(rows) - len(faulty.scores)} without a score, {wrong} wrong",
        f"{faulty.wall:.0f} s",
        f"{len(rows) - len(killed.scores)} lost, {killed.answered - len(rows)} asked again",
        f"{(healthy.cpu - few.cpu) / more * 1000:.0f} ms",
        f"{healthy.cpu - len(rows) * (healthy.cpu - few.cpu) / more:.1f} s",
        f"{(healthy.size - few.size) / more:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


HEADER = (
    "| toolkit | questions | score, healthy | score reported under faults | samples under faults | time under faults "
    "| killed and resumed | CPU a sample | CPU to start | bytes a sample |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--only", nargs="*", help="names of toolkits")
    parser.add_argument("--out", type=Path, help="where to write the table")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "gem-toolkits")
    args = parser.parse_args()
    rows = questions(args.questions)
    table = [HEADER, "|---" * HEADER.count(" | ") + "|---|"]
    for kind in (Gem, Inspect, LmEval, Verifiers):
        if not args.only or kind.name in args.only:
            toolkit = kind(ROOT / ".venvs" / kind.venv / "bin" / "python")
            table.append(row_of(toolkit, rows, args.folder / kind.venv))
            print(table[-1], flush=True)
    if args.out:
        args.out.write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    main()
