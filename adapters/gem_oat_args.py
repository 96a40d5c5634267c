"""Oat's arguments with GEM's, and how far a run has come that is resumed."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from oat.algorithms.ppo import PPOArgs
from tyro.constructors import PrimitiveConstructorSpec

from gem.rollout import OnError, check_gamma, check_on_error

_Json = Annotated[
    dict[str, Any] | None,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=lambda words: json.loads(words[0]),
        is_instance=lambda value: value is None or isinstance(value, dict),
        str_from_instance=lambda value: [json.dumps(value)],
    ),
]
"""A dictionary, which on a command line is written as JSON."""

_OF_ITS_OWN_ACTOR = "Oat's own PPOActor does this, which GEM's actors replace. A wrapper can change a turn's reward."

_NOT_SUPPORTED = {
    "ignore_no_eos": (False, _OF_ITS_OWN_ACTOR),
    "non_stop_penalty": (0, _OF_ITS_OWN_ACTOR),
    "non_stop_fixed_reward": (None, _OF_ITS_OWN_ACTOR),
    "whiten_rewards": (False, "Oat 0.2.4 never reads it. whiten_adv normalises returns."),
    "reinforce_update": (False, "Oat 0.2.4 divides by zero with it. The clipped update is the default."),
    "lora_sync_only": (False, "Leave it off: the merged weights are then synchronised."),
    "eval_n": (1, "A task is evaluated once."),
    "num_prompt_epoch": (1, "training_steps says how many steps there are."),
}
"""Oat's options that would be ignored or break: the only value that is allowed, and what to say otherwise."""


@dataclass
class GemArgs(PPOArgs):
    """Oat's arguments, and GEM's.

    ``generate_max_length`` is of a turn, ``max_model_len`` of an episode.

    Raises:
        ValueError: a value makes no sense, or is of an option of Oat's that would have no effect.
    """

    # Oat's, with defaults that suit.
    algo: Literal["PPO"] = "PPO"
    oracle: str = ""
    num_samples: int = 1
    # Shown by the data set's loader, which only runs if the learner lacks the mixin.
    prompt_data: str = "none: GEM's tasks need a learner with GemLearnerMixin"
    # Oat ends a training after so many samples; here it ends after training_steps.
    max_train: int = sys.maxsize

    tasks: str = field(kw_only=True, metadata={"help": "Training tasks: expressions or a file (gem.tasks.load_tasks)."})
    eval_tasks: str = field(default="", metadata={"help": "Tasks to evaluate on, of another split; none by default."})
    training_steps: int = field(default=100, metadata={"help": "Rollouts, each followed by learning."})
    num_envs: int = field(default=64, metadata={"help": "Episodes that an actor runs at the same time."})
    max_turns: int | None = field(default=None, metadata={"help": "Turns per episode."})
    step_timeout: float | None = field(default=60.0, metadata={"help": "Seconds that a blocking step may take."})
    retries: int = field(
        default=2, metadata={"help": "Attempts after an environment's failure before the first sampled token."}
    )
    on_error: OnError = field(
        default="mask",
        metadata={"help": "Whether to leave out episodes that the environment or the engine ended, or to keep them."},
    )
    system: str | None = field(default=None, metadata={"help": "A system message."})
    tool_role: bool = field(default=False, metadata={"help": "Show a tool's observation in the template's tool role."})
    template_kwargs: _Json = field(default=None, metadata={"help": "Arguments of the chat template."})
    allow_control_tokens: bool = field(
        default=False, metadata={"help": "Whether control tokens' text in observations becomes those tokens."}
    )
    token_mean: bool = field(
        default=False,
        metadata={"help": "Whether all sampled tokens of a step weigh the same, as in other trainers. Needs drgrpo."},
    )
    episodes: str | None = field(default=None, metadata={"help": "A folder for all episodes as JSON lines."})

    def __post_init__(self) -> None:
        check_gamma(self.gamma)
        check_on_error(self.on_error)
        for name in ("training_steps", "num_envs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.token_mean and self.critic_type != "drgrpo":
            raise ValueError(f"token_mean needs critic_type='drgrpo', got {self.critic_type!r}")
        for name, (allowed, why) in _NOT_SUPPORTED.items():
            if getattr(self, name) != allowed:
                raise ValueError(f"gem_oat does not support {name}={getattr(self, name)!r}. {why}")
        if self.rollout_batch_size % self.train_batch_size:
            raise ValueError(
                f"rollout_batch_size={self.rollout_batch_size} is not a multiple of "
                f"train_batch_size={self.train_batch_size}: the last gradients of a step would not be applied"
            )


def actors_per_group(args: GemArgs) -> int:
    """Return how many actors Oat makes for the GPUs of a group."""
    gpus = args.gpus if args.collocate else (args.gpus + 1) // 2
    return max(1, gpus // args.num_gpus_per_actor)


@dataclass(frozen=True)
class Progress:
    """How far a run had come when a checkpoint was written: a file beside the checkpoint, one for each group of Oat's.

    Attributes:
        step: rollouts that were learned from.
        tasks_played: by each actor of the group.
    """

    step: int
    tasks_played: list[int]

    @staticmethod
    def file(checkpoint: Path, group_rank: int) -> Path:
        """Return where it is written."""
        return checkpoint / f"gem-{group_rank}.json"


def resumed_from(args: GemArgs) -> Progress:
    """Return the progress of the checkpoint that the arguments name.

    Raises:
        ValueError: there is none, or it is of another number of actors.
    """
    folder = Path(args.resume_dir)
    latest = folder / "latest"  # DeepSpeed's
    tag = args.resume_tag or (latest.read_text().strip() if latest.is_file() else "")
    file = Progress.file(folder / tag, args.group_rank)
    if not file.is_file():
        raise ValueError(
            f"cannot resume: {file} is not there. resume_dir is the folder 'checkpoints' that a run with save_ckpt "
            "and save_steps has left, and resume_tag one in it, by default the latest"
        )
    progress = Progress(**json.loads(file.read_text()))
    if len(progress.tasks_played) != actors_per_group(args):
        raise ValueError(f"cannot resume with another number of actors than the {len(progress.tasks_played)} of {file}")
    return progress
