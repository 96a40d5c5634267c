"""verl's replay buffer, which also counts episodes, leaves out those that failed, and replaces a batch of failures."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import transfer_queue
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

from gem.rollout.metrics import OF_EACH_ENV

logger = logging.getLogger("gem.verl")

FAILED_BATCHES = 4
"""So many batches in a row without a valid episode end the run."""

NO_WEIGHT = "no_weight"
"""The extra field of a row that is there to be counted only."""

COMPARED_IN_GROUPS = frozenset(
    {"grpo", "grpo_vectorized", "grpo_passk", "gdpo", "rloo", "rloo_vectorized", "opo", "gpg"}
    | {"reinforce_plus_plus_baseline", "optimal_token_baseline", "tir_optimal_token_baseline"}
)
"""verl's estimators whose baseline is of a group. In a group of one, most of them take the return for the advantage."""


class GemSampling:
    """What GEM adds to verl's replay buffers, which hand the trainer its batches."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        trainer = getattr(kwargs.get("refill_fn"), "__self__", None)
        algorithm = {} if trainer is None else trainer.config.algorithm
        if (algorithm.get("filter_groups") or {}).get("enable", False):
            raise ValueError(
                "verl leaves algorithm.filter_groups to a custom sampler, and GemReplayBuffer does not filter: use one "
                "or the other"
            )
        self.in_groups = algorithm.get("adv_estimator") in COMPARED_IN_GROUPS
        interval = (kwargs.get("sampler_kwargs") or {}).get("poll_interval")
        super().__init__(*args, **kwargs, **({} if interval is None else {"poll_interval": interval}))

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[Any, dict[str, Any]]:
        """Sample a batch as verl does; in training, take out the rows of no weight, and add the metrics.

        A batch without a valid episode is replaced by one of the next tasks.

        Raises:
            RuntimeError: several batches in a row had no valid episode.
        """
        if partition_id != "train":
            return super().sample(global_steps, partition_id, batch_size)  # type: ignore[misc]
        counted: list[_Counted] = []
        for attempt in range(FAILED_BATCHES):
            if attempt:
                logger.warning("step %d: no episode of the batch is valid; the next tasks are run", global_steps)
                self.refill_fn(batch_size)  # type: ignore[attr-defined]
            batch, metrics = super().sample(global_steps, partition_id, batch_size)  # type: ignore[misc]
            rows = _counted(batch)
            counted += rows
            kept = self._learned_from(batch.keys, rows)
            if dropped := [key for key in batch.keys if key not in kept]:
                transfer_queue.kv_clear(keys=dropped, partition_id=partition_id)
            if kept:
                return batch.select_keys(list(kept)), {**metrics, **_means(counted)}
        raise RuntimeError(
            f"{FAILED_BATCHES} batches in a row had no valid episode: the environment, a tool or the inference server "
            "fails for good. The last errors are in the log of verl's agent-loop workers."
        )

    def _learned_from(self, keys: Sequence[str], rows: Sequence[_Counted]) -> dict[str, None]:
        """Return the keys of the batch that the trainer is to learn from, in their order."""
        sessions: dict[str, list[_Counted]] = defaultdict(list)
        for row in rows:
            sessions[row.session.rpartition("_")[0]].append(row)
        left_out = {row.session for row in rows if row.no_weight}
        for group in sessions.values():
            valid = [row.session for row in group if not row.no_weight]
            if self.in_groups and len(valid) == 1 < len(group):  # there is nothing left to compare it with
                left_out.add(valid[0])
        return dict.fromkeys(key for key in keys if key.rpartition("_")[0] not in left_out)


class GemReplayBuffer(GemSampling, ReplayBuffer):
    """verl's ``trainer.v1.sampler.custom_sampler`` for the synchronous trainer.

    It logs the episodes' metrics under ``gem/``, counts those that are left out, and goes on where a whole batch
    failed. ``+trainer.v1.sampler.sampler_kwargs.poll_interval=0.1`` makes it look for finished episodes more often than
    every two seconds.
    """


class GemReplayBufferAsync(GemSampling, ReplayBufferAsync):
    """The same for verl's asynchronous trainers."""


@dataclass(frozen=True)
class _Counted:
    """An episode of a batch.

    Attributes:
        session: verl's key of it, ``<uid>_<session>``.
        env_id: of its environment; None if another agent loop has run it.
        metrics: by name; None for those that do not count.
        no_weight: whether its row is there to be counted only.
    """

    session: str
    env_id: str | None
    metrics: dict[str, float | None]
    no_weight: bool


def _counted(batch: Any) -> list[_Counted]:
    """Return a batch's episodes; the last sample of each stands for it."""
    last: dict[str, tuple[int, str]] = {}
    for key in batch.keys:
        session, _, index = key.rpartition("_")
        last[session] = max(last.get(session, (-1, "")), (int(index), key))
    keys = [key for _, key in last.values()]
    stored = transfer_queue.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=["extra_fields"])
    episodes = []
    for session, extra in zip(last, stored["extra_fields"], strict=True):
        metrics = dict(extra["reward_extra_info"]) if "env_id" in extra else {}
        if "acc" in metrics:
            metrics["success"] = metrics.pop("acc")
        episodes.append(_Counted(session, extra.get("env_id"), metrics, extra.get(NO_WEIGHT, False)))
    return episodes


def _means(counted: Sequence[_Counted]) -> dict[str, float]:
    """Return means over episodes, as :func:`gem.rollout.mean_metrics` does."""
    ids = {row.env_id for row in counted} - {None}
    values: dict[str, list[float]] = defaultdict(list)
    for row in counted:
        for name, value in row.metrics.items():
            if value is not None:
                values[f"gem/{name}"].append(value)
                if len(ids) > 1 and name in OF_EACH_ENV:
                    values[f"gem/{name}/{row.env_id}"].append(value)
    return {name: sum(some) / len(some) for name, some in values.items()}
