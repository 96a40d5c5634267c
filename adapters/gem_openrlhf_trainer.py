r"""What GEM adds to OpenRLHF's trainer: baselines without invalid episodes, and metrics for each environment.

OpenRLHF loads the agent file into the process of vLLM, where episodes are run, and computes advantages in another
process, which never reads that file. Between the two, Ray sends the samples, each with its row's label. The executor
returns that label as a :class:`Label`: unpickling one imports this module, which then wraps two functions of
OpenRLHF in the process that trains, before its first batch is learned from. No other launch command is needed, in
synchronous and in asynchronous training.

``RemoteExperienceMaker.compute_advantages_and_returns``
    * An invalid episode (with ``on_error="mask"``) is left out of the mean and deviation of its group and of the batch,
      whatever the estimator. Its row stays, since every rank needs as many rows, with a weight of zero: one token, of
      advantage 0, whose return is the critic's own value and whose reference is the actor.
    * Returns that are equal but for rounding give advantages of exactly 0. OpenRLHF's ``group_norm`` computes 0.83 for
      eight returns of -0.1: the rounding error of their mean, divided by the rounding error of their deviation.
    * Metrics are those of :func:`gem.rollout.mean_metrics`: what a failure is not about is a mean over the valid
      episodes, and in mixed training there is ``gem/<name>/<env id>``.
    * Tasks of another split than ``train`` are refused.

``compute_eval_metrics``
    * ``eval_<env id>_success`` and others, beside OpenRLHF's ``pass1``, which is the mean discounted return.
    * Tasks of the split ``train`` are refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from itertools import chain
from types import FunctionType
from typing import Any

import numpy as np
import torch

from gem.rollout.metrics import OF_EACH_ENV, mean_metrics
from gem.rollout.returns import group_advantages
from gem.tasks import Task

_EXPERIENCE_MAKER = "openrlhf.trainer.ppo_utils.experience_maker"
_EVALUATOR = "openrlhf.trainer.ppo_trainer"
_WRAPPED = "wrapped_by_gem"
"""An attribute that a module has whose function is wrapped."""


class Label(str):
    """A row's label on its way to the trainer, as part of a sample.

    Args:
        text: of the label: a task as JSON.
        masked: whether the sample is an episode that must not be learned from.
    """

    masked: bool

    def __new__(cls, text: str, masked: bool = False) -> Label:  # noqa: D102
        label = super().__new__(cls, text)
        label.masked = masked
        install()
        return label

    def __reduce__(self) -> tuple[type[Label], tuple[str, bool]]:
        return Label, (str(self), self.masked)

    @property
    def task(self) -> Task:
        """The row's task.

        Raises:
            ValueError: the label is no task.
        """
        return self.read()[0]

    def read(self) -> tuple[Task, dict[str, Any]]:
        """Return the row's task, and its options ``gamma`` and ``max_turns`` if it has them.

        Raises:
            ValueError: the label is no task.
        """
        try:
            fields = json.loads(self)
            options = {name: fields.pop(name) for name in ("gamma", "max_turns") if name in fields}
            return Task(**fields), options
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"the label {str(self)!r} is no task ({error}): write the rows with `gem tasks --format openrlhf`, and "
                "pass --data.input_key prompt --data.label_key label"
            ) from None


def install() -> None:
    """Wrap OpenRLHF's functions if this process has loaded them, once."""
    maker, evaluator = sys.modules.get(_EXPERIENCE_MAKER), sys.modules.get(_EVALUATOR)
    if maker and not hasattr(maker, _WRAPPED):
        cls = maker.RemoteExperienceMaker
        cls.compute_advantages_and_returns = _advantages(cls.compute_advantages_and_returns)
        setattr(maker, _WRAPPED, True)
    if evaluator and not hasattr(evaluator, _WRAPPED):
        # Ray sends the trainer as a copy, which refers to this function and not to its name in the module.
        function = evaluator.compute_eval_metrics
        stock = FunctionType(function.__code__, function.__globals__, function.__name__)
        setattr(evaluator, _WRAPPED, _eval_metrics(stock))
        function.__code__ = _call_the_wrapped.__code__


def _call_the_wrapped(*args: Any, **kwargs: Any) -> Any:
    """Is the body that ``compute_eval_metrics`` gets; it sees the names of that function's module only."""
    import sys

    return sys.modules["openrlhf.trainer.ppo_trainer"].wrapped_by_gem(*args, **kwargs)


# Advantages


def _advantages(stock: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Wrap ``compute_advantages_and_returns``. Its experiences are micro-batches; a row of one is an episode."""

    @wraps(stock)
    def compute_advantages_and_returns(self: Any, experiences: list[Any]) -> list[Any]:
        _check_splits(experiences, "train", "--data.prompt_dataset")
        estimator = self.args.algo.advantage.estimator
        kept = [torch.tensor([not label.masked for label in experience.labels]) for experience in experiences]
        sampled = [experience.action_mask for experience in experiences]
        for experience, of_rows in zip(experiences, kept, strict=True):
            # OpenRLHF's statistics of the batch are over the tokens of this mask.
            experience.action_mask = experience.action_mask * of_rows[:, None]

        # The length penalties come before the baselines, so these are computed when the first of them is needed.
        shaped = _less_the_baseline(experiences, kept, estimator, self.args.rollout.n_samples_per_prompt)
        maker = sys.modules[_EXPERIENCE_MAKER]
        original = maker.compute_reward
        with _replaced(maker, "compute_reward", lambda _, *args, **kwargs: original(next(shaped), *args, **kwargs)):
            stock(self, experiences)

        if estimator == "reinforce" and _equal(experiences):
            for experience in experiences:
                experience.advantages = torch.zeros_like(experience.advantages)
        for experience, of_rows, mask in zip(experiences, kept, sampled, strict=True):
            _take_the_weight(experience, ~of_rows, mask)
        _replace_metrics(experiences)
        return experiences

    return compute_advantages_and_returns


def _less_the_baseline(
    experiences: list[Any], kept: list[torch.Tensor], estimator: str, group_size: int
) -> Iterator[torch.Tensor]:
    """Yield each micro-batch's rewards less their baseline, over the rows that are kept; 0 for the others.

    The same as in ``compute_advantages_and_returns``, whose baselines are of a prompt's rows, but for
    ``flash_reinforce``, whose baseline is of all rows.
    """
    index = np.argsort(list(chain.from_iterable(experience.index for experience in experiences)))
    rewards = torch.cat([experience.rewards for experience in experiences]).double().numpy()[index]
    valid = torch.cat(kept).numpy()[index]
    if estimator in ("gae", "reinforce"):
        shaped = np.where(valid, rewards, 0.0)
    else:
        shaped = np.zeros(len(rewards))
        size = len(rewards) if estimator == "flash_reinforce" else group_size
        for start in range(0, len(rewards), size):
            rows = start + np.flatnonzero(valid[start : start + size])
            if len(rows) > 1:  # one alone has nothing to be compared with
                shaped[rows] = group_advantages(rewards[rows], len(rows), estimator == "group_norm", eps=1e-9)
                if estimator == "rloo":  # the mean is of the others
                    shaped[rows] *= len(rows) / (len(rows) - 1)
    in_batches = torch.empty(len(shaped), dtype=torch.float32)
    in_batches[torch.tensor(index)] = torch.tensor(shaped, dtype=torch.float32)
    yield from in_batches.split([len(experience.index) for experience in experiences])


def _equal(experiences: list[Any]) -> bool:
    """Return whether the returns of all tokens are the same but for rounding, of which whitening makes advantages."""
    returns = torch.cat([experience.returns[experience.action_mask.bool()] for experience in experiences])
    return len(returns) < 2 or not group_advantages(returns.double().tolist(), len(returns), scale=False).any()


def _take_the_weight(experience: Any, rows: torch.Tensor, sampled: torch.Tensor) -> None:
    """Leave one token to the rows of invalid episodes, and nothing to learn from it.

    OpenRLHF divides by the number of tokens of a micro-batch, which may be such rows only.

    Args:
        experience: a micro-batch.
        rows: which of its rows it is about.
        sampled: its mask of sampled tokens.
    """
    if not rows.any():
        return
    first = torch.zeros_like(sampled).scatter_(1, sampled.long().argmax(dim=1, keepdim=True), 1)
    experience.action_mask = torch.where(rows[:, None], first, experience.action_mask)
    experience.advantages[rows] = 0.0
    experience.returns[rows] = 0.0 if experience.values is None else experience.values[rows].to(experience.returns)
    if experience.base_action_log_probs is not None:
        experience.base_action_log_probs[rows] = experience.action_log_probs[rows]
    experience.info["return"][rows] = 0.0


def _replace_metrics(experiences: list[Any]) -> None:
    """Replace the metrics of each row (an episode) by the means of the batch.

    OpenRLHF logs the mean over all rows, invalid episodes included, which should not count in most of them.
    """
    means = mean_metrics([_Row(e.labels[i], e.info, i) for e in experiences for i in range(len(e.labels))])
    for experience in experiences:
        for key in [key for key in experience.info if key.startswith("gem/")]:
            del experience.info[key]
        for name, mean in means.items():
            # The same in every row, so that it is the mean of the rows, however they are batched from here on.
            experience.info[f"gem/{name}"] = torch.full((len(experience.labels),), mean)


@dataclass
class _Row:
    """The part of :class:`gem.rollout.Episode` that :func:`gem.rollout.mean_metrics` needs, of a row of a batch."""

    label: Label
    info: dict[str, torch.Tensor]
    number: int

    @property
    def task(self) -> Task:
        return self.label.task

    @property
    def valid(self) -> bool:
        return not self.metrics()["left_out"]

    def metrics(self) -> dict[str, float]:
        return {k[4:]: values[self.number].item() for k, values in self.info.items() if k.startswith("gem/")}


# Evaluation


def _eval_metrics(stock: Callable[..., dict[str, float]]) -> Callable[..., dict[str, float]]:
    """Wrap ``compute_eval_metrics``, whose samples are experiences of one row."""

    @wraps(stock)
    def compute_eval_metrics(eval_dataloader: Any, samples_list: list[Any], *args: Any) -> dict[str, float]:
        logs = stock(eval_dataloader, samples_list, *args)
        _check_splits(samples_list, "eval", "--eval.dataset")
        of_envs: dict[str, list[_Row]] = {}
        for sample in samples_list:
            of_envs.setdefault(sample.labels[0].task.env_id, []).append(_Row(sample.labels[0], sample.info, 0))
        for env_id, rows in of_envs.items():
            means = mean_metrics(rows)
            logs.update({f"eval_{env_id}_{name}": means[name] for name in OF_EACH_ENV if name in means})
        return logs

    return compute_eval_metrics


# What both need


def _check_splits(experiences: list[Any], wanted: str, flag: str) -> None:
    """Refuse training tasks in an evaluation, and others in training.

    Raises:
        ValueError: there is one.
    """
    for label in chain.from_iterable(experience.labels for experience in experiences):
        task = label.task
        if (task.split == "train") != (wanted == "train"):
            raise ValueError(f"{flag} holds {task}: write its rows with `gem tasks --split {wanted}`")


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)
