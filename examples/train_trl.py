"""Train a language-model agent on a GEM environment with TRL's GRPOTrainer.

.. code-block:: bash

    pip install -c ci/constraints/trl.txt -e '.[trl]'
    python examples/train_trl.py                              # two CPU cores, a few minutes
    python examples/train_trl.py --algorithm rebn --seed 1
    python examples/train_trl.py --env game:Mastermind-v0-easy --max-turns 6
    python examples/train_trl.py --env game:Mastermind-v0-easy,game:GuessTheNumber-v1-easy
    python examples/train_trl.py -- beta=0.04 report_to=tensorboard    # any option of TRL's GRPOConfig
    python examples/train_trl.py --model Qwen/Qwen3-0.6B --steps 200 --max-new-tokens 256       # on a GPU
    python examples/train_trl.py --model Qwen/Qwen3-0.6B --env math:GSM8K --tools python --max-new-tokens 512
    python examples/train_trl.py --model Qwen/Qwen3-0.6B --env qa:HotpotQA --tools search --max-new-tokens 256

What is real: trainer, loss and generation are TRL's, on a CPU as on a GPU; nothing stands in for anything. The
default model is tiny and comes with the package, so that two cores and no hub are enough; ``--model smollm2`` is a
pretrained one.

In ``--out``: ``model/`` (the trained model), ``metrics.jsonl`` (one line per step), ``episodes.jsonl`` (the episodes of
the first and the last step) and ``curve.png``. Under ``accelerate launch`` they tell of the first process; sizes are
those of a process.
"""

import os
import sys
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func is marked experimental
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # TRL's use of older names

try:
    import torch
    import tyro
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from gem.files import hold_folder
    from gem.models import resolve_model
    from gem.rollout import ChatRenderer, ContextTooSmall, OnError
    from gem.training.args import TrainingArgs, options, split_words
    from gem.training.log import TrainingLog
    from gem_trl import GemGRPOTrainer, GemRollout, gem_reward, task_dataset
except ImportError as error:
    sys.exit(f"error: {error}. In this folder: pip install -c ci/constraints/trl.txt -e '.[trl]'")


@dataclass
class Args(TrainingArgs):
    algorithm: Literal["grpo", "rebn"] = "grpo"
    """grpo: one advantage per episode, against its group; rebn: one advantage per turn, against the batch"""
    on_error: OnError = "mask"
    """what is learned from episodes whose environment fails: nothing (mask), or like from any other (keep)"""
    out: str = "out/trl"
    """folder of the results"""


def load(args: Args):
    """Return tokenizer and model, in float32: on a GPU the trainer computes in bfloat16."""
    folder = resolve_model(args.model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ChatRenderer(tokenizer)  # refuses a tokenizer without a chat template, before the weights are loaded
    return tokenizer, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def configuration(args: Args, of_trl: dict) -> GRPOConfig:
    """TRL's configuration, in which its own options take precedence; it refuses those that it does not have."""
    on_gpu = torch.cuda.is_available()
    defaults = dict(
        output_dir=args.out,
        seed=args.seed,
        max_steps=args.steps,
        # A small model takes the batch at once, a large one one group at a time.
        per_device_train_batch_size=args.batch_size if args.embedded else args.group_size,
        gradient_accumulation_steps=1 if args.embedded else args.groups,
        num_generations=args.group_size,
        max_completion_length=args.max_new_tokens,  # of a turn, not of the episode
        temperature=1.0,
        beta=0.0,
        learning_rate=args.lr,
        lr_scheduler_type="constant",
        use_cpu=not on_gpu,
        bf16=on_gpu,
        gradient_checkpointing=not args.embedded,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
    )
    return GRPOConfig(**{**defaults, **of_trl})


def train(args: Args, tokenizer, model, of_trl: dict | None = None) -> TrainingLog:
    on_gpu = torch.cuda.is_available()
    print(f"TRL trains, and generates with transformers, on {'the GPU' if on_gpu else 'the CPU: no GPU was found'}.")
    config = configuration(args, of_trl or {})
    rollout = GemRollout(tokenizer, max_turns=args.max_turns, on_error=args.on_error)
    trainer_class = partial(GemGRPOTrainer, gamma=args.gamma) if args.algorithm == "rebn" else GRPOTrainer
    trainer = trainer_class(
        model=model,
        processing_class=tokenizer,
        args=config,
        train_dataset=task_dataset(args.tasks(args.task_seeds)),
        rollout_func=rollout,
        reward_funcs=gem_reward,
    )
    trainer.remove_callback(PrinterCallback)
    rollout.prepare(trainer)  # checks the tasks; the first rollout would

    log = TrainingLog(args.out, args.steps, f"{args.env}: TRL, {args.algorithm}, {args.model} model")

    class Record(TrainerCallback):
        def on_step_end(self, _, state, *__, **___):
            if state.is_world_process_zero:
                log.record(rollout.episodes)

    trainer.add_callback(Record())
    with log if trainer.is_world_process_zero() else nullcontext():
        trainer.train()
    trainer.save_model(os.path.join(args.out, "model"))
    return log


if __name__ == "__main__":
    own, of_trl = split_words(sys.argv[1:])
    args = tyro.cli(Args, args=own, description=__doc__)
    try:
        args.fill_in()
        of_trl = options(of_trl)
        configuration(args, of_trl)  # refused before the model is loaded
        hold_folder(args.out)
        tokenizer, model = load(args)
    except (ValueError, TypeError, ImportError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    try:
        print(train(args, tokenizer, model, of_trl).summary())
        print(f"The trained model is in {os.path.join(args.out, 'model')}.")
    except ContextTooSmall as error:
        sys.exit(f"error: {error}")
