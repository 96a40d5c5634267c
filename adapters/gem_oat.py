r"""GEM for Oat: actors that play tasks, and what their learners need.

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

* Oat learns from **turns**: :class:`GemActor` plays tasks until there are ``rollout_batch_size_per_device`` of them,
  every one a ``Transition`` with the prompt that the model saw, the ids that it sampled, and **its own reward**. Oat
  makes returns of them (``gamma`` a turn); ``whiten_adv`` is ReBN; ``critic_type="ppo"`` has a critic of turns.
* Both histories: append-only, and those that wrappers rewrite, which are Oat's nature.
* :class:`GemGroupActor` is for GRPO and Dr. GRPO in Oat's stock ``PPOLearner``: groups of ``num_samples`` episodes of
  one turn that begin from one seed.
* Tasks are shared out among the actors. Tasks of ``eval_tasks`` are of another split; ``eval/score`` is their success.
* Metrics are ``gem/...``, see :meth:`gem.rollout.Episode.metrics`.

Written for oat-llm 0.2.4.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

try:
    import numpy as np
    from oat.algorithms.ppo import PPOActor, PPOArgs
    from oat.algorithms.ppo_multiturn import PPOMultiTurnActor
    from oat.types import Transition, TransitionData
except ImportError as error:
    raise ImportError(f"gem_oat needs Oat and what it needs ({error}): pip install 'gem-adapters[oat]'") from error

from torch.utils.data import DataLoader, Dataset

from gem.core import Env
from gem.rollout import (
    ChatRenderer,
    Episode,
    GatheringEngine,
    Limits,
    Player,
    Request,
    Response,
    append_episode,
    run_episodes,
    run_turns,
)
from gem.tasks import Task, load_tasks


@dataclass
class GemArgs(PPOArgs):
    """Oat's arguments, and GEM's.

    ``generate_max_length`` is of a turn, ``max_model_len`` of an episode.
    """

    tasks: str = field(default="", metadata={"help": "Training tasks: an expression or a file (gem.tasks.load_tasks)."})
    eval_tasks: str = field(default="", metadata={"help": "Tasks to evaluate on, of another split; none by default."})
    training_steps: int = field(default=100, metadata={"help": "Rollouts, each followed by learning."})
    num_envs: int = field(default=64, metadata={"help": "Episodes that an actor plays at the same time."})
    max_turns: int | None = field(default=None, metadata={"help": "Turns an episode."})
    step_timeout: float | None = field(default=60.0, metadata={"help": "Seconds that a blocking step may take."})
    system: str | None = field(default=None, metadata={"help": "A system message."})
    tool_role: bool = field(default=False, metadata={"help": "Show a tool's observation in the template's tool role."})
    episodes: str | None = field(default=None, metadata={"help": "A folder for all episodes as JSON lines."})


class _Plays:
    """What both actors share: tasks, a player, and Oat's engine as the driver takes it."""

    args: GemArgs
    make_env: Callable[[Task], Env] = staticmethod(Task.make)
    """Builds a task's environment; a subclass puts wrappers in here."""

    def init(self, actor_id: int, save_path: str) -> None:
        """Make the engine, as Oat does, and take this actor's share of the tasks."""
        super().init(actor_id, save_path)  # type: ignore[misc]
        args = self.args
        share = slice(args.group_rank * args.gpus + actor_id, None, args.num_groups * args.gpus)
        self.own_tasks = load_tasks(args.tasks)[share]
        if not self.own_tasks:
            raise ValueError(f"actor {actor_id} has no task: {args.tasks!r} has fewer tasks than there are actors")
        self.played = 0
        self.renderer = ChatRenderer(self.tokenizer, args.system, args.tool_role)  # type: ignore[attr-defined]

    def limits(self, max_turns: int | None, max_new_tokens: int) -> Limits:
        """Return the limits of an episode."""
        timeout = self.args.step_timeout
        return Limits(max_turns, max_new_tokens, max_context=self.args.max_model_len, step_timeout=timeout)

    def next_tasks(self) -> Iterator[Task]:
        """Yield this actor's tasks, over and over."""
        while True:
            self.played += 1
            yield self.own_tasks[(self.played - 1) % len(self.own_tasks)]

    def engine(self, sampling_params: Any) -> GatheringEngine:
        """Return an engine that samples with these parameters, of which the number of tokens is the driver's."""

        def generate(batch: list[Request]) -> list[Response]:
            params = []
            for request in batch:
                params.append(copy(sampling_params))
                params[-1].n, params[-1].max_tokens, params[-1].logprobs = 1, request.max_new_tokens, 1
            prompts = [{"prompt_token_ids": list(request.prompt_ids)} for request in batch]
            self.generate_mode = True
            outputs = self.llm.generate(prompts, sampling_params=params, use_tqdm=False)  # type: ignore[attr-defined]
            self.generate_mode = False
            return [_response(output.outputs[0]) for output in outputs]

        return GatheringEngine(generate)

    def keep(self, episodes: Sequence[Episode]) -> None:
        """Write episodes where they are wanted."""
        if self.args.episodes is not None:
            for episode in episodes:
                append_episode(self.args.episodes, episode)

    def generate_and_maybe_eval(
        self, prompts: list[str], formatted_prompts: list[str], references: list[str] | None = None
    ) -> tuple[list[list[str]], np.ndarray]:
        """Play the tasks that :class:`GemLearnerMixin` has put in the evaluation data.

        Returns:
            For each task the last answer, and a (B, 1) array of successes.
        """
        params = self.eval_sampling_params  # type: ignore[attr-defined]
        tasks = [Task.from_json(text) for text in prompts]
        limits = self.limits(self.args.max_turns, params.max_tokens)
        episodes = asyncio.run(run_episodes(tasks, self.engine(params), self.renderer, limits, self.make_env))
        self.keep(episodes)
        last = [[episode.turns[-1].action if episode.turns else ""] for episode in episodes]
        return last, np.array([[float(episode.success)] for episode in episodes])


def _response(answer: Any) -> Response:
    ids = list(answer.token_ids)
    logprobs = [of_token[token].logprob for token, of_token in zip(ids, answer.logprobs, strict=True)]
    if not ids or answer.finish_reason not in ("stop", "length"):
        return Response(ids, logprobs, "abort")
    return Response(ids, logprobs, answer.finish_reason)


class GemActor(_Plays, PPOMultiTurnActor):
    """Oat's actor for episodes of many turns: a transition a turn."""

    def collect_experience(self) -> tuple[list[list[Transition]], dict[str, float]]:
        """Play tasks until there are as many turns as the learner asks for."""
        args = self.args
        player = Player(self.renderer, self.limits(args.max_turns, args.generate_max_length), self.make_env)
        wanted = args.rollout_batch_size_per_device
        engine = self.engine(self.sampling_params)
        episodes = asyncio.run(run_turns(self.next_tasks(), wanted, engine, player, args.num_envs))
        self.keep(episodes)
        return [_transitions(episode) for episode in episodes if episode.turns], _mean_metrics(episodes)


class GemGroupActor(_Plays, PPOActor):
    """Oat's actor for GRPO and Dr. GRPO: groups of episodes of one turn, each from one seed."""

    def step(self, prompts: Any = None, formatted_prompts: Any = None, references: Any = None) -> Any:
        """Play groups, and hand over their turns, group after group."""
        args = self.args
        groups, rest = divmod(args.rollout_batch_size_per_device, args.num_samples)
        if rest:
            raise ValueError(
                f"rollout_batch_size_per_device={args.rollout_batch_size_per_device} is not a multiple of "
                f"num_samples={args.num_samples}"
            )
        tasks = self.next_tasks()
        group = [task for _, task in zip(range(groups), tasks, strict=False) for _ in range(args.num_samples)]
        limits = self.limits(1, args.generate_max_length)
        engine = self.engine(self.sampling_params)
        episodes = asyncio.run(run_episodes(group, engine, self.renderer, limits, self.make_env))
        self.keep(episodes)
        empty = [episode.task for episode in episodes if not episode.turns]
        if empty:
            raise RuntimeError(f"the engine gave no token for {empty[0]}")
        info = _mean_metrics(episodes)
        rows = [
            TransitionData(
                prompt=episode.task.to_json(),
                prompt_ids=turn.prompt_ids,
                response=turn.action,
                response_ids=turn.response_ids,
                response_logprobs=turn.logprobs,
                rewards=[0.0] * (len(turn.response_ids) - 1) + [turn.reward],
                info=dict(info),
            )
            for episode in episodes
            for turn in episode.turns
        ]
        return self.ipc_client.serialize_ipc(rows)


def _transitions(episode: Episode) -> list[Transition]:
    return [
        Transition(
            obs=episode.first_observation if i == 0 else episode.turns[i - 1].observation,
            action=turn.action,
            rewards=turn.reward,
            done=i == len(episode.turns) - 1,
            prompt=episode.task.to_json(),
            prompt_ids=turn.prompt_ids,
            response=turn.action,
            response_ids=turn.response_ids,
            response_logprobs=turn.logprobs,
            response_is_truncated=turn.finish_reason == "length",
            action_is_formatted=True,
            info={},
        )
        for i, turn in enumerate(episode.turns)
    ]


def _mean_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    rows = [episode.metrics() for episode in episodes]
    means = {f"gem/{name}": float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return {**means, "gem/episodes": float(len(episodes))}


class _Steps(Dataset):
    """As many rows as there are to be rollouts; what is in them is not used."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> tuple[str, str, str]:
        return "", "", ""


class _EvaluationTasks(_Steps):
    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(len(tasks))
        self.tasks = tasks

    def __getitem__(self, index: int) -> tuple[str, str, str]:
        return "", self.tasks[index].to_json(), ""


class GemLearnerMixin:
    """Goes before one of Oat's learners: no data set of prompts, but a number of steps, and tasks to evaluate on."""

    args: GemArgs

    def prepare_data(self, strategy: Any, tokenizer: Any) -> None:
        """Make Oat's data loaders."""
        args = self.args
        self.prompts_dataset = _Steps(args.training_steps * args.rollout_batch_size)
        self.prompts_dataloader = strategy.setup_dataloader(
            self.prompts_dataset, args.rollout_batch_size_per_device, shuffle=False
        )
        tasks = load_tasks(args.eval_tasks, "eval") if args.eval_tasks else []
        self.eval_prompts_dataset = _EvaluationTasks(tasks)
        self.eval_prompts_dataloader = DataLoader(self.eval_prompts_dataset, batch_size=args.eval_batch_size)
