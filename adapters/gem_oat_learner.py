"""What goes before one of Oat's learners: steps, tasks, and advantages in which failures do not count."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from oat.algorithms.ppo_multiturn import PPOMultiTurnLearner
from torch.utils.data import DataLoader, Dataset

from gem.rollout import group_advantages, rebn
from gem.rollout.metrics import merged_metrics
from gem.tasks import Task, load_tasks
from gem_oat_actors import GROUPS, TURNS
from gem_oat_args import GemArgs, Progress, resumed_from

logger = logging.getLogger("gem.oat")


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
      With ``token_mean=True`` all sampled tokens of a step weigh the same, where Oat would divide by a constant.
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
            self._done = resumed_from(args).step
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
        kind = TURNS if isinstance(self, PPOMultiTurnLearner) else GROUPS
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
        self.actor_info = {**others, **merged_metrics(self._of_all_ranks(own))}
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
        return {**info, **{f"eval/{name}": value for name, value in merged_metrics(parts).items()}}

    def eval_and_log(self, train_info: dict[str, Any], eval: bool = False, save: bool = False) -> None:
        """Evaluate, save and log, as Oat does; beside a checkpoint goes how far the run has come."""
        super().eval_and_log(train_info, eval, save)  # type: ignore[misc]
        checkpoint = Path(self.save_path, "checkpoints", f"step_{self.steps:05d}")  # type: ignore[attr-defined]
        if checkpoint.is_dir() and self.strategy.is_group_rank_0():
            done = self.steps - save  # at the end of the training Oat has counted one more
            progress = Progress(done, [actor.tasks_played() for actor in self.actors])
            Progress.file(checkpoint, self.args.group_rank).write_text(json.dumps(asdict(progress)))

    def learn(self, learning_round: int) -> dict[str, Any]:
        """Learn from what was collected, unless all of it has the weight 0."""
        if not any(self._of_all_ranks(any(row.loss_mask for row in self.pi_buffer))):  # type: ignore[attr-defined]
            logger.warning("nothing is learned in step %d: every episode failed", self.steps)
            return {"train/skipped": 1.0}
        return {**super().learn(learning_round), "train/skipped": 0.0}  # type: ignore[misc]

    def learning_step(self, trajectory: dict[str, Any]) -> dict[str, Any]:
        """Learn from all rows as Oat does, with the advantages and weights of this class."""
        self._valid = valid = np.array(trajectory["loss_masks"], dtype=bool)
        lengths = np.array([len(logprobs) for logprobs in trajectory["action_logprobs"]])
        rows, weighing, tokens = np.sum(self._of_all_ranks([len(valid), valid.sum(), lengths[valid].sum()]), axis=0)
        scale = rows / max(weighing, 1)
        if self.args.token_mean:  # Oat's loss is the sum over a row's tokens / generate_max_length, averaged over rows
            scale = rows * self.args.generate_max_length / max(tokens, 1)
        trajectory = {**trajectory, "loss_masks": (valid * scale).tolist()}
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
