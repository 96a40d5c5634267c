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
* **Rewards.** TRL keeps one scalar an episode: the sum of the turns' rewards (``gem_reward``).
  :class:`GemGRPOTrainer` keeps all of them: it replaces the advantages with one a turn (ReBN).
* Log-probabilities are handed on where TRL's generation has them (vLLM); else TRL computes them itself.

TRL counts an episode whose last turn has no end token as clipped, which is what ``completions/clipped_ratio``
shows here; leave ``mask_truncated_completions`` off. Works with TRL 1.x; tested with the
version in ``ci/constraints/trl.txt``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

try:
    import torch
    from accelerate.utils import gather_object
    from datasets import Dataset
    from trl import GRPOTrainer
    from trl import __version__ as trl_version
except ImportError as error:
    raise ImportError(f"gem_trl needs TRL and what it needs ({error}): pip install 'gem-adapters[trl]'") from error

from gem.core import Env
from gem.rollout import BatchedRollout, ChatRenderer, Episode, Limits, Request, Response, rebn, spread_over_tokens
from gem.tasks import Task

if int(trl_version.split(".")[0]) != 1:
    raise ImportError(
        f"gem_trl works with TRL 1.x, and trl {trl_version} is installed: pip install 'gem-adapters[trl]'"
    )


def task_dataset(tasks: Sequence[Task]) -> Dataset:
    """Return a data set with a row a task, for ``train_dataset`` and ``eval_dataset``."""
    return Dataset.from_list([{"prompt": _as_prompt(task)} for task in tasks])


def _as_prompt(task: Task) -> list[dict[str, str]]:
    shown = f"{task.env_id}#{task.seed}"  # for logs; the model sees the environment's observation instead
    return [{"role": "user", "content": shown, "task": task.to_json()}]


def _task_of(prompt: Any) -> Task:
    try:
        return Task.from_json(prompt[-1]["task"])
    except (TypeError, KeyError, IndexError):
        raise ValueError(
            f"the prompt {prompt!r} holds no task: make train_dataset (and eval_dataset) with gem_trl.task_dataset"
        ) from None


class GemRollout:
    """TRL's ``rollout_func``: plays the episodes of a batch with the trainer's own generation.

    Args:
        tokenizer: the trainer's ``processing_class``.
        max_turns: turns an episode; None for as many as the environment allows.
        max_context: tokens of an episode; None for what the model's configuration allows.
        step_timeout: seconds that a step of a blocking environment may take.
        system: a system message.
        tool_role: whether a tool's observation is a message of the tool role; see :class:`gem.rollout.ChatRenderer`.
        make_env: builds a task's environment; wrappers go in here.
        **template_kwargs: go to the chat template.

    Raises:
        ValueError: the chat template does not do; see :class:`gem.rollout.ChatRenderer`.
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
        **template_kwargs: Any,
    ) -> None:
        Limits(max_turns, max_context=max_context, step_timeout=step_timeout)  # refuses what is not positive
        self.renderer = ChatRenderer(tokenizer, system=system, tool_role=tool_role, **template_kwargs)
        self.max_turns = max_turns
        self.max_context = max_context
        self.step_timeout = step_timeout
        self.make_env = make_env
        self.episodes: list[Episode] = []
        """The episodes of the latest batch."""

    def __call__(self, prompts: list[Any], trainer: GRPOTrainer) -> dict[str, list[Any] | None]:
        """Play one episode a prompt, and return what TRL's ``rollout_func`` returns."""
        limits = Limits(
            self.max_turns,
            trainer.args.max_completion_length,
            max_context=self._context(trainer),
            step_timeout=self.step_timeout,
        )
        tasks = [_task_of(prompt) for prompt in prompts]
        with BatchedRollout(tasks, self.renderer, limits, self.make_env) as rollout:
            while most := _most_requests(batch := rollout.next_batch(), trainer):
                rollout.answer(batch, _generate(batch, most, trainer))
        self.episodes = rollout.episodes
        return _as_columns(self.episodes)

    def _context(self, trainer: GRPOTrainer) -> int | None:
        if self.max_context is not None:
            return self.max_context
        config = trainer.model.config
        return getattr(config.get_text_config(), "max_position_embeddings", None)


def _as_columns(episodes: list[Episode]) -> dict[str, list[Any] | None]:
    rows = [episode.as_sequence() for episode in episodes]
    logprobs = [None if row.logprobs is None else row.logprobs.tolist() for row in rows]
    return {
        "prompt_ids": [row.prompt_ids.tolist() for row in rows],
        "completion_ids": [row.completion_ids.tolist() for row in rows],
        "env_mask": [row.mask.tolist() for row in rows],
        "logprobs": None if any(row is None for row in logprobs) else logprobs,
        # What follows reaches the reward functions, a value a row. It must be lists: TRL copies anything else whole.
        "metrics": [episode.metrics() for episode in episodes],
        "turn_rewards": [episode.rewards for episode in episodes],
        "turn_ends": [row.turn_ends.tolist() for row in rows],
    }


def gem_reward(
    prompts: list[Any],
    completions: list[Any],
    metrics: list[dict[str, float]],
    log_metric: Callable[[str, float], None] | None = None,
    **columns: Any,
) -> list[float]:
    """TRL's ``reward_funcs``: passes the episodes' returns through.

    Logs the means of the episodes' metrics (:meth:`gem.rollout.Episode.metrics`): ``gem/success``, ``gem/turns``,
    ``gem/environment_errors`` and so on.
    """
    if log_metric is not None:
        for name in metrics[0]:
            log_metric(f"gem/{name}", sum(row[name] for row in metrics) / len(metrics))
    return [row["return"] for row in metrics]


class GemGRPOTrainer(GRPOTrainer):
    """TRL's trainer with an advantage a turn: ReBN, over every turn of the batch and of all ranks.

    The clipped objective, the KL term and the rest are TRL's. Groups play no role in these advantages.

    Args:
        *args: of ``GRPOTrainer``; ``rollout_func`` must be a :class:`GemRollout`.
        gamma: discount a turn.
        **kwargs: of ``GRPOTrainer``.
    """

    def __init__(self, *args: Any, gamma: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.rollout_func, GemRollout):
            raise TypeError(f"GemGRPOTrainer needs rollout_func=GemRollout(...), got {self.rollout_func!r}")
        self.gamma = gamma

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        own = [row["turn_rewards"] for row in inputs]
        everyone = gather_object(own)  # of all ranks, in their order
        first = self.accelerator.process_index * len(own)
        of_turns = rebn(everyone, self.gamma)[first : first + len(own)]
        completions = output["completion_ids"]
        of_tokens = spread_over_tokens(of_turns, [row["turn_ends"] for row in inputs], completions.shape[1])
        output["advantages"] = torch.tensor(of_tokens, dtype=torch.float32, device=completions.device)
        return output


def _generate(batch: list[Request], most: int, trainer: GRPOTrainer) -> list[Response]:
    """Generate for one batch of requests with whatever the trainer is configured to use (transformers, vLLM).

    Generation may be collective (vLLM server, sharded parameters), so every rank asks for ``most`` answers.
    """
    prompts = [list(request.prompt_ids) for request in batch]
    filler = prompts[0] if prompts else [trainer.processing_class.pad_token_id]
    prompts += [filler] * (most - len(prompts))
    ids, logprobs = _generate_single_turn(prompts, trainer)
    ends = set(getattr(trainer, "eos_token_ids", None) or [trainer.processing_class.eos_token_id])
    return [
        Response(ids[i], None if logprobs is None else logprobs[i], "stop" if ids[i][-1] in ends else "length")
        for i in range(len(batch))
    ]


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
