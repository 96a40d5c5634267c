"""Train a language-model agent on a GEM environment with RL2.

.. code-block:: bash

    python ci/venv.py rl2
    .venvs/rl2/bin/python examples/train_rl2.py                       # two CPU cores, about three minutes
    .venvs/rl2/bin/python examples/train_rl2.py --algorithm ppo --steps 3
    .venvs/rl2/bin/python examples/train_rl2.py -- actor.clip=0.1 trainer.use_wandb=true     # any key of RL2's
    .venvs/rl2/bin/python examples/train_rl2.py --env game:Mastermind-v0-easy,game:GuessTheNumber-v1-easy

This script writes the rows and a command, ``torchrun ...`` with RL2's own flags, runs it and shows how it goes. The
command is in ``command.sh``, to copy the flags from; those of GEM are the first.

What is real: rl-square 0.0.2's trainer, rollout, packing, FSDP, losses, critic and weight push, and sglang's router.
Without a GPU ``ci/cpu/rl2`` replaces what needs one: gloo for NCCL, torch's attention for flash-attn, and for
sglang a server over transformers that speaks its protocol. On GPUs, with RL2's own installation, the same file uses no
CPU shim; that has not been tried.

In ``--out``: ``model/`` (the trained model), ``metrics.jsonl`` (one line per step), ``episodes.jsonl`` (the episodes of
the first and the last step), ``curve.png``; and of RL2: ``rl2.jsonl`` (its own metrics), ``rl2.log`` (what it prints)
and ``episodes/`` (all).
"""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

try:
    import torch
    import tyro
    from transformers import AutoTokenizer

    from gem.files import hold_folder
    from gem.models import resolve_model
    from gem.rollout import ChatRenderer, OnError, mean_metrics, read_episodes
    from gem.rollout.rows import rl2_row, write_rows
    from gem.training.args import TrainingArgs, split_words
    from gem.training.log import TrainingLog
    from gem.training.process import TrainerFailed, read_rows, require_trainer, run_trainer
except ImportError as error:
    sys.exit(f"error: {error}. In this folder: python ci/venv.py rl2, then .venvs/rl2/bin/python {sys.argv[0]}")

CPU_SHIMS = Path(__file__).resolve().parent.parent / "ci" / "cpu" / "rl2"


@dataclass
class Args(TrainingArgs):
    algorithm: Literal["rebn", "grpo", "reinforce", "ppo"] = "rebn"
    """rebn: one advantage per turn, against the batch; grpo: against the group, over its deviation; reinforce: against
    the batch; ppo: with a critic of tokens"""
    on_error: OnError = "mask"
    """what is learned from episodes whose environment fails: nothing (mask), or like from any other (keep)"""
    validation: int = 64
    """tasks of another split, with greedy decoding, after the training; 0 for none"""
    out: str = "out/rl2"
    """folder of the results"""


def gem_keys(args: Args, out: Path) -> dict:
    """What puts a GEM environment into an RL2 job, and the rows that it names."""
    import gem_rl2

    write_rows(map(rl2_row, args.tasks(args.task_seeds)), out / "train.jsonl")
    write_rows(map(rl2_row, args.tasks(range(args.validation or 1), "eval")), out / "eval.jsonl")
    return {
        "rollout.env_path": gem_rl2.__file__,
        "train_data.path": str(out / "train.jsonl"),
        "test_data.path": str(out / "eval.jsonl"),
        "rollout.max_turns": args.max_turns or 1_000,  # the environment has its own limit
        "+rollout.gem.max_context": context(args),
        "+rollout.gem.on_error": args.on_error,
        "+rollout.gem.episodes": str(out / "episodes"),
    }


def context(args: Args) -> int:
    """Tokens of an episode."""
    return 2048 if args.embedded else 4096


def algorithm_keys(args: Args) -> dict:
    """RL2 has one estimator for all that compare whole episodes."""
    if args.algorithm == "rebn":
        return {"adv.estimator": "rebn", "adv.gamma": args.gamma}
    if args.algorithm == "ppo":
        return {"adv.estimator": "gae", "critic.lr": args.lr}
    return {"adv.estimator": "reinforce", "adv.norm_var": True, "adv.global_norm": args.algorithm == "reinforce"}


def job_keys(args: Args, model: str, out: Path) -> dict:
    """The rest of the job, as any RL2 job has it. ``max_new_tokens`` is of a turn."""
    return {
        "actor.model_name": model,
        "actor.lr": args.lr,
        "actor.max_length_per_device": max(16384, context(args)),
        "actor.gradient_checkpointing": not args.embedded,
        "train_data.prompts_per_rollout": args.groups,
        "train_data.responses_per_prompt": args.group_size,
        "rollout.train_sampling_params.max_new_tokens": args.max_new_tokens,
        "rollout.dynamic_filtering": False,  # it ends the run when every group of a step has learned all there is
        "trainer.test_freq": args.steps if args.validation else None,
        "trainer.experiment_name": "gem",
        "trainer.save_dir": str(out / "model"),
        "trainer.use_wandb": False,
        "hydra.run.dir": str(out / "hydra"),
        "hydra.output_subdir": None,
    }


def cpu_keys() -> dict:
    """What a machine without a GPU needs."""
    return {"rollout.server_args.dtype": "float32"}


def word(value: object) -> str:
    """A value as Hydra reads it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def run_rl2(metrics: Path, seed: int, keys: list[str]) -> None:
    """A process of the job: RL2's trainer, which also writes its metrics."""
    if not torch.cuda.is_available():
        sys.path.insert(0, str(CPU_SHIMS))
        import rl2_cpu  # noqa: F401 - installs the CPU shims
    import multiprocessing
    import runpy

    import wandb
    from RL2.trainer import Trainer

    torch.manual_seed(seed)
    prepare = Trainer.__init__

    def with_metrics(self, config):
        prepare(self, config)
        if int(os.environ["RANK"]) == 0:
            wandb.log = partial(write, wandb.log if config.trainer.use_wandb else None)

    def write(log, row, step):
        if log is not None:
            log(row, step=step)
        with open(metrics, "a") as file:
            file.write(json.dumps({"step": step, **{name: float(value) for name, value in row.items()}}) + "\n")

    Trainer.__init__ = with_metrics
    sys.argv[1:] = keys
    try:
        runpy.run_module("RL2.trainer.ppo", run_name="__main__", alter_sys=True)
    finally:
        for process in multiprocessing.active_children():
            process.kill()  # RL2 leaves its servers running, and Python would wait for them


def train(args: Args, model: str, out: Path, of_rl2: Sequence[str] = ()) -> TrainingLog:
    on_gpu = torch.cuda.is_available()
    keys = {**gem_keys(args, out), **algorithm_keys(args), **job_keys(args, model, out)}
    keys |= {} if on_gpu else cpu_keys()
    variables = {"TOKENIZERS_PARALLELISM": "false", "HYDRA_FULL_ERROR": "1"}
    variables |= {} if on_gpu else {"OMP_NUM_THREADS": "1"}
    where = "the GPU" if on_gpu else "the CPU: no GPU was found. Transformers stands in for sglang, and gloo for NCCL"
    print(f"RL2 trains on {where}. It begins after a minute or so; what it prints is in {out / 'rl2.log'}.")
    processes = max(1, torch.cuda.device_count())
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    words += [str(Path(__file__).resolve()), "--run-rl2", str(out / "rl2.jsonl"), str(args.seed)]
    words += [f"{key}={word(value)}" for key, value in keys.items()]
    words += of_rl2
    with TrainingLog(out, args.steps, f"{args.env}: RL2, {args.algorithm}, {args.model} model") as log:
        run_trainer(words, variables, out / "rl2.log", lambda: record_new_steps(log, out))
    return log


def record_new_steps(log: TrainingLog, out: Path) -> None:
    """Record the steps after which RL2 has sent its weights."""
    done = sum("timing/update_rollout" in row for row in rl2_metrics(out))
    for step in range(len(log.metrics) + 1, done + 1):
        log.record(read_episodes(out / "episodes", "train", step))


def rl2_metrics(out: Path) -> list[dict]:
    """What RL2 has logged: one row per call of its own."""
    return read_rows(out / "rl2.jsonl")


def validation_summary(args: Args, out: Path) -> str:
    if not args.validation:
        return "no evaluation was asked for"
    metrics = mean_metrics(read_episodes(out / "episodes", "eval", args.steps))
    if "success" not in metrics:
        return "RL2 made no evaluation"
    return f"greedy evaluation: success {metrics['success']:.3f} after"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run-rl2"]:
        run_rl2(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
        sys.exit()
    require_trainer("rl2")
    own, of_rl2 = split_words(sys.argv[1:])
    args = tyro.cli(Args, args=own, description=__doc__)
    out = Path(args.out).resolve()
    try:
        args.fill_in()
        hold_folder(out)
        model = resolve_model(args.model)
        ChatRenderer(AutoTokenizer.from_pretrained(model))  # refuses a tokenizer without a chat template
    except (ValueError, TypeError, ImportError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    shutil.rmtree(out / "episodes", ignore_errors=True)
    (out / "rl2.jsonl").unlink(missing_ok=True)
    try:
        log = train(args, model, out, of_rl2)
    except TrainerFailed as error:
        sys.exit(f"error: {error}")
    print(log.summary())
    if (out / "model").is_dir():  # options of the trainer may keep it from saving
        print(f"The trained model is in {out / 'model'}.")
    print(validation_summary(args, out))
