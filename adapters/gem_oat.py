r"""GEM for Oat: actors that run the rollouts of tasks, and what their learners need.

.. code-block:: python

    import launchpad as lp
    from oat.algorithms.ppo_multiturn import PPOMultiTurnLearner
    from oat.args import default_args_validation
    from oat.interface import get_program

    from gem_oat import GemActor, GemArgs, GemLearnerMixin


    class Learner(GemLearnerMixin, PPOMultiTurnLearner):
        pass


    args = GemArgs(
        pretrain="Qwen/Qwen3-0.6B",
        tasks="env=game:GuessTheNumber-v0-hard,seeds=0:100000",
        whiten_adv=True,  # ReBN
        critic_type="drgrpo",
        ...
    )
    program, resources = get_program(default_args_validation(args), learner_cls=Learner, actor_cls=GemActor)
    lp.launch(program, launch_type=args.launch_type, local_resources=resources, terminal="current_terminal")

How GEM maps to Oat:

* Oat learns from **turns**: :class:`GemActor` runs episodes until there are ``rollout_batch_size_per_device`` turns.
  Each is a ``Transition`` with the prompt that the model saw, the ids that it sampled, and **its own reward**. Oat
  makes returns of them (``gamma`` per turn); ``whiten_adv`` is ReBN; ``critic_type="ppo"`` has a critic of turns.
* Both histories: append-only, and those that wrappers rewrite, which are Oat's nature.
* :class:`GemGroupActor` is for GRPO and Dr. GRPO in Oat's stock ``PPOLearner``: groups of ``num_samples`` episodes of
  one turn that begin from one seed.
* **Failures.** An episode that the environment or the engine ended is left out. In a group, which Oat needs whole, its
  row has the weight 0 and does not count in the group's mean and deviation (:class:`GemLearnerMixin`).
* **Stop tokens.** The tokens with which the chat template ends an answer are stop tokens of all requests.
* Tasks are shared out among the actors. Tasks of ``eval_tasks`` are of another split; ``eval/score`` is the share of
  them that was solved.
* **Resuming** (Oat's ``resume_dir``) goes on with the step and the tasks at which the checkpoint was written.
* Metrics are ``gem/...``, see :func:`gem.rollout.mean_metrics`; of evaluations ``eval/gem/...``.

Written for oat-llm 0.2.4.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

try:
    import numpy as np
    import torch
    from oat.algorithms.ppo import PPOActor, PPOArgs
    from oat.algorithms.ppo_multiturn import PPOMultiTurnActor, PPOMultiTurnLearner
    from oat.types import Transition, TransitionData
    from tyro.constructors import PrimitiveConstructorSpec
except ImportError as error:
    raise ImportError(f"gem_oat needs Oat and what it needs ({error}): pip install 'gem-adapters[oat]'") from error

from torch.utils.data import DataLoader, Dataset

from gem.core import Env
from gem.rollout import (
    ChatRenderer,
    Episode,
    EpisodeRunner,
    GatheringEngine,
    Limits,
    OnError,
    Request,
    Response,
    Turn,
    append_episode,
    begin_run,
    check_gamma,
    check_on_error,
    check_tasks,
    group_advantages,
    mean_metrics,
    rebn,
    run_episodes,
    run_turns,
)
from gem.rollout.metrics import FAILURES, OF_EACH_ENV
from gem.tasks import Task, load_tasks

logger = logging.getLogger("gem.oat")

TESTED = "0.2.4"

if version("oat-llm").split(".")[:2] != TESTED.split(".")[:2]:
    raise ImportError(
        f"gem_oat works with oat-llm 0.2.x, and {version('oat-llm')} is installed: pip install 'gem-adapters[oat]'"
    )
if version("oat-llm") != TESTED:
    logger.warning("gem_oat was tested with oat-llm %s, and %s is installed", TESTED, version("oat-llm"))

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
    "whiten_rewards": (False, f"Oat {TESTED} never reads it. whiten_adv normalises returns."),
    "reinforce_update": (False, f"Oat {TESTED} divides by zero with it. The clipped update is the default."),
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
    episodes: str | None = field(default=None, metadata={"help": "A folder for all episodes as JSON lines."})

    def __post_init__(self) -> None:
        check_gamma(self.gamma)
        check_on_error(self.on_error)
        for name in ("training_steps", "num_envs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name, (allowed, why) in _NOT_SUPPORTED.items():
            if getattr(self, name) != allowed:
                raise ValueError(f"gem_oat does not support {name}={getattr(self, name)!r}. {why}")
        if self.rollout_batch_size % self.train_batch_size:
            raise ValueError(
                f"rollout_batch_size={self.rollout_batch_size} is not a multiple of "
                f"train_batch_size={self.train_batch_size}: the last gradients of a step would not be applied"
            )


# --- actors

_TURNS = "GemLearnerMixin, PPOMultiTurnLearner"
_GROUPS = "GemLearnerMixin, PPOLearner"
_STEP = re.compile(r"step (\d+) of (.+)")
"""What a learner with the mixin hands over in the place of a prompt: the step, and the classes that it is made of."""


class _Rollouts:
    """What both actors share: tasks, limits, and Oat's engine as the runner takes it."""

    args: GemArgs
    learner: str
    make_env: Callable[[Task], Env] = staticmethod(Task.make)
    """Builds a task's environment; a subclass puts wrappers in here."""
    step_number: int | None = None
    """The learner's step; None if the actor is called without a learner."""

    def init(self, actor_id: int, save_path: str) -> None:
        """Make the engine, as Oat does, take this actor's share of the tasks, and check all of them once.

        Raises:
            ValueError, TypeError, ImportError: the tasks, the template or the options do not fit.
        """
        args = self.args
        if args.tokenizer:  # the learner's
            self.vllm_args["tokenizer"] = args.tokenizer  # type: ignore[attr-defined]
        super().init(actor_id, save_path)  # type: ignore[misc]
        tasks = load_tasks(args.tasks)
        self.env_ids = sorted({task.env_id for task in tasks})
        actors = _actors_per_group(args)
        self.own_tasks = _share(tasks, args.group_rank * actors + actor_id, args.num_groups * actors)
        if not self.own_tasks:
            raise ValueError(f"actor {actor_id} has no task: {args.tasks!r} has fewer tasks than there are actors")
        self.played = _resumed_from(args).tasks_played[actor_id] if args.resume_dir else 0
        self.evaluated: list[dict[str, float]] = []
        self.renderer = ChatRenderer(
            self.tokenizer,  # type: ignore[attr-defined]
            args.system,
            args.tool_role,
            args.template_kwargs,
            args.allow_control_tokens,
        )
        for params in (self.sampling_params, self.eval_sampling_params):  # type: ignore[attr-defined]
            params.stop_token_ids = list(self.renderer.stop_ids)
        if args.group_rank == actor_id == 0:  # once
            eval_tasks = load_tasks(args.eval_tasks, "eval") if args.eval_tasks else []
            limits = self.limits(args.max_turns, args.generate_max_length)
            check_tasks([*tasks, *eval_tasks], self.renderer, limits, self.make_env)
            if args.episodes is not None:
                begin_run(args.episodes, resume=bool(args.resume_dir))

    def limits(self, max_turns: int | None, max_new_tokens: int) -> Limits:
        """Return the limits of an episode."""
        args = self.args
        return Limits(
            max_turns,
            max_new_tokens,
            max_context=args.max_model_len,
            step_timeout=args.step_timeout,
            retries=args.retries,
        )

    def next_tasks(self) -> Iterator[Task]:
        """Yield this actor's tasks, over and over."""
        while True:
            self.played += 1
            yield self.own_tasks[(self.played - 1) % len(self.own_tasks)]

    def tasks_played(self) -> int:
        """Return how many tasks were taken so far, for the learner to write beside its checkpoint."""
        return self.played

    def begin_step(self, prompts: Sequence[str] | None) -> None:
        """Take note of the learner's step.

        Raises:
            RuntimeError: the learner is another one than this actor's.
        """
        if prompts is None:  # called without a learner
            return
        match = _STEP.fullmatch(prompts[0])
        if match is None or match[2] != self.learner:
            raise RuntimeError(f"{type(self).__name__} needs another learner: class Learner({self.learner})")
        self.step_number = int(match[1])

    def engine(self, sampling_params: Any) -> GatheringEngine:
        """Return an engine that samples with these parameters, of which the number of tokens is the runner's."""

        def generate(batch: list[Request]) -> list[Response]:
            params = []
            for request in batch:
                params.append(copy(sampling_params))
                params[-1].n, params[-1].max_tokens, params[-1].logprobs = 1, request.max_new_tokens, 1
            prompts = [{"prompt_token_ids": list(request.prompt_ids)} for request in batch]
            self.generate_mode = True
            outputs = self.llm.generate(prompts, sampling_params=params, use_tqdm=False)  # type: ignore[attr-defined]
            self.generate_mode = False
            return [self._response(output.outputs[0]) for output in outputs]

        return GatheringEngine(generate)

    def _response(self, answer: Any) -> Response:
        ids = list(answer.token_ids)
        logprobs = [of_token[token].logprob for token, of_token in zip(ids, answer.logprobs, strict=True)]
        if not ids or answer.finish_reason not in ("stop", "length"):
            return Response(ids, logprobs, "abort")
        return Response(ids, logprobs, "stop" if ids[-1] in self.renderer.stop_ids else answer.finish_reason)

    def record(self, episodes: Sequence[Episode], step: int | None) -> None:
        """Write episodes where they are wanted."""
        if self.args.episodes is not None:
            for episode in episodes:
                append_episode(self.args.episodes, episode, step)

    def learned_from(self, episode: Episode) -> bool:
        """Return whether an episode may move the policy."""
        return bool(episode.turns) and (episode.valid or self.args.on_error == "keep")

    def filler(self, episodes: Sequence[Episode]) -> Episode:
        """Return an episode of one turn for rows of weight 0, which hold the place of what is left out.

        It is one that failed, of as few tokens as possible; made up if the engine has sampled nothing at all.
        """
        failed = [
            (len(turn.prompt_ids) + len(turn.response_ids), i, episode.task, turn)
            for i, episode in enumerate(episodes)
            if not episode.valid
            for turn in episode.turns
        ]
        if failed:
            _, _, task, turn = min(failed, key=lambda entry: entry[:2])
            return Episode(task, turns=[turn])
        return Episode(episodes[0].task, turns=[Turn([0], [0], [0.0], "abort", "")])

    def generate_and_maybe_eval(
        self, prompts: list[str], formatted_prompts: list[str], references: list[str] | None = None
    ) -> tuple[list[list[str]], np.ndarray]:
        """Run the tasks that :class:`GemLearnerMixin` has put in the evaluation data.

        Returns:
            For each task the last answer, and a (B, 1) array of successes. An environment's failure is none.
        """
        params = self.eval_sampling_params  # type: ignore[attr-defined]
        tasks = [Task.from_json(text) for text in prompts]
        engine, limits = self.engine(params), self.limits(self.args.max_turns, params.max_tokens)
        episodes = asyncio.run(run_episodes(tasks, engine, self.renderer, limits, self.make_env))
        match = _STEP.fullmatch(formatted_prompts[0])
        self.record(episodes, int(match[1]) if match else None)
        self.evaluated.append(_metrics(episodes, sorted({task.env_id for task in tasks})))
        last = [[episode.turns[-1].action if episode.turns else ""] for episode in episodes]
        return last, np.array([[float(episode.success)] for episode in episodes])

    def evaluation_metrics(self) -> list[dict[str, float]]:
        """Return the metrics of what was evaluated since the last call, batch by batch."""
        metrics, self.evaluated = self.evaluated, []
        return metrics


class GemActor(_Rollouts, PPOMultiTurnActor):
    """Oat's actor for episodes of many turns: one transition per turn."""

    learner = _TURNS

    def init(self, actor_id: int, save_path: str) -> None:
        """See :class:`GemArgs`."""
        if self.args.num_samples != 1:
            raise ValueError(
                f"num_samples={self.args.num_samples}, but episodes of many turns have no groups in Oat. "
                "GemGroupActor has, for episodes of one turn."
            )
        super().init(actor_id, save_path)

    def step(self, prompts: Any = None, formatted_prompts: Any = None, references: Any = None) -> Any:
        """Collect a batch of turns, and hand it over."""
        self.begin_step(prompts)
        return super().step()

    def collect_experience(self) -> tuple[list[list[Transition]], dict[str, float]]:
        """Run episodes until there are as many turns as the learner asks for."""
        args = self.args
        runner = EpisodeRunner(self.renderer, self.limits(args.max_turns, args.generate_max_length), self.make_env)
        wanted = args.rollout_batch_size_per_device
        engine = self.engine(self.sampling_params)
        tasks = self.next_tasks()
        episodes = asyncio.run(run_turns(tasks, wanted, engine, runner, args.num_envs, args.on_error))
        self.record(episodes, self.step_number)
        rows = [_transitions(episode) for episode in episodes if self.learned_from(episode)]
        return self.filled(rows, episodes), _metrics(episodes, self.env_ids)

    def filled(self, rows: list[list[Transition]], episodes: Sequence[Episode]) -> list[list[Transition]]:
        """Return as many turns as the learner asks for, with rows of weight 0 if too many episodes failed.

        With fewer turns the learner would learn once more from some of the step before, which its buffer still holds.
        """
        wanted = self.args.rollout_batch_size_per_device
        missing = wanted - sum(map(len, rows))
        if missing <= 0:
            return rows
        logger.warning("%d of %d turns are missing: too many episodes failed", missing, wanted)
        filler = self.filler(episodes)
        return [*rows, *(_transitions(filler, loss_mask=False) for _ in range(missing))]


class GemGroupActor(_Rollouts, PPOActor):
    """Oat's actor for GRPO and Dr. GRPO: groups of episodes of one turn, each from one seed."""

    learner = _GROUPS

    def init(self, actor_id: int, save_path: str) -> None:
        """See :class:`GemArgs`."""
        args = self.args
        if args.rollout_batch_size_per_device % args.num_samples:
            raise ValueError(
                f"rollout_batch_size_per_device={args.rollout_batch_size_per_device} is not a multiple of "
                f"num_samples={args.num_samples}"
            )
        if args.num_samples < 2 and args.critic_type != "ppo":
            raise ValueError(f"num_samples={args.num_samples}: {args.critic_type} needs groups of at least 2 episodes")
        super().init(actor_id, save_path)

    def step(self, prompts: Any = None, formatted_prompts: Any = None, references: Any = None) -> Any:
        """Run the episodes of groups, and hand over their turns, group after group."""
        self.begin_step(prompts)
        args = self.args
        groups = args.rollout_batch_size_per_device // args.num_samples
        tasks = [task for _, task in zip(range(groups), self.next_tasks(), strict=False)]
        copies = [task for task in tasks for _ in range(args.num_samples)]
        engine, limits = self.engine(self.sampling_params), self.limits(1, args.generate_max_length)
        episodes = asyncio.run(run_episodes(copies, engine, self.renderer, limits, self.make_env))
        self.record(episodes, self.step_number)
        info = _metrics(episodes, self.env_ids)
        rows = []
        for episode in episodes:
            learned = self.learned_from(episode)
            (turn,) = (episode if learned else self.filler([episode])).turns
            rows.append(
                TransitionData(
                    prompt=episode.task.to_json(),
                    prompt_ids=list(turn.prompt_ids),
                    response=turn.action,
                    response_ids=list(turn.response_ids),
                    response_logprobs=list(turn.logprobs or ()),
                    rewards=[0.0] * (len(turn.response_ids) - 1) + [turn.reward],
                    loss_mask=learned,
                    info=dict(info),
                )
            )
        return self.ipc_client.serialize_ipc(rows)


def _actors_per_group(args: GemArgs) -> int:
    """Return how many actors Oat makes for the GPUs of a group."""
    gpus = args.gpus if args.collocate else (args.gpus + 1) // 2
    return max(1, gpus // args.num_gpus_per_actor)


def _share(tasks: Sequence[Task], number: int, shares: int) -> list[Task]:
    """Return a share of the tasks, with as many of each environment id as any other share, in their order."""
    seen: Counter[str] = Counter()
    own = []
    for task in tasks:
        if seen[task.env_id] % shares == number:
            own.append(task)
        seen[task.env_id] += 1
    return own


def _transitions(episode: Episode, loss_mask: bool = True) -> list[Transition]:
    return [
        Transition(
            obs=episode.first_observation if i == 0 else episode.turns[i - 1].observation,
            action=turn.action,
            rewards=turn.reward,
            done=i == len(episode.turns) - 1,
            prompt=episode.task.to_json(),
            prompt_ids=list(turn.prompt_ids),
            response=turn.action,
            response_ids=list(turn.response_ids),
            response_logprobs=list(turn.logprobs or ()),
            response_is_truncated=turn.finish_reason == "length",
            action_is_formatted=True,
            loss_mask=loss_mask,
            info={},
        )
        for i, turn in enumerate(episode.turns)
    ]


# --- metrics


def _metrics(episodes: Sequence[Episode], env_ids: Sequence[str]) -> dict[str, float]:
    """Return the metrics of a batch, with those of each environment id where the training has several."""
    parts = {"": episodes}
    if len(env_ids) > 1:
        parts |= {f"/{env_id}": [e for e in episodes if e.task.env_id == env_id] for env_id in env_ids}
    metrics: dict[str, float] = {}
    for suffix, some in parts.items():
        means = mean_metrics(some)
        metrics |= {f"gem/{name}{suffix}": means[name] for name in means if not suffix or name in OF_EACH_ENV}
        metrics[f"gem/episodes{suffix}"] = float(len(some))
        metrics[f"gem/valid_episodes{suffix}"] = float(sum(episode.valid for episode in some))
    return metrics


def _together(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the metrics of several batches as those of one."""
    together: dict[str, float] = {}
    for name in sorted(set().union(*parts)):
        metric, slash, env_id = name.removeprefix("gem/").partition("/")
        having = [part for part in parts if name in part]
        if metric in ("episodes", "valid_episodes"):
            together[name] = sum(part[name] for part in having)
        else:
            count = f"gem/{'episodes' if metric in FAILURES else 'valid_episodes'}{slash}{env_id}"
            together[name] = sum(part[name] * part[count] for part in having) / sum(part[count] for part in having)
    return together


# --- checkpoints


@dataclass(frozen=True)
class _Progress:
    """How far a run had come when a checkpoint was written: a file beside the checkpoint, one for each group of Oat's.

    Attributes:
        step: rollouts that were learned from.
        tasks_played: by each actor of the group.
    """

    step: int
    tasks_played: list[int]

    @staticmethod
    def file(checkpoint: Path, group_rank: int) -> Path:
        return checkpoint / f"gem-{group_rank}.json"


def _resumed_from(args: GemArgs) -> _Progress:
    """Return the progress of the checkpoint that the arguments name.

    Raises:
        ValueError: there is none, or it is of another number of actors.
    """
    folder = Path(args.resume_dir)
    latest = folder / "latest"  # DeepSpeed's
    tag = args.resume_tag or (latest.read_text().strip() if latest.is_file() else "")
    file = _Progress.file(folder / tag, args.group_rank)
    if not file.is_file():
        raise ValueError(
            f"cannot resume: {file} is not there. resume_dir is the folder 'checkpoints' that a run with save_ckpt "
            "and save_steps has left, and resume_tag one in it, by default the latest"
        )
    progress = _Progress(**json.loads(file.read_text()))
    if len(progress.tasks_played) != _actors_per_group(args):
        raise ValueError(f"cannot resume with another number of actors than the {len(progress.tasks_played)} of {file}")
    return progress


# --- learners


class _Steps(Dataset):
    """As many rows as there are to be rollouts. What is in them tells the actor of the learner's step."""

    def __init__(self, rows: int, text: Callable[[], str]) -> None:
        self.rows = rows
        self.text = text

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> tuple[str, str, str]:
        return "", self.text(), ""


class _EvaluationTasks(Dataset):
    def __init__(self, tasks: Sequence[Task], text: Callable[[], str]) -> None:
        self.tasks = tasks
        self.text = text

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> tuple[str, str, str]:
        return self.text(), self.tasks[index].to_json(), ""


class GemLearnerMixin:
    """Goes before one of Oat's learners: steps and tasks in the place of a data set of prompts, and exact arithmetic.

    * **Advantages** are normalised here. Oat's own arithmetic (``sqrt(E[x^2] - mean^2)`` in float32) gives NaN or noise
      where all returns are equal, which is what a weak model's first batch looks like; they are 0 here.
    * **Rows of weight 0** (``loss_mask=False``) count in no mean and no deviation, and the weights of the others add up
      to those of a whole batch. A step in which nothing is valid is not learned from at all (``train/skipped``).
    * **Resuming** goes on with the step, the tasks and the weights of the checkpoint; Oat only loads the weights, and
      into the learner only. The critic is not in Oat's checkpoints: it begins anew.
    """

    args: GemArgs
    strategy: Any
    actors: list[Any]
    actor_info: dict[str, Any]
    _done = 0  # steps of the run that is resumed
    _steps = 0
    _evaluation_step = 0
    _whitens = False

    def _init(self, args: GemArgs, actors: list[Any]) -> None:
        """Make Oat's learner, and load the checkpoint that is resumed from.

        Raises:
            ValueError: the buffer does not hold what a step learns from, or there is nothing to resume.
        """
        rows = args.rollout_batch_size // self._world_size  # type: ignore[attr-defined]
        if args.pi_buffer_maxlen_per_device < rows:
            raise ValueError(
                f"pi_buffer_maxlen_per_device={args.pi_buffer_maxlen_per_device}, and a step has {rows} rows: "
                "those before the last ones would be dropped"
            )
        if args.resume_dir:
            self._done = _resumed_from(args).step
        super()._init(args, actors)  # type: ignore[misc]
        if args.resume_dir:
            # Here and not in Oat's run(), after which the engines would sample with the first weights until the first
            # learning.
            self.strategy.load_ckpt(self.model.model, args.resume_dir, args.resume_tag)  # type: ignore[attr-defined]
            self._broadcast_to_vllm()  # type: ignore[attr-defined]
            self.args = copy(self.args)
            self.args.resume_dir = ""
            if args.critic_type == "ppo":
                logger.warning("the critic begins anew: Oat's checkpoints do not hold it")

    @property
    def steps(self) -> int:
        """The step, which Oat counts from 0 in every run; here a resumed run counts on."""
        return self._steps

    @steps.setter
    def steps(self, value: int) -> None:
        self._steps = value + self._done if value <= 1 else value  # 0 and 1 are set before the first step

    def prepare_data(self, strategy: Any, tokenizer: Any) -> None:
        """Make Oat's data loaders.

        Raises:
            ValueError: the tasks to evaluate on are of the training, or a resumed run has no step left.
        """
        args = self.args
        kind = _TURNS if isinstance(self, PPOMultiTurnLearner) else _GROUPS
        rows = args.training_steps * args.rollout_batch_size
        left = rows - self._done * args.rollout_batch_size_per_device * strategy.world_size
        if left <= 0:
            raise ValueError(f"training_steps={args.training_steps} are done already: ask for more to resume")
        self.prompts_dataset = _Steps(rows, lambda: f"step {self.steps} of {kind}")  # Oat's schedules go by its length
        self.prompts_dataloader = strategy.setup_dataloader(
            _Steps(left, self.prompts_dataset.text), args.rollout_batch_size_per_device, shuffle=False
        )
        tasks = load_tasks(args.eval_tasks, "eval") if args.eval_tasks else []
        self.eval_prompts_dataset = _EvaluationTasks(tasks, lambda: f"step {self._evaluation_step} of {kind}")
        self.eval_prompts_dataloader = DataLoader(self.eval_prompts_dataset, batch_size=args.eval_batch_size)

    def process_feedback_data(self, data_list: Any) -> None:
        """Take what was collected; the metrics become those of all actors together."""
        own = {name: value for name, value in self.actor_info.items() if name.startswith("gem/")}
        others = {name: value for name, value in self.actor_info.items() if name not in own}
        # Oat reduces the metrics one after the other: every rank must have the same ones, in the same order.
        self.actor_info = {**others, **_together(self._of_all_ranks(own))}
        super().process_feedback_data(data_list)  # type: ignore[misc]

    def evaluate(self, dataloader: Any, steps: int) -> dict[str, Any]:
        """Evaluate as Oat does; the metrics of the episodes are added. Without tasks to evaluate on, do nothing."""
        if not len(self.eval_prompts_dataset):
            return {}
        self._evaluation_step = steps
        info = super().evaluate(dataloader, steps)  # type: ignore[misc]
        parts = []
        if self.strategy.is_rank_0():
            parts = [part for actor in self.actors for part in actor.evaluation_metrics()]
        (parts, *_) = self._of_all_ranks(parts)
        return {**info, **{f"eval/{name}": value for name, value in _together(parts).items()}}

    def eval_and_log(self, train_info: dict[str, Any], eval: bool = False, save: bool = False) -> None:
        """Evaluate, save and log, as Oat does; beside a checkpoint goes how far the run has come."""
        super().eval_and_log(train_info, eval, save)  # type: ignore[misc]
        checkpoint = Path(self.save_path, "checkpoints", f"step_{self.steps:05d}")  # type: ignore[attr-defined]
        if checkpoint.is_dir() and self.strategy.is_group_rank_0():
            done = self.steps - save  # at the end of the training Oat has counted one more
            progress = _Progress(done, [actor.tasks_played() for actor in self.actors])
            _Progress.file(checkpoint, self.args.group_rank).write_text(json.dumps(asdict(progress)))

    def learn(self, learning_round: int) -> dict[str, Any]:
        """Learn from what was collected, unless all of it has the weight 0."""
        if not any(self._of_all_ranks(any(row.loss_mask for row in self.pi_buffer))):  # type: ignore[attr-defined]
            logger.warning("nothing is learned in step %d: every episode failed", self.steps)
            return {"train/skipped": 1.0}
        return {**super().learn(learning_round), "train/skipped": 0.0}  # type: ignore[misc]

    def learning_step(self, trajectory: dict[str, Any]) -> dict[str, Any]:
        """Learn from all rows as Oat does, with the advantages and weights of this class."""
        self._valid = valid = np.array(trajectory["loss_masks"], dtype=bool)
        rows, weighing = np.sum(self._of_all_ranks([len(valid), valid.sum()]), axis=0)
        trajectory = {**trajectory, "loss_masks": (valid * (rows / max(weighing, 1))).tolist()}
        self._whitens = self.args.whiten_adv
        if "advantages" in trajectory:  # of turns; those of groups are computed later
            trajectory |= self._turns(trajectory)
        args, self.args = self.args, copy(self.args)
        self.args.whiten_adv = False  # it is done here
        try:
            return super().learning_step(trajectory)  # type: ignore[misc]
        finally:
            self.args = args

    def _turns(self, trajectory: dict[str, Any]) -> dict[str, list[float]]:
        """Return advantages, returns and values per turn, of which rows of weight 0 move nothing."""
        valid = self._valid
        advantages, returns, values = (
            np.array(trajectory[name], dtype=np.float64) for name in ("advantages", "returns", "values")
        )
        advantages = self._whitened(advantages, valid) if self._whitens else advantages * valid
        # Oat's loss of the critic of turns knows no mask. It is max((v - return)^2, (clip(v) - return)^2), where clip
        # keeps v close to its old value: with an old value that is far off, v does not matter.
        returns = np.where(valid, returns, values)
        values = np.where(valid, values, values + 100 * (1 + self.args.cliprange_value))
        return {"advantages": advantages.tolist(), "returns": returns.tolist(), "values": values.tolist()}

    def compute_ppo_advantages(self, rewards: Any, input_ids: Any, att_mask: Any, response_masks: Any) -> Any:
        """Return advantages, returns and values per token, for ``PPOLearner`` with a critic."""
        advantages, returns, values = super().compute_ppo_advantages(  # type: ignore[misc]
            rewards, input_ids, att_mask, response_masks
        )
        if self._whitens:
            where = response_masks.bool().cpu().numpy() & self._valid[:, None]
            advantages = _like(values, self._whitened(advantages.double().cpu().numpy(), where))
        return advantages, returns, values

    def compute_monte_carlo_advantages(self, rewards: Any, response_masks: Any) -> Any:
        """Return one advantage per row, against the valid rows of its group, for ``PPOLearner``.

        A group with a single valid row has nothing to compare it with: its advantage is 0.
        """
        size, scale = self.args.num_samples, self.args.critic_type == "grpo"
        values = rewards.sum(-1).double().cpu().numpy()
        advantages = np.zeros(len(values))
        for group in np.arange(len(values)).reshape(-1, size):
            valid = group[self._valid[group]]
            if len(valid) > 1:
                advantages[valid] = group_advantages(values[valid], len(valid), scale, eps=1e-8)
        return _like(rewards, advantages)

    def _whitened(self, values: np.ndarray, where: np.ndarray) -> np.ndarray:
        """Return values, normalised over those of all ranks that count, and 0 where they do not."""
        whitened = np.zeros(values.shape)
        # They are returns already, hence a discount of 0.
        whitened[where] = rebn(self._of_all_ranks(values[where]), gamma=0.0)[self.strategy.get_rank()]
        return whitened

    def _of_all_ranks(self, value: Any) -> list[Any]:
        """Return what each rank has here."""
        values = [value] * self.strategy.world_size
        if len(values) > 1:
            torch.distributed.all_gather_object(values, value)
        return values


def _like(tensor: Any, array: np.ndarray) -> Any:
    return torch.as_tensor(array, dtype=tensor.dtype, device=tensor.device)
