"""GEM for TRL: train on any GEM environment with TRL's released ``GRPOTrainer``.

.. code-block:: python

    from gem_trl import GemGRPOTrainer, GemRollout, gem_reward, task_dataset
    from gem.tasks import make_tasks

    trainer = GRPOTrainer(                       # or GemGRPOTrainer(..., gamma=1.0), for ReBN
        model=model,
        processing_class=tokenizer,
        args=GRPOConfig(max_completion_length=64, ...),   # of one turn, not of the episode
        train_dataset=task_dataset(make_tasks("game:GuessTheNumber-v1-easy", range(1024))),
        rollout_func=GemRollout(tokenizer, max_turns=4),
        reward_funcs=gem_reward,
    )

How GEM maps to TRL:

* A row of the data set is a task; it rides inside the prompt, since ``rollout_func`` is given nothing else. TRL
  repeats the row for a group, so a group begins from one seed, on whatever rank its members are.
* The ids of an episode reach the loss as they were sampled: first prompt, completion, and ``env_mask`` (1 on
  sampled tokens). Nothing is decoded and encoded again.
* **Rewards.** TRL keeps one scalar per episode: the sum of the rewards of its turns (``gem_reward``).
  :class:`GemGRPOTrainer` keeps all of them: it replaces the advantages with one per turn (ReBN).
* **Failures.** The reward of an episode that the environment or the engine ended is None, and its ``env_mask`` is 0.
  TRL then leaves it out of the mean and the deviation of its group, and gives it the advantage 0.
* **Stop tokens.** The tokens with which the chat template ends an answer are added to those at which TRL's generation
  stops: the end token of a base model is another one.
* Log-probabilities are handed on where TRL's generation has them (vLLM); else TRL computes them itself.

TRL counts an episode whose last turn has no end token as clipped, which is what ``completions/clipped_ratio``
shows here; leave ``mask_truncated_completions`` off. Works with TRL 1.x; tested with the
version in ``ci/constraints/trl.txt``.
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

try:
    import torch
    from accelerate.utils import gather_object
    from datasets import Dataset, IterableDataset
    from packaging.version import Version
    from trl import GRPOTrainer
    from trl import __version__ as trl_version
except ImportError as error:
    raise ImportError(f"gem_trl needs TRL and what it needs ({error}): pip install 'gem-adapters[trl]'") from error

from gem.core import Env
from gem.rollout import (
    BatchedRollout,
    ChatRenderer,
    Episode,
    Limits,
    OnError,
    Request,
    Response,
    TokenSequence,
    append_episode,
    begin_run,
    check_gamma,
    check_on_error,
    check_tasks,
    mean_metrics,
    rebn,
    spread_over_tokens,
)
from gem.rollout.metrics import OF_EACH_ENV
from gem.tasks import Task, check_split

if int(trl_version.split(".")[0]) != 1:
    raise ImportError(
        f"gem_trl works with TRL 1.x, and trl {trl_version} is installed: pip install 'gem-adapters[trl]'"
    )

logger = logging.getLogger("gem.trl")


def task_dataset(tasks: Sequence[Task]) -> Dataset:
    """Return a data set with one row per task, for ``train_dataset`` and ``eval_dataset``."""
    return Dataset.from_list([{"prompt": _as_prompt(task)} for task in tasks])


def _as_prompt(task: Task) -> list[dict[str, str]]:
    shown = f"{task.env_id}#{task.seed}"  # for logs; the model sees the environment's observation instead
    return [{"role": "user", "content": shown, "task": task.to_json()}]


def _task_of(prompt: Any, system: str | None = None) -> Task:
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
        :class:`GemGRPOTrainer` does.

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
            trainer.reward_funcs = [_for_valid(function) for function in trainer.reward_funcs]
        _stop_at(self.renderer.stop_ids, trainer)
        if self.folder is not None:
            if trainer.accelerator.is_main_process:
                begin_run(self.folder, self.resume)
            trainer.accelerator.wait_for_everyone()
        self._trainer = trainer

    def __call__(self, prompts: list[Any], trainer: GRPOTrainer) -> dict[str, list[Any] | None]:
        """Run one episode per prompt, and return what TRL's ``rollout_func`` returns."""
        self.prepare(trainer)
        tasks = [_task_of(prompt, self.system) for prompt in prompts]
        self._check([task for task in tasks if task.env_id not in self._env_ids])
        with BatchedRollout(tasks, self.renderer, self._limits, self.make_env) as rollout:
            while most := _most_requests(batch := rollout.next_batch(), trainer):
                rollout.answer(batch, _generate(batch, most, trainer, self.renderer))
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
        return [_task_of(prompt, self.system) for prompt in prompts]

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


def gem_reward(
    turn_rewards: list[list[float]] | None = None,
    left_out: list[bool] | None = None,
    metrics: list[dict[str, float]] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """TRL's ``reward_funcs``: passes the returns of the episodes through; None for those that are left out.

    Logs the means of their metrics (:func:`gem.rollout.mean_metrics`): ``gem/success``, ``gem/turns``,
    ``gem/left_out`` and so on, and in mixed training ``gem/success/<env id>`` too.

    Raises:
        TypeError: the trainer has no :class:`GemRollout`.
    """
    if turn_rewards is None or left_out is None:
        raise TypeError("gem_reward has no episodes: the trainer needs rollout_func=GemRollout(tokenizer)")
    if log_metric is not None:
        for row in metrics or []:  # one by one: TRL takes the mean of all values of all ranks
            for name, value in row.items():
                log_metric(f"gem/{name}", value)
    return [None if out else float(sum(rewards)) for rewards, out in zip(turn_rewards, left_out, strict=True)]


class GemGRPOTrainer(GRPOTrainer):
    """TRL's trainer with one advantage per turn: ReBN, over every turn of the batch and of all ranks.

    The clipped objective, the KL term and the rest are TRL's. Groups play no role in these advantages. Rewards are
    summed up with ``reward_weights``, as TRL does; what further ``reward_funcs`` return for an episode is a reward of
    its last turn.

    Args:
        *args: of ``GRPOTrainer``; ``rollout_func`` must be a :class:`GemRollout`.
        gamma: discount per turn.
        **kwargs: of ``GRPOTrainer``.

    Raises:
        ValueError: ``gamma`` is not from 0 to 1, or an option asks for other advantages; or see
            :meth:`GemRollout.prepare`.
        TypeError: ``rollout_func`` is no :class:`GemRollout`, or ``reward_funcs`` are without :func:`gem_reward`.
    """

    def __init__(self, *args: Any, gamma: float = 1.0, **kwargs: Any) -> None:
        self.gamma = check_gamma(gamma)
        super().__init__(*args, **kwargs)
        if not isinstance(self.rollout_func, GemRollout):
            raise TypeError(f"GemGRPOTrainer needs rollout_func=GemRollout(...), got {self.rollout_func!r}")
        if gem_reward not in self.reward_funcs:
            raise TypeError("GemGRPOTrainer needs gem_reward among its reward_funcs")
        if self.args.scale_rewards == "none":
            raise ValueError("GemGRPOTrainer normalises over the batch (ReBN): scale_rewards is left out, or 'batch'")
        if getattr(self.args, "multi_objective_aggregation", "sum_then_normalize") != "sum_then_normalize":
            raise ValueError("GemGRPOTrainer sums up the rewards first: leave multi_objective_aggregation out")
        self.rollout_func.prepare(self)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._scores = super()._calculate_rewards(*args, **kwargs)  # (episodes of all ranks, reward functions)
        return self._scores

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        first = self.accelerator.process_index * len(inputs)
        own = slice(first, first + len(inputs))
        rewards = self._turn_rewards(inputs, self._scores[own])
        everyone = gather_object(rewards)  # of all ranks, in their order
        of_learned = iter(rebn([row for row in everyone if row is not None], self.gamma))
        of_turns = [np.zeros(0) if row is None else next(of_learned) for row in everyone][own]
        ends = [[] if row["left_out"] else row["turn_ends"] for row in inputs]
        completions = output["completion_ids"]
        of_tokens = spread_over_tokens(of_turns, ends, completions.shape[1])
        output["advantages"] = torch.tensor(of_tokens, dtype=torch.float32, device=completions.device)
        return output

    def _turn_rewards(self, inputs: list[dict[str, Any]], scores: torch.Tensor) -> list[list[float] | None]:
        """Return the weighted sums of rewards per turn; None for an episode that is left out."""
        weights = self.reward_weights.tolist()
        of_gem = self.reward_funcs.index(gem_reward)
        rewards: list[list[float] | None] = []
        for row, of_functions in zip(inputs, scores.tolist(), strict=True):
            if row["left_out"]:
                rewards.append(None)
                continue
            of_turns = [weights[of_gem] * reward for reward in row["turn_rewards"]]
            of_turns[-1] += sum(
                weight * score
                for i, (weight, score) in enumerate(zip(weights, of_functions, strict=True))
                if i != of_gem and not math.isnan(score)  # TRL's mark of a function that does not apply
            )
            rewards.append(of_turns)
        return rewards


def _for_valid(reward_func: Any) -> Any:
    """Return a reward function that gives None for the episodes that are left out, as :func:`gem_reward` does.

    Else what it gives them would move the baseline of their group.

    Raises:
        ValueError: it is a model, which gives a number to every row.
    """
    if reward_func is gem_reward:
        return reward_func
    if isinstance(reward_func, torch.nn.Module):
        raise ValueError(
            f"{type(reward_func).__name__} is a reward model, and would score the episodes that are left out too: "
            "call it in a reward function, or use GemRollout(..., on_error='keep')"
        )

    def unless(left_out: list[bool], rewards: list[float | None]) -> list[float | None]:
        return [None if out else reward for out, reward in zip(left_out, rewards, strict=True)]

    @functools.wraps(reward_func)
    def for_valid(left_out: list[bool], **columns: Any) -> list[float | None]:
        return unless(left_out, reward_func(left_out=left_out, **columns))

    @functools.wraps(reward_func)
    async def for_valid_async(left_out: list[bool], **columns: Any) -> list[float | None]:
        return unless(left_out, await reward_func(left_out=left_out, **columns))

    asynchronous = any(map(inspect.iscoroutinefunction, (reward_func, type(reward_func).__call__)))
    return for_valid_async if asynchronous else for_valid


def _stop_at(stop_ids: Sequence[int], trainer: GRPOTrainer) -> None:
    """Add to the tokens at which the trainer's generation stops, whatever it generates with.

    TRL stops at the end tokens of the tokenizer and of the model's generation configuration. Those of a base model
    are not the token with which a chat template ends an answer.
    """

    def with_ours(known: int | Sequence[int] | None) -> list[int]:
        known = [] if known is None else [known] if isinstance(known, int) else known
        return list(dict.fromkeys([*known, *stop_ids]))

    if hasattr(trainer, "eos_token_ids"):  # since TRL 1.15: where it cuts answers, and what does not count as clipped
        trainer.eos_token_ids = with_ours(trainer.eos_token_ids)
    if trainer.use_vllm and hasattr(getattr(trainer, "vllm_generation", None), "generation_kwargs"):
        engine = trainer.vllm_generation
        stops = with_ours(engine.generation_kwargs.get("stop_token_ids"))
        engine.generation_kwargs = {**engine.generation_kwargs, "stop_token_ids": stops}
    elif not trainer.use_vllm and hasattr(trainer, "generation_config") and hasattr(trainer, "generation_kwargs"):
        ends = with_ours(trainer.generation_config.eos_token_id)
        trainer.generation_config.eos_token_id = trainer.generation_kwargs["eos_token_id"] = ends
    else:
        logger.warning(
            "TRL %s cannot be told to stop at the tokens %s, with which the chat template ends an answer: what is "
            "generated after them costs time, and is cut off",
            trl_version,
            list(stop_ids),
        )


def _generate(batch: list[Request], most: int, trainer: GRPOTrainer, renderer: ChatRenderer) -> list[Response]:
    """Generate for one batch of requests with whatever the trainer is configured to use (transformers, vLLM).

    Generation may be collective (vLLM server, sharded parameters), so every rank asks for ``most`` answers.
    """
    prompts = [list(request.prompt_ids) for request in batch]
    filler = prompts[0] if prompts else [renderer.tokenizer.pad_token_id]
    prompts += [filler] * (most - len(prompts))
    ids, logprobs = _generate_single_turn(prompts, trainer)
    ends = {*(getattr(trainer, "eos_token_ids", None) or [renderer.tokenizer.eos_token_id]), *renderer.stop_ids}
    return [
        _response(ids[i], None if logprobs is None else logprobs[i], ends, renderer.stop_ids) for i in range(len(batch))
    ]


def _response(ids: list[int], logprobs: list[float] | None, ends: set[int], stop_ids: Sequence[int]) -> Response:
    """Return what was sampled up to the end of the answer."""
    length = next((place for place, token in enumerate(ids, start=1) if token in stop_ids), len(ids))
    ids, logprobs = ids[:length], None if logprobs is None else logprobs[:length]
    if not ids:
        return Response(ids, logprobs, "abort")
    return Response(ids, logprobs, "stop" if ids[-1] in ends else "length")


def _most_requests(batch: list[Request], trainer: GRPOTrainer) -> int:
    """Return how many requests the rank with the most of them has: all go on together until it has none."""
    if trainer.accelerator.num_processes == 1:
        return len(batch)
    waiting = torch.tensor([len(batch)], device=trainer.accelerator.device)
    return int(trainer.accelerator.gather(waiting).max())


def _generate_single_turn(prompts: list[list[int]], trainer: GRPOTrainer) -> tuple[list[list[int]], Any]:
    """Call TRL's own generation, the step that its tool loop is made of.

    It is private, and what it takes has changed from release to release.

    Raises:
        RuntimeError: this release of TRL takes something that is not known here.
    """
    known: dict[str, Any] = {"prompt_ids": prompts, "images": None, "multimodal_fields": {}, "num_generations": 1}
    generate = getattr(trainer, "_generate_single_turn", None)
    parameters = inspect.signature(generate).parameters if generate is not None else {}
    required = [name for name, p in parameters.items() if p.default is p.empty]
    if not required or not set(required) <= set(known):
        raise RuntimeError(
            f"TRL {trl_version} generates in a way that gem_trl does not know (_generate_single_turn takes "
            f"{', '.join(parameters) or 'nothing'}). Tested versions are in ci/constraints/trl.txt: "
            "pip install 'gem-adapters[trl]' -c ci/constraints/trl.txt"
        )
    assert generate is not None
    return generate(**{name: known[name] for name in required})
