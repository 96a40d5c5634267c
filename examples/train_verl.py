"""Train a language-model agent on a GEM environment with verl's main_ppo.

.. code-block:: bash

    python ci/venv.py verl
    .venvs/verl/bin/python examples/train_verl.py             # two CPU cores, about ten minutes
    .venvs/verl/bin/python examples/train_verl.py --algorithm grpo --seed 1
    .venvs/verl/bin/python examples/train_verl.py --algorithm ppo --steps 3
    .venvs/verl/bin/python examples/train_verl.py -- actor_rollout_ref.actor.clip_ratio=0.1   # any key of verl's
    .venvs/verl/bin/python examples/train_verl.py --env game:Mastermind-v0-easy,game:GuessTheNumber-v1-easy

This script writes a command, ``python -m verl.trainer.main_ppo key=value ...``, runs it and shows how it goes. The
command is in ``command.sh``, to copy the keys from; those of GEM are the first.

What is real: Ray, verl's V1 trainer, its FSDP actor and critic, losses, advantages, weight synchronisation and
validation. Without a GPU there are shims, in ``ci/cpu/verl``: transformers generates instead of vLLM, a platform
plug-in lets verl's workers run on the CPU, and the critic (of ppo) is loaded without flash attention. On GPUs the same
file uses vLLM and no shim.

In ``--out``: ``model/`` (the trained model), ``metrics.jsonl`` (one line per step), ``episodes.jsonl`` (the episodes of
the first and the last step), ``curve.png``; and of verl: ``verl.jsonl`` (its own metrics), ``verl.log`` (what it
prints) and ``episodes/`` (all).
"""

import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

try:
    import torch
    import tyro
    from transformers import AutoTokenizer

    from gem.files import hold_folder
    from gem.models import resolve_model
    from gem.rollout import ChatRenderer, OnError, mean_metrics, read_episodes
    from gem.training.args import TrainingArgs, split_words
    from gem.training.log import TrainingLog
    from gem.training.process import TrainerFailed, read_rows, require_trainer, run_trainer
except ImportError as error:
    sys.exit(f"error: {error}. In this folder: python ci/venv.py verl, then .venvs/verl/bin/python {sys.argv[0]}")

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ci" / "cpu" / "verl"))
import cpu_job  # what a machine without a GPU needs


@dataclass
class Args(TrainingArgs):
    algorithm: Literal["rebn", "grpo", "ppo"] = "rebn"
    """rebn: one advantage per turn, against the batch; grpo: one per episode, against its group; ppo: one per token, by
    a critic"""
    on_error: OnError = "mask"
    """what is learned from episodes whose environment fails: nothing (mask), or like from any other (keep)"""
    validation: int = 64
    """tasks of another split, with greedy decoding, before and after the training"""
    out: str = "out/verl"
    """folder of the results"""


def gem_keys(args: Args, out: Path) -> list[str]:
    """The keys that put a GEM environment into a verl job."""
    (out / "gem.yaml").write_text(
        f"- name: gem\n  _target_: gem_verl.GemAgentLoop\n  mode: concat\n  max_new_tokens: {args.max_new_tokens}\n"
        f"  max_turns: {json.dumps(args.max_turns)}\n  on_error: {args.on_error}\n"
        f"  episodes: {json.dumps(str(out / 'episodes'))}\n"
    )
    return [
        "data.custom_cls.path=pkg://gem_verl",
        "data.custom_cls.name=GemTaskDataset",
        f"data.train_files='{args.task_source(args.task_seeds)}'",
        f"data.val_files='{args.task_source(range(args.validation or 1), 'eval')}'",
        f"actor_rollout_ref.rollout.agent.agent_loop_config_path={out / 'gem.yaml'}",
        # The episodes' metrics in every step, under gem/, and what becomes of a batch in which every episode failed
        "trainer.v1.sampler.custom_sampler.path=pkg://gem_verl",
        "trainer.v1.sampler.custom_sampler.name=GemReplayBuffer",
        "+trainer.v1.sampler.sampler_kwargs.poll_interval=0.1",
    ]


def algorithm_keys(args: Args, model: str) -> list[str]:
    keys = {
        "rebn": ["algorithm.adv_estimator=gem_rebn", "critic.enable=False"],
        "grpo": ["algorithm.adv_estimator=grpo"],
        "ppo": ["algorithm.adv_estimator=gae", f"critic.model.path={model}", f"critic.optim.lr={args.lr}"],
    }
    return [*keys[args.algorithm], f"algorithm.gamma={args.gamma}"]


def job_keys(args: Args, model: str, out: Path) -> list[str]:
    """The rest of the job, as any verl job has it. Lengths are of an episode: first prompt, and all that follows."""
    length = 1024 if args.embedded else 2048
    at_once = args.batch_size if args.embedded else args.group_size
    return [
        f"data.train_batch_size={args.groups}",
        f"data.max_prompt_length={length}",
        f"data.max_response_length={length}",
        "data.shuffle=False",
        "data.dataloader_num_workers=0",
        f"actor_rollout_ref.model.path={model}",
        f"actor_rollout_ref.rollout.n={args.group_size}",
        f"actor_rollout_ref.rollout.seed={args.seed}",
        "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
        "actor_rollout_ref.rollout.calculate_log_probs=True",
        f"actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu={at_once}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={args.groups}",
        f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={at_once}",
        f"actor_rollout_ref.actor.optim.lr={args.lr}",
        f"critic.ppo_micro_batch_size_per_gpu={at_once}",
        "trainer.nnodes=1",
        f"trainer.n_gpus_per_node={max(1, torch.cuda.device_count())}",
        "trainer.logger=[console,file]",
        "trainer.total_epochs=1",
        f"trainer.total_training_steps={args.steps}",
        f"trainer.test_freq={args.steps if args.validation else -1}",
        f"trainer.val_before_train={args.validation > 0}",
        f"trainer.save_freq={args.steps}",
        "actor_rollout_ref.actor.checkpoint.save_contents=[hf_model]",
        "trainer.resume_mode=disable",
        f"trainer.default_local_dir={out / 'checkpoints'}",
    ]


def plain_attention_keys() -> list[str]:
    """Where there is no flash attention: torch's own, and no packing, which needs it."""
    return [
        f"{key}={value}"
        for model in ("actor_rollout_ref.model", "critic.model")
        for key, value in (
            (f"{model}.use_remove_padding", False),
            (f"+{model}.override_config.attn_implementation", "sdpa"),
        )
    ]


def environment(out: Path, on_gpu: bool) -> dict[str, str]:
    variables = {
        "VERL_FILE_LOGGER_PATH": str(out / "verl.jsonl"),
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HYDRA_FULL_ERROR": "1",
    }
    return variables if on_gpu else {**variables, **cpu_job.environment()}


def command(args: Args, model: str, out: Path, ray_folder: str, on_gpu: bool, of_verl: Sequence[str] = ()) -> list[str]:
    keys = gem_keys(args, out) + algorithm_keys(args, model) + job_keys(args, model, out)
    if on_gpu:
        keys += ["actor_rollout_ref.rollout.name=vllm"]
        keys += [] if importlib.util.find_spec("flash_attn") else plain_attention_keys()
    else:
        keys += cpu_job.keys(ray_folder)
    keys += [f"hydra.run.dir={out / 'hydra'}"]  # else Hydra leaves its folders where this was called
    return [sys.executable, "-m", "verl.trainer.main_ppo", *keys, *of_verl]


def train(args: Args, model: str, out: Path, ray_folder: str, of_verl: Sequence[str]) -> TrainingLog:
    on_gpu = torch.cuda.is_available()
    words, variables = command(args, model, out, ray_folder, on_gpu, of_verl), environment(out, on_gpu)
    where = (
        "the GPU, vLLM generates" if on_gpu else "the CPU (no GPU was found), transformers generates instead of vLLM"
    )
    print(f"verl trains on {where}. It begins after a minute or two; what it prints is in {out / 'verl.log'}.")
    with TrainingLog(out, args.steps, f"{args.env}: verl, {args.algorithm}, {args.model} model") as log:
        run_trainer(words, variables, out / "verl.log", lambda: record_new_steps(log, out))
    shutil.rmtree(out / "model", ignore_errors=True)
    for weights in sorted((out / "checkpoints").glob("global_step_*/actor/huggingface")):
        shutil.copytree(weights, out / "model", dirs_exist_ok=True)
    return log


def verl_metrics(out: Path) -> dict[int, dict[str, float]]:
    """What verl has logged, by step; step 0 is the validation before the training."""
    return {row["step"]: row["data"] for row in read_rows(out / "verl.jsonl")}


def record_new_steps(log: TrainingLog, out: Path) -> None:
    for step in sorted(verl_metrics(out)):
        if step > len(log.metrics):
            log.record(read_episodes(out / "episodes", "train", step))


def validation_summary(args: Args, out: Path) -> str:
    if not args.validation:
        return "no validation was asked for"
    steps = (0, args.steps)
    success = {step: mean_metrics(read_episodes(out / "episodes", "eval", step)).get("success") for step in steps}
    before, after = success[0], success[args.steps]
    if before is None or after is None:
        return "verl made no validation with a valid episode"
    return f"greedy validation: success {before:.3f} before, {after:.3f} after ({after - before:+.3f})"


if __name__ == "__main__":
    require_trainer("verl")
    own, of_verl = split_words(sys.argv[1:])
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
    (out / "verl.jsonl").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="gem-ray-", ignore_cleanup_errors=True) as ray_folder:
        try:
            log = train(args, model, out, ray_folder, of_verl)
        except TrainerFailed as error:
            sys.exit(f"error: {error}")
    print(log.summary())
    if (out / "model").is_dir():  # options of the trainer may keep it from saving
        print(f"The trained model is in {out / 'model'}.")
    print(validation_summary(args, out))
