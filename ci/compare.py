"""Do all trainers see the same? Run the conformance suite on every adapter, train with each, and write a report.

    python ci/compare.py --conformance-only           # the matrix: what each trainer makes of the same episodes
    python ci/compare.py --steps 20           # and the trainings, from the same checkpoint on the same tasks
    python ci/compare.py --same-run --steps 40 --seeds 0 1  # one run, configured alike in all: where do they part?

Makes the virtual environments that are missing (.venvs/<trainer>). Trainings that are there already, in the folder of
the report, are not made again; a trainer that fails is a red row with its log. Needs nothing but Python itself.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gem.files import FolderInUse, hold_folder, replace_file  # noqa: E402
from gem.training.process_tree import ProcessTree, ended_by_signals  # noqa: E402


@dataclass(frozen=True)
class Trainer:
    """How a trainer is compared."""

    name: str
    algorithm: str
    cpu_shims: str

    @property
    def key(self) -> str:
        return self.name.lower()

    @property
    def python(self) -> str:
        return str(ROOT / ".venvs" / self.key / "bin" / "python")


TRAINERS = (
    Trainer("TRL", "grpo", "nothing: trainer, loss and generation are TRL's and transformers'"),
    Trainer("verl", "grpo", "a rollout by transformers for vLLM, a CPU platform, SDPA for flash attention"),
    Trainer("OpenRLHF", "grpo", "vLLM's build for CPUs in bfloat16, gloo for NCCL, the lines that name CUDA"),
    Trainer("Oat", "rebn", "launchpad and plasma in one process, transformers for vLLM, torch's Adam"),
    Trainer("RL2", "grpo", "a server over transformers for sglang, SDPA for flash attention, gloo for NCCL"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [trainer.key for trainer in TRAINERS]
    parser.add_argument("--trainers", nargs="+", choices=names, default=names)
    parser.add_argument("--conformance-only", action="store_true", help="no training")
    parser.add_argument("--same-run", action="store_true", help="nothing but the same run in all trainers")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--env", default="game:GuessTheNumber-v1-easy")
    parser.add_argument("--out", type=Path, default=ROOT / "report", help="folder of the report")
    args = parser.parse_args()
    try:
        hold_folder(args.out)
    except FolderInUse as error:
        parser.error(str(error))
    chosen = [trainer for trainer in TRAINERS if trainer.key in args.trainers]
    for trainer in chosen:
        subprocess.run([sys.executable, str(ROOT / "ci" / "venv.py"), trainer.key], check=True)
    if args.same_run:
        sys.exit(same_run(chosen, args.seeds, args.steps, args.out / "same-run"))
    conformance = {trainer.name: run_conformance(trainer, args.out) for trainer in chosen}
    print(matrix(conformance))
    if args.conformance_only:
        sys.exit(0 if all(is_conformant(report) for report in conformance.values()) else 1)
    runs = [run(trainer, seed, args) for seed in args.seeds for trainer in chosen]
    report = {
        "made": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} CPU cores, Python {sys.version.split()[0]}",
        "env": args.env,
        "steps": args.steps,
        "seeds": args.seeds,
        "trainers": [{"name": t.name, "algorithm": t.algorithm, "cpu_shims": t.cpu_shims} for t in chosen],
        "conformance": conformance,
        "runs": runs,
    }
    replace_file(args.out / "report.json", json.dumps(report, indent=1) + "\n")
    with_plots = next((t for t in chosen if t.key == "trl"), chosen[0])
    subprocess.run([with_plots.python, str(ROOT / "ci" / "report.py"), str(args.out)], check=True)
    failed = [run for run in runs if run["error"]]
    sys.exit(0 if all(is_conformant(report) for report in conformance.values()) and not failed else 1)


# Conformance


def run_conformance(trainer: Trainer, out: Path) -> dict[str, Any]:
    """Return the conformance report of a trainer; if the suite itself fails, one that says so."""
    folder = out / "conformance"
    folder.mkdir(exist_ok=True)
    result, log = folder / f"{trainer.key}.json", folder / f"{trainer.key}.log"
    result.unlink(missing_ok=True)
    print(f"\n{trainer.name}: conformance", flush=True)
    command = [trainer.python, str(ROOT / "ci" / "conformance" / f"on_{trainer.key}.py"), "--out", str(result)]
    with open(log, "wb") as file, ProcessTree(command, quiet(), subprocess.PIPE, file) as tree:
        assert tree.process.stdout is not None
        for line in tree.process.stdout:
            file.write(line)
            if line[:2] in (b"= ", b"~ ", b"X "):
                print(f"  {line.decode(errors='replace').rstrip()}", flush=True)
    if not result.is_file():
        print(f"  X the conformance suite did not end: {log}")
        empty: dict[str, Any] = {kind: [] for kind in KINDS}
        return {"trainer": trainer.name, "version": "", **empty, "error": tail(log)}
    return json.loads(result.read_text())


def is_conformant(report: dict[str, Any]) -> bool:
    return bool(report["cells"]) and not broken(report)


KINDS = ("cells", "advantages", "gradients", "updates")
"""The parts of a conformance report."""


def matrix(conformance: dict[str, dict[str, Any]]) -> str:
    """Return the matrix as text: = the same, ~ as declared, X broken."""
    marks = {"equal": "=", "declared": "~", "broken": "X"}
    names = list(dict.fromkeys(cell["name"] for report in conformance.values() for cell in report["cells"]))
    verdicts = {
        (trainer, cell["name"]): marks[cell["verdict"]]
        for trainer, report in conformance.items()
        for cell in report["cells"]
    }
    about = {
        "gradients": "gradients of the trainer's own losses, against the declared sum over sampled tokens",
        "updates": "parameters after two updates of the trainer's own optimiser, against the declared AdamW",
    }
    others = {
        kind: list(dict.fromkeys(cell["name"] for report in conformance.values() for cell in report[kind]))
        for kind in about
    }
    width = max(map(len, [*names, *(name for own in others.values() for name in own)]), default=0)
    lines = ["", " " * width + "".join(f"{trainer:>10}" for trainer in conformance)]
    lines += [
        f"{name:{width}}" + "".join(f"{verdicts.get((trainer, name), 'X'):>10}" for trainer in conformance)
        for name in names
    ]
    for kind, title in about.items():
        lines += ["", title]
        for name in others[kind]:
            found = [[cell for cell in report[kind] if cell["name"] == name] for report in conformance.values()]
            lines.append(f"{name:{width}}" + "".join(f"{marks[own[0]['verdict']] if own else '':>10}" for own in found))
    lines += ["", "= the same as the episode   ~ differs exactly as declared   X broken"]
    for trainer, report in conformance.items():
        whys = dict.fromkeys(cell["detail"] for cell in report["cells"] if cell["verdict"] == "declared")
        lines += [f"  {trainer} ~ {why}" for why in whys]
        lines += [f"  {trainer} X {cell['name']}: {cell['detail']}" for cell in broken(report)]
    return "\n".join(lines)


def broken(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for kind in KINDS for cell in report[kind] if cell["verdict"] == "broken"]


# The same run


def same_run(chosen: list[Trainer], seeds: list[int], steps: int, out: Path) -> int:
    """Make the same run with each trainer, in one process each, and compare them; return the exit code."""
    for seed in seeds:
        for trainer in chosen:
            folder = out / str(seed) / trainer.key
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            script = ROOT / "ci" / "same_run" / f"run_{trainer.key}.py"
            words = ["--out", str(folder), "--steps", str(steps), "--seed", str(seed)]
            print(f"{trainer.name}, seed {seed}: {steps} steps", flush=True)
            with (
                open(folder / "run.log", "w") as file,
                ProcessTree([trainer.python, str(script), *words], quiet(), file, file) as tree,
            ):
                code = tree.wait()
            if code:
                print(f"{trainer.name} failed: {folder / 'run.log'}\n{tail(folder / 'run.log')}")
                return 1
    names = [trainer.key for trainer in chosen]
    with_plots = next((t for t in chosen if t.key == "trl"), chosen[0])
    command = [with_plots.python, str(ROOT / "ci" / "same_run" / "compare_runs.py"), str(out), "--steps", str(steps)]
    command += ["--trainers", *names, "--seeds", *map(str, seeds)]
    return subprocess.run(command, check=False).returncode


# The trainings


def run(trainer: Trainer, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train, or take what is there of the same training; return what came of it."""
    folder = args.out / "runs" / f"{trainer.key}-{seed}"
    words = ["--algorithm", trainer.algorithm, "--steps", str(args.steps), "--seed", str(seed), "--env", args.env]
    command = [trainer.python, str(ROOT / "examples" / f"train_{trainer.key}.py"), *words, "--out", str(folder)]
    stamp = folder / "compared.json"
    if stamp.is_file() and (kept := json.loads(stamp.read_text()))["command"] == command and not kept["error"]:
        print(f"{trainer.name}, seed {seed}: is there already")
        return kept
    print(f"{trainer.name}, seed {seed}: {args.steps} steps", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log = folder / "compare.log"
    since = time.perf_counter()
    with open(log, "w") as file, Memory() as memory, ProcessTree(command, quiet(), file, file) as tree:
        memory.watch(tree.process.pid)
        code = tree.wait()
    seconds = time.perf_counter() - since
    result: dict[str, Any] = {"trainer": trainer.name, "seed": seed, "command": command, "seconds": seconds}
    result |= {"peak_memory": memory.peak, "error": "" if code == 0 else tail(log), "steps": [], "split": {}}
    if code == 0:
        result["steps"] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        result["split"] = split(trainer, folder, result["steps"], seconds)
        first, last = (result["steps"][i]["success_rate"] for i in (0, -1))  # None if every episode failed
        print(f"  {seconds:.0f} s; success {first} at first, {last} at last", flush=True)
    else:
        print(f"  failed: {log}", flush=True)
    replace_file(stamp, json.dumps(result))
    return result


def split(trainer: Trainer, folder: Path, steps: list[dict[str, Any]], seconds: float) -> dict[str, float]:
    """Return how the time of a run was spent, in seconds.

    The last step's episodes record when they started and ended: that is the rollout; the rest is the update. The
    environment's part of the rollout is how long it takes to replay them. What is not in any step but the first,
    which is taken to be as long as the others, is starting and ending.
    """
    found = subprocess.run(
        [trainer.python, str(ROOT / "ci" / "time_environment.py"), str(folder / "episodes.jsonl"), str(len(steps))],
        capture_output=True,
        text=True,
        check=True,
        env=quiet(),
    )
    last = json.loads(found.stdout)
    usual = sorted(step["seconds"] for step in steps[1:])[len(steps[1:]) // 2] if len(steps) > 1 else 0.0
    rollout = min(last["rollout"], usual)
    environment = min(last["environment"], rollout)
    return {
        "start and end": seconds - usual * len(steps),
        "generate": (rollout - environment) * len(steps),
        "environment": environment * len(steps),
        "update": (usual - rollout) * len(steps),
        "step": usual,
    }


class Memory:
    """The highest memory (resident, in bytes) of a process and all that it started, looked at twice a second."""

    def __init__(self) -> None:
        self.peak = 0
        self._done = threading.Event()

    def __enter__(self) -> Memory:
        return self

    def watch(self, pid: int) -> None:
        self._thread = threading.Thread(target=self._look, args=(pid,), daemon=True)
        self._thread.start()

    def _look(self, pid: int) -> None:
        while not self._done.wait(0.5):
            self.peak = max(self.peak, resident(pid))

    def __exit__(self, *_: object) -> None:
        self._done.set()


def resident(root: int) -> int:
    """Return the resident bytes of a process and its descendants; what they share is counted in each."""
    parents, sizes = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        parents[int(entry.name)] = int(fields[1])
        sizes[int(entry.name)] = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    total = 0
    for pid, size in sizes.items():
        above: int | None = pid
        while above is not None and above != root:
            above = parents.get(above)
        total += size if above == root else 0
    return total


def quiet() -> dict[str, str]:
    """Return the environment of all commands. One thread: the models are so small that more are slower."""
    own = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own}


def tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-30:])


if __name__ == "__main__":
    with ended_by_signals():
        main()
