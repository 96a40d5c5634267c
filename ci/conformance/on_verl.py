"""Hold the verl adapter to the conformance kit, in a training step of verl's own V1 trainer.

verl's are the agent-loop worker and what it stores, and the trainer's step up to the actor: data set, collation, replay
buffer, filling up and balancing of the batch, advantages. Without Ray and a model there are stand-ins: a dictionary for
TransferQueue, a script for verl's client of the inference servers, and an actor that only keeps the batch it is handed.
The old log-probabilities are those of the sampling (``rollout_correction.bypass_mode``), as no actor computes others.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import transfer_queue
from hydra import compose, initialize_config_module
from tensordict import TensorDict
from transfer_queue.storage.managers.simple_storage_manager import AsyncSimpleStorageManager
from verl.trainer.ppo.utils import create_rl_dataset
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils.dataset.rl_dataset import collate_fn
from verl.workers.rollout.replica import TokenOutput

from gem.core import Env
from gem.embedded import embedded_model
from gem.rollout import ChatRenderer, Episode, discounted_returns
from gem.tasks import Task
from gem.testing.conformance import (
    Difference,
    Harness,
    Lowered,
    Record,
    every_turn_worth_its_return,
    main,
    of_groups,
    of_turns,
)
from gem.testing.scenarios import SCENE, Scenario, Script

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import train_verl

MAKE_ENV: list[Callable[[Task], Env]] = []
"""That of the scenario which is being played."""


def make_env(task: Task) -> Env:
    """Be the adapter's ``make_env``."""
    return MAKE_ENV[-1](task)


class Queue:
    """TransferQueue in one process; columns are packed by a function of its own."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = defaultdict(dict)
        self.tags: dict[str, dict[str, Any]] = defaultdict(dict)

    def init(self) -> None:
        """Begin."""

    def kv_list(self, partition_id: str = "train") -> dict[str, dict[str, dict[str, Any]]]:
        """Return all tags."""
        return {partition_id: dict(self.tags)}

    def kv_clear(self, keys: list[str], partition_id: str) -> None:
        """Forget rows."""
        for key in keys:
            del self.tags[key]
            self.rows.pop(key, None)

    def kv_batch_put(
        self,
        keys: list[str],
        partition_id: str,
        fields: TensorDict | None = None,
        tags: list[dict[str, Any]] | None = None,
    ) -> transfer_queue.KVBatchMeta:
        """Store columns, and add to tags."""
        for i, key in enumerate(keys):
            self.tags[key].update({} if tags is None else tags[i])
            self.rows[key].update({} if fields is None else fields[i].items())
        return transfer_queue.KVBatchMeta(keys, [self.tags[key] for key in keys], partition_id)

    def kv_batch_get(self, keys: list[str], partition_id: str, select_fields: list[str] | None = None) -> TensorDict:
        """Return those of the columns that there are."""
        rows = [self.rows[key] for key in keys]
        names = [name for name in rows[0] if select_fields is None or name in select_fields]
        pack = AsyncSimpleStorageManager._pack_field_values
        return TensorDict({name: pack([row[name] for row in rows]) for name in names}, batch_size=len(rows))

    async def async_kv_put(self, key: str, partition_id: str, tag: dict[str, Any]) -> None:
        """Add to a tag."""
        self.kv_batch_put([key], partition_id, tags=[tag])

    async def async_kv_batch_put(self, **columns: Any) -> None:
        """Store columns."""
        self.kv_batch_put(**columns)


class Rollout:
    """Is verl's manager of agent loops, with one worker in this process, and its client of the inference servers."""

    def __init__(self, config: Any, script: Script) -> None:
        self.config, self.script = config, script

    async def generate(self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any]) -> TokenOutput:
        """Answer as verl's vLLM server does, which says "completed" at a limit too."""
        answer = self.script.say(prompt_ids, sampling_params["max_tokens"])
        return TokenOutput(token_ids=answer.token_ids, log_probs=answer.logprobs, stop_reason="completed")

    def generate_sequences(self, batch: TensorDict) -> None:
        """Play the rows of a batch."""

        async def play() -> None:
            worker = AgentLoopWorkerTQ.__ray_metadata__.modified_class(self.config, self)
            await worker.generate_sequences(batch)
            await asyncio.gather(*worker.background_tasks)

        asyncio.run(play())


class Actor:
    """Takes what verl's actor is to learn from."""

    _dispatch_info: ClassVar = {"actor": [0]}

    def update_actor(self, batch: transfer_queue.KVBatchMeta) -> dict[str, dict[str, list[float]]]:
        """Keep the batch, without the rows that fill it up."""
        self.keys = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding")]
        return {"metrics": {"mfu": [0.0]}}


class Trainer(PPOTrainer):
    """verl's trainer, of which only a step is used."""

    def on_sample_end(self) -> None:
        """There is no server to put to sleep."""

    def on_step_end(self) -> None:
        """There are no weights to hand on."""


class VerlHarness(Harness):
    """verl."""

    name = "verl"
    version = version("verl")
    differences = (
        Difference(
            "mode: turn; a turn is worth its return-to-go, on its last token",
            every_turn_worth_its_return,
            only=frozenset({"a rewritten history"}),
        ),
    )
    algorithms = ("reinforce", "grpo", "rebn")

    def play(self, scenario: Scenario, script: Script) -> list[Record]:
        """Return what the actor is handed."""
        records = []
        for row in self._step(scenario, script, "gem_rebn"):
            first = [0] * len(row["prompts"])
            mask, rewards, logprobs = (
                first + row[name].tolist() for name in ("response_mask", "rm_scores", "old_log_probs")
            )
            records.append(Record(row["input_ids"].tolist(), mask, rewards, logprobs))
        return records

    def lower(self, scenario: Scenario, script: Script, algorithm: str) -> Lowered:
        """Return verl's advantages."""
        estimator = {"reinforce": "reinforce_plus_plus", "grpo": "grpo", "rebn": "gem_rebn"}[algorithm]
        advantages = [
            (row["input_ids"].tolist(), row["advantages"][row["response_mask"].bool()].tolist())
            for row in self._step(scenario, script, estimator)
        ]
        if algorithm == "rebn":
            return Lowered(advantages, of_turns(), "over all turns of the batch, population deviation")
        if algorithm == "grpo":
            reference = of_groups(scenario.copies, True, 1e-6)
            return Lowered(advantages, reference, "over the group's sample deviation + 1e-6")
        return Lowered(advantages, of_tokens, "++: returns against those of all tokens, over their sample deviation")

    def _step(self, scenario: Scenario, script: Script, estimator: str) -> list[dict[str, Any]]:
        tokenizer = self.tokenizer()
        queue = Queue()
        for name in vars(Queue):
            if not name.startswith("__"):
                setattr(transfer_queue, name, getattr(queue, name))
        MAKE_ENV.append(scenario.make_env(tokenizer))
        with tempfile.TemporaryDirectory() as folder:
            config = _config(scenario, tokenizer, estimator, Path(folder))
            trainer = Trainer(config)
            trainer._init_tokenizer()
            rows = create_rl_dataset(config.data.train_files, config.data, trainer.tokenizer, None)
            trainer.train_dataloader, trainer.train_dataloader_it = [collate_fn(list(rows))], None
            trainer.reward_loop_manager = SimpleNamespace(reward_loop_worker_handles=[])  # no reward model
            trainer.agent_loop_manager, trainer.actor_rollout_wg = Rollout(config, script), Actor()
            trainer.global_steps = 1
            trainer.prepare_step()
            trainer._step_once({}, {}, len(scenario.tasks))
        return [queue.rows[key] for key in trainer.actor_rollout_wg.keys]


def _config(scenario: Scenario, tokenizer: Any, estimator: str, folder: Path) -> Any:
    """Return verl's configuration as the example has it, with the limits of a scenario."""
    args = train_verl.Args(env=SCENE, batch_size=len(scenario.rows), group_size=scenario.copies)
    args.fill_in()
    first = max(_first_prompt(task, ChatRenderer(tokenizer)) for task in scenario.tasks)
    model = str(embedded_model())
    keys = [
        *train_verl.gem_keys(args, folder),
        *train_verl.algorithm_keys(args, model),
        *train_verl.job_keys(args, model, folder),
        *train_verl.cpu_keys(str(folder)),
        *train_verl.plain_attention_keys(),
        f"data.train_files={folder / 'tasks.jsonl'}",
        f"data.max_prompt_length={first}",
        f"+data.tool_role={scenario.tool_role}",
        f"data.max_response_length={scenario.max_context - first}",
        f"algorithm.adv_estimator={estimator}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={len(scenario.tasks) + 1}",  # verl adds rows that fill it up
        "critic.enable=False",
        "algorithm.rollout_correction.bypass_mode=True",
    ]
    (folder / "tasks.jsonl").write_text("".join(task.to_json() + "\n" for task in scenario.tasks))
    options = {
        "name": "gem",
        "_target_": "gem_verl.GemAgentLoop",
        "mode": "turn" if scenario.rewritten else "concat",
        "max_turns": scenario.max_turns,
        "max_new_tokens": scenario.max_new_tokens,
        "make_env": {"_target_": "hydra.utils.get_method", "path": f"{__name__}.make_env"},
    }
    (folder / "gem.yaml").write_text(json.dumps([options]))
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=keys)


def _first_prompt(task: Task, renderer: ChatRenderer) -> int:
    with task.make() as env:
        return len(renderer.first(env.reset(task.reset_seed)[0]))


def of_tokens(episodes: list[Episode]) -> list[np.ndarray]:
    """Return verl's ``reinforce_plus_plus`` as a reference: returns-to-go, a turn counted as often as it has tokens."""
    returns = [discounted_returns(episode.rewards, 1.0) for episode in episodes]
    lengths = [[len(turn.response_ids) for turn in episode.turns] for episode in episodes]
    tokens = np.repeat(np.concatenate(returns), np.concatenate(lengths))
    return [(row - tokens.mean()) / np.sqrt(tokens.var(ddof=1) + 1e-8) for row in returns]


if __name__ == "__main__":
    main(VerlHarness())
