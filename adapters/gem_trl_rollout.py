"""Tasks as TRL's data set, and ``rollout_func``: episodes in the place of TRL's own generation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset
from packaging.version import Version
from trl import GRPOTrainer
from trl import __version__ as trl_version

from gem.core import Env
from gem.rollout import (
    BatchedRollout,
    ChatRenderer,
    Episode,
    Limits,
    OnError,
    TokenSequence,
    append_episode,
    begin_run,
    check_on_error,
    check_tasks,
    mean_metrics,
)
from gem.rollout.metrics import OF_EACH_ENV
from gem.rollout.rows import trl_row
from gem.tasks import Task, check_split
from gem_trl_generation import generate, most_requests, stop_at
from gem_trl_rewards import for_valid_episodes


def task_dataset(tasks: Sequence[Task]) -> Dataset:
    """Return a data set with one row per task, for ``train_dataset`` and ``eval_dataset``."""
    return Dataset.from_list([trl_row(task) for task in tasks])


def task_of_prompt(prompt: Any, system: str | None = None) -> Task:
    """Return the task that rides in a prompt.

    Raises:
        ValueError: it holds no task, or messages that the model would not see.
    """
    try:
        *others, last = prompt
        task = Task.from_json(last["task"])
    except (TypeError, KeyError, ValueError):
        raise ValueError(
            f"the prompt {prompt!r} holds no task: make train_dataset (and eval_dataset) with gem_trl.task_dataset"
        ) from None
    if any((message["role"], message["content"]) != ("system", system) for message in others):
        raise ValueError(
            f"a row of the data set has the message {others[0]!r}, which the model would not see: the environment's "
            "observations are the messages. For a system message: GemRollout(tokenizer, system=...)"
        )
    return task


class GemRollout:
    """TRL's ``rollout_func``: runs the episodes of a batch with the trainer's own generation.

    The arguments of the chat template are those of ``GRPOConfig(chat_template_kwargs=...)``.

    Args:
        tokenizer: the trainer's ``processing_class``.
        max_turns: turns per episode; None for as many as the environment allows.
        max_context: tokens per episode; None for what the model's configuration allows. Never more than
            ``GRPOConfig(vllm_max_model_length=...)``.
        step_timeout: seconds that a step of a blocking environment may take.
        system: a system message.
        tool_role: whether a tool's observation is a message of the tool role; see :class:`gem.rollout.ChatRenderer`.
        make_env: builds a task's environment; wrappers go in here.
        on_error: what is learned from an episode that the environment or the engine ended: nothing (``"mask"``), or
            the rewards that it had until then (``"keep"``).
        retries: how often an episode is begun again whose environment fails before the first sampled token.
        allow_control_tokens: see :class:`gem.rollout.ChatRenderer`.
        episodes: folder into which all episodes are written, for :func:`gem.rollout.read_episodes`; None for nowhere.
        resume: whether the folder may hold the episodes of earlier runs, since this run goes on from a checkpoint.

    Attributes:
        renderer: turns observations into ids. :meth:`prepare` replaces it if the trainer has arguments of the template.
        episodes: those of the latest batch.

    Raises:
        TypeError: TRL has called the class, since ``rollout_func`` is not an instance.
        ValueError: the chat template does not do (see :class:`gem.rollout.ChatRenderer`), or an option's value.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_turns: int | None = None,
        max_context: int | None = None,
        step_timeout: float | None = 60.0,
        system: str | None = None,
        tool_role: bool = False,
        make_env: Callable[[Task], Env] = Task.make,
        *,
        on_error: OnError = "mask",
        retries: int = 2,
        allow_control_tokens: bool = False,
        episodes: str | Path | None = None,
        resume: bool = False,
    ) -> None:
        if isinstance(max_turns, GRPOTrainer):
            raise TypeError("rollout_func is the class GemRollout: it takes an instance, GemRollout(tokenizer)")
        if check_on_error(on_error) == "mask" and Version(trl_version) < Version("1.6"):
            raise ValueError(
                f"trl {trl_version} takes the reward of an episode that is left out for 0: use trl >= 1.6, or "
                "GemRollout(..., on_error='keep')"
            )
        self._limits = Limits(max_turns, max_context=max_context, step_timeout=step_timeout, retries=retries)
        self.max_turns = max_turns
        self.max_context = max_context
        self._render = functools.partial(
            ChatRenderer, tokenizer, system, tool_role, allow_control_tokens=allow_control_tokens
        )
        self.renderer = self._render()
        self.system = system
        self.make_env = make_env
        self.on_error = on_error
        self.folder = episodes
        self.resume = resume
        self.episodes: list[Episode] = []
        self._trainer: GRPOTrainer | None = None
        self._env_ids: set[str] = set()

    def prepare(self, trainer: GRPOTrainer) -> None:
        """Check the tasks of the trainer's data sets, and tell its generation the stop tokens; once for each trainer.

        The first rollout does this, before anything is learned. To know earlier, call it when the trainer is made;
        :class:`gem_trl.GemGRPOTrainer` does.

        Raises:
            ValueError: a row holds no task, or one of the wrong split; a task names arguments that do not exist; an
                option of the trainer does not do; or the folder of the episodes is not empty, and ``resume`` is off.
            TypeError, ImportError, ContextTooSmall: see :func:`gem.rollout.check_tasks`.
        """
        if trainer is self._trainer:
            return
        if trainer.args.max_completion_length is None:
            raise ValueError("GRPOConfig(max_completion_length=...) is needed: it limits the tokens of one turn")
        self.renderer = self._render(template_kwargs=getattr(trainer.args, "chat_template_kwargs", None))
        self._limits = replace(
            self._limits,
            max_new_tokens=trainer.args.max_completion_length,
            max_context=self._context(trainer),
        )
        self._check(self._tasks_of(trainer))
        if self.on_error == "mask":
            trainer.reward_funcs = [for_valid_episodes(function) for function in trainer.reward_funcs]
        stop_at(self.renderer.stop_ids, trainer)
        if self.folder is not None:
            if trainer.accelerator.is_main_process:
                begin_run(self.folder, self.resume)
            trainer.accelerator.wait_for_everyone()
        self._trainer = trainer

    def __call__(self, prompts: list[Any], trainer: GRPOTrainer) -> dict[str, list[Any] | None]:
        """Run one episode per prompt, and return what TRL's ``rollout_func`` returns."""
        self.prepare(trainer)
        tasks = [task_of_prompt(prompt, self.system) for prompt in prompts]
        self._check([task for task in tasks if task.env_id not in self._env_ids])
        with BatchedRollout(tasks, self.renderer, self._limits, self.make_env) as rollout:
            while most := most_requests(batch := rollout.next_batch(), trainer):
                rollout.answer(batch, generate(batch, most, trainer, self.renderer))
        self.episodes = rollout.episodes
        if self.folder is not None:
            # The step under which TRL logs them: that which learns from them, or that after which they are evaluated.
            step = trainer.state.global_step + int(trainer.model.training)
            for episode in self.episodes:
                append_episode(self.folder, episode, step)
        return self._as_columns()

    def _tasks_of(self, trainer: GRPOTrainer) -> list[Task]:
        """Return the tasks of all data sets that can be read without being consumed."""
        tasks = []
        for name, dataset, split in (
            ("train_dataset", trainer.train_dataset, "train"),
            ("eval_dataset", trainer.eval_dataset, "eval"),
        ):
            own = self._tasks_in(dataset)
            try:
                check_split(own, split)
            except ValueError as error:
                raise ValueError(f"{name}: {error}: make_tasks(..., split={split!r})") from None
            tasks += own
        return tasks

    def _tasks_in(self, dataset: Any) -> list[Task]:
        if dataset is None or isinstance(dataset, IterableDataset):  # whose tasks are checked as they come
            return []
        if isinstance(dataset, dict):
            return [task for part in dataset.values() for task in self._tasks_in(part)]
        prompts = dataset["prompt"] if "prompt" in dataset.column_names else [None]
        return [task_of_prompt(prompt, self.system) for prompt in prompts]

    def _check(self, tasks: list[Task]) -> None:
        if tasks:
            check_tasks(tasks, self.renderer, self._limits, self.make_env)
            self._env_ids.update(task.env_id for task in tasks)

    def _context(self, trainer: GRPOTrainer) -> int | None:
        """Return how many tokens the context holds; None for no limit."""
        own = self.max_context
        if own is None:
            own = getattr(trainer.model.config.get_text_config(), "max_position_embeddings", None)
        lengths = (own, getattr(trainer.args, "vllm_max_model_length", None))
        return min((length for length in lengths if length is not None), default=None)

    def _as_columns(self) -> dict[str, list[Any] | None]:
        left_out = [not e.turns or (self.on_error == "mask" and not e.valid) for e in self.episodes]
        rows = [episode.as_sequence() if episode.turns else self._filler() for episode in self.episodes]
        logprobs = [None if row.logprobs is None else row.logprobs.tolist() for row in rows]
        return {
            "prompt_ids": [row.prompt_ids.tolist() for row in rows],
            "completion_ids": [row.completion_ids.tolist() for row in rows],
            # A row that is left out keeps its tokens, but none that the loss or one of its normalisers counts.
            "env_mask": [(row.mask * (not out)).tolist() for row, out in zip(rows, left_out, strict=True)],
            "logprobs": None if any(row is None for row in logprobs) else logprobs,
            # What follows reaches the reward functions, one value per row. It must be lists: TRL copies anything else
            # whole.
            "left_out": left_out,
            "metrics": [self._metrics_of(episode) for episode in self.episodes],
            "turn_rewards": [episode.rewards for episode in self.episodes],
            "turn_ends": [row.turn_ends.tolist() for row in rows],
        }

    def _metrics_of(self, episode: Episode) -> dict[str, float]:
        """Return what is logged of an episode; in mixed training, also under the name of its environment."""
        metrics = mean_metrics([episode])
        names = OF_EACH_ENV if len(self._env_ids) > 1 else ()
        return metrics | {f"{name}/{episode.task.env_id}": metrics[name] for name in names if name in metrics}

    def _filler(self) -> TokenSequence:
        """Return the row of an episode for which the engine sampled nothing: TRL needs one token of completion."""
        prompt = np.array(self.renderer.first(""), dtype=np.int64)
        end = np.array([self.renderer.tokenizer.eos_token_id], dtype=np.int64)
        return TokenSequence(prompt, end, mask=end * 0, logprobs=np.zeros(1), rewards=np.zeros(1), turn_ends=end[:0])
