"""Train a language-model agent on a GEM environment with Oat.

.. code-block:: bash

    python ci/venv.py oat
    .venvs/oat/bin/python examples/train_oat.py                       # two CPU cores, about five minutes
    .venvs/oat/bin/python examples/train_oat.py --algorithm ppo --steps 3
    .venvs/oat/bin/python examples/train_oat.py --engine vllm --steps 2
    .venvs/oat/bin/python examples/train_oat.py -- cliprange=0.1 use_wb=true     # any argument of Oat's
    .venvs/oat/bin/python examples/train_oat.py --env game:Mastermind-v0-easy,game:GuessTheNumber-v1-easy

What is real: Oat's program, collector, actor, learner, losses and critic, and DeepSpeed. Oat wants Python 3.10,
launchpad and a GPU; where there is none of these, ``ci/cpu/oat`` replaces them: all nodes run in one process,
transformers generates (or ``--engine vllm``: vLLM's build for CPUs), and torch's Adam takes the place of DeepSpeed's.
On a machine with Oat's own installation and GPUs the same file uses no CPU shim; that has not been tried.

In ``--out``: ``model/`` (the trained model), ``metrics.jsonl`` (one line per step), ``episodes.jsonl`` (the episodes of
the first and the last step), ``curve.png``; and of Oat: ``oat.jsonl`` (its own metrics), ``oat.log`` (what it prints)
and ``episodes/`` (all).
"""

import importlib.util
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

try:
    import torch
    import tyro
    from transformers import AutoTokenizer

    from gem.files import hold_folder
    from gem.models import resolve_model
    from gem.rollout import ChatRenderer, OnError, read_episodes
    from gem.training.args import TrainingArgs, options, split_words
    from gem.training.log import TrainingLog
    from gem.training.process import TrainerFailed, read_rows, require_trainer, run_trainer
except ImportError as error:
    sys.exit(f"error: {error}. In this folder: python ci/venv.py oat, then .venvs/oat/bin/python {sys.argv[0]}")

CPU_SHIMS = Path(__file__).resolve().parent.parent / "ci" / "cpu" / "oat"


@dataclass
class Args(TrainingArgs):
    algorithm: Literal["rebn", "reinforce", "ppo", "grpo", "drgrpo"] = "rebn"
    """rebn: one advantage per turn, against the batch; reinforce: the return of each turn; ppo: with a critic of turns;
    grpo, drgrpo: episodes of one turn, against their group"""
    beta: float = 0.0
    """coefficient of the KL divergence from the model that the training begins with"""
    on_error: OnError = "mask"
    """what is learned from episodes whose environment fails: nothing (mask), or like from any other (keep)"""
    turns: int | None = None
    """turns that a step learns from, which is what Oat counts; by default three for each episode of the batch size"""
    validation: int = 64
    """tasks of another split, with greedy decoding, before and after the training; 0 for none"""
    engine: Literal["hf", "vllm"] = "hf"
    """without a GPU: transformers, or vLLM's build for CPUs"""
    out: str = "out/oat"
    """folder of the results"""


def oat_arguments(args: Args, model: str, out: Path, on_gpu: bool) -> dict:
    """The arguments of Oat's job; GEM's are the first."""
    in_groups = args.algorithm in ("grpo", "drgrpo")
    turns = args.batch_size if in_groups else args.turns or 3 * args.batch_size
    seeds = args.task_seeds
    gpus = max(1, torch.cuda.device_count())
    return dict(
        tasks=args.task_source(range(seeds.start, seeds.start + args.steps * args.batch_size)),
        eval_tasks=args.task_source(range(args.validation), "eval"),
        training_steps=args.steps,
        num_envs=args.batch_size,
        max_turns=args.max_turns,
        on_error=args.on_error,
        episodes=str(out / "episodes"),
        # From here on as in any job of Oat's.
        pretrain=model,
        critic_type={"ppo": "ppo", "grpo": "grpo"}.get(args.algorithm, "drgrpo"),
        whiten_adv=args.algorithm == "rebn",
        gamma=args.gamma,
        beta=args.beta,
        num_samples=args.group_size if in_groups else 1,
        generate_max_length=args.max_new_tokens,
        eval_generate_max_length=args.max_new_tokens,
        max_model_len=2048 if args.embedded else 4096,
        rollout_batch_size=turns * gpus,
        rollout_batch_size_per_device=turns,
        pi_buffer_maxlen_per_device=turns,
        train_batch_size=turns * gpus,
        train_batch_size_per_device=1,
        eval_batch_size=max(1, args.validation),
        eval_steps=args.steps + 1 if args.validation else -1,  # before the training, and once more at its end
        eval_temperature=0.0,
        learning_rate=args.lr,
        critic_learning_rate=args.lr,
        lr_scheduler="constant",
        seed=args.seed,
        gpus=gpus,
        collocate=True,
        bf16=on_gpu,
        flash_attn=on_gpu and importlib.util.find_spec("flash_attn") is not None,
        gradient_checkpointing=not args.embedded,
        zero_stage=2 if on_gpu else 0,
        debug=not args.validation,  # else Oat evaluates before it trains
        save_steps=args.steps + 1,  # at the end of the training only
        save_path=str(out / "oat"),
        use_wb=False,
    )


def run_oat(settings: Path) -> None:
    """The process in which Oat runs: its program, with GEM's actor and a learner that also writes its metrics."""
    config = json.loads(settings.read_text())
    if not config["on_gpu"]:
        import oat_cpu  # noqa: F401 - installs the CPU shims
    import launchpad
    from oat.algorithms.ppo import PPOLearner
    from oat.algorithms.ppo_multiturn import PPOMultiTurnLearner
    from oat.args import default_args_validation
    from oat.interface import get_program

    from gem_oat import GemActor, GemArgs, GemGroupActor, GemLearnerMixin

    class Learner(GemLearnerMixin, PPOLearner if config["in_groups"] else PPOMultiTurnLearner):
        def learn(self, learning_round):
            return self.written("train", learning_round, super().learn(learning_round))

        def evaluate(self, dataloader, steps):
            return self.written("eval", steps, super().evaluate(dataloader, steps))

        def written(self, kind, step, metrics):
            if self.strategy.is_rank_0():
                of_actor = self.actor_info if kind == "train" else {}
                row = {name: float(value) for name, value in {**of_actor, **metrics}.items()}
                with open(settings.with_name("oat.jsonl"), "a") as file:
                    file.write(json.dumps({"kind": kind, "step": step, **row}) + "\n")
            return metrics

    args = default_args_validation(GemArgs(**config["arguments"]))
    program, resources = get_program(args, Learner, GemGroupActor if config["in_groups"] else GemActor)
    launchpad.launch(program, launch_type=args.launch_type, local_resources=resources, terminal="current_terminal")
    if not config["on_gpu"]:
        sys.stdout.flush()
        os._exit(0)  # threads of the CPU shim for launchpad wait for calls for ever


def train(args: Args, model: str, out: Path, of_oat: dict | None = None) -> TrainingLog:
    on_gpu = torch.cuda.is_available()
    settings = {
        "on_gpu": on_gpu,
        "in_groups": args.algorithm in ("grpo", "drgrpo"),
        "arguments": {**oat_arguments(args, model, out, on_gpu), **(of_oat or {})},
        "flags": asdict(args),
    }
    (out / "settings.json").write_text(json.dumps(settings, indent=2))
    variables = {"TOKENIZERS_PARALLELISM": "false", "VLLM_NO_USAGE_STATS": "1"}
    if not on_gpu:
        folders = [CPU_SHIMS / "engine_hf", CPU_SHIMS] if args.engine == "hf" else [CPU_SHIMS]
        paths = [*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])]
        variables |= {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    engine = {"hf": "transformers stands in for vLLM", "vllm": "vLLM is the build for CPUs"}[args.engine]
    where = "the GPU" if on_gpu else f"the CPU: no GPU was found. {engine}, and other CPU shims are in use"
    print(f"Oat trains on {where}. It begins after a minute or so; what it prints is in {out / 'oat.log'}.")
    words = [sys.executable, str(Path(__file__).resolve()), "--run-oat", str(out / "settings.json")]
    with TrainingLog(out, args.steps, f"{args.env}: Oat, {args.algorithm}, {args.model} model") as log:
        run_trainer(words, variables, out / "oat.log", lambda: record_new_steps(log, out))
    shutil.rmtree(out / "model", ignore_errors=True)
    for weights in sorted((out / "oat").glob("*/saved_models/*"), key=os.path.getmtime)[-1:]:
        shutil.copytree(weights, out / "model")
    return log


def record_new_steps(log: TrainingLog, out: Path) -> None:
    """Record the steps that Oat has learned from."""
    done = sum(row["kind"] == "train" for row in oat_metrics(out))
    for step in range(len(log.metrics) + 1, done + 1):
        log.record(read_episodes(out / "episodes", "train", step))


def oat_metrics(out: Path) -> list[dict]:
    """What Oat has logged: one row per step, and one row per evaluation."""
    return read_rows(out / "oat.jsonl")


def validation_summary(args: Args, out: Path) -> str:
    scores = [row["eval/score"] for row in oat_metrics(out) if row["kind"] == "eval"]
    if len(scores) < 2:
        return "no evaluation was asked for" if not args.validation else "Oat made no evaluation"
    return f"greedy evaluation: success {scores[0]:.3f} before, {scores[-1]:.3f} after ({scores[-1] - scores[0]:+.3f})"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run-oat"]:
        run_oat(Path(sys.argv[2]))
        sys.exit()
    require_trainer("oat")
    own, of_oat = split_words(sys.argv[1:])
    args = tyro.cli(Args, args=own, description=__doc__)
    out = Path(args.out).resolve()
    try:
        args.fill_in()
        of_oat = options(of_oat)
        hold_folder(out)
        model = resolve_model(args.model)
        ChatRenderer(AutoTokenizer.from_pretrained(model))  # refuses a tokenizer without a chat template
    except (ValueError, TypeError, ImportError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    shutil.rmtree(out / "episodes", ignore_errors=True)
    (out / "oat.jsonl").unlink(missing_ok=True)
    try:
        log = train(args, model, out, of_oat)
    except TrainerFailed as error:
        sys.exit(f"error: {error}")
    print(log.summary())
    if (out / "model").is_dir():  # options of the trainer may keep it from saving
        print(f"The trained model is in {out / 'model'}.")
    print(validation_summary(args, out))
