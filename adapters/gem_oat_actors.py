"""Actors: they run the rollouts of tasks with Oat's engine, and hand turns or groups to the learner."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from typing import Any

import numpy as np
from oat.algorithms.ppo_multiturn import PPOMultiTurnActor
from oat.types import Transition

from gem.core import Env
from gem.rollout import (
    ChatRenderer,
    Episode,
    EpisodeRunner,
    GatheringEngine,
    Limits,
    Request,
    Response,
    Turn,
    append_episode,
    begin_run,
    check_tasks,
    run_episodes,
    run_turns,
)
from gem.rollout.metrics import logged_metrics
from gem.tasks import Task, load_tasks
from gem_oat_args import GemArgs, actors_per_group, resumed_from

logger = logging.getLogger("gem.oat")

TURNS = "GemLearnerMixin, PPOMultiTurnLearner"
GROUPS = "GemLearnerMixin, PPOLearner"
STEP = re.compile(r"step (\d+) of (.+)")
"""What a learner with the mixin hands over in the place of a prompt: the step, and the classes that it is made of."""


class Rollouts:
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
        actors = actors_per_group(args)
        self.own_tasks = _share(tasks, args.group_rank * actors + actor_id, args.num_groups * actors)
        if not self.own_tasks:
            raise ValueError(f"actor {actor_id} has no task: {args.tasks!r} has fewer tasks than there are actors")
        self.played = resumed_from(args).tasks_played[actor_id] if args.resume_dir else 0
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
        match = STEP.fullmatch(prompts[0])
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
        return Response.of_server(ids, logprobs, answer.finish_reason, self.renderer.stop_ids)

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
        match = STEP.fullmatch(formatted_prompts[0])
        self.record(episodes, int(match[1]) if match else None)
        self.evaluated.append(logged_metrics(episodes, sorted({task.env_id for task in tasks})))
        last = [[episode.turns[-1].action if episode.turns else ""] for episode in episodes]
        return last, np.array([[float(episode.success)] for episode in episodes])

    def evaluation_metrics(self) -> list[dict[str, float]]:
        """Return the metrics of what was evaluated since the last call, batch by batch."""
        metrics, self.evaluated = self.evaluated, []
        return metrics


class GemActor(Rollouts, PPOMultiTurnActor):
    """Oat's actor for episodes of many turns: one transition per turn."""

    learner = TURNS

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
        return self.filled(rows, episodes), logged_metrics(episodes, self.env_ids)

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
