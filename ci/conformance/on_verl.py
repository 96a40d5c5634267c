"""Run the conformance suite on the verl adapter, in a training step of verl's own V1 trainer.

verl's are the agent-loop worker and what it stores, and the trainer's step up to the actor: data set, collation, replay
buffer, filling up and balancing of the batch, advantages. In place of Ray and a model there are a dictionary for
TransferQueue, a scripted policy for verl's client of the inference servers, and an actor that only keeps its batch.
The old log-probabilities are those of the sampling (``rollout_correction.bypass_mode``), as no actor computes others.
For gradients the actor is verl's own (:mod:`verl_update`), with its log-probabilities, loss and engine.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import transfer_queue
import verl_update  # before verl: it chooses the platform
from hydra import compose, initialize_config_module
from tensordict import TensorDict
from two_processes import by_two, world
from verl.trainer.ppo.utils import create_rl_dataset
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils.dataset.rl_dataset import collate_fn
from verl.workers.rollout.replica import TokenOutput
from verl_queue import Queue

from gem.core import Env
from gem.rollout import ChatRenderer, Episode, Response, discounted_returns
from gem.tasks import Task
from gem.testing.advantages import of_groups, of_turns
from gem.testing.conformance import ComputedAdvantages, Difference, Harness, main
from gem.testing.gradients import ComputedGradient, Objective, WeighedSequence
from gem.testing.records import Record, every_turn_with_its_return
from gem.testing.scenarios import Scenario, ScriptedPolicy
from gem.testing.updates import AdamW, ComputedUpdates

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import train_verl

MAKE_ENV: list[Callable[[Task], Env]] = []
"""That of the scenario which is being run."""


def make_env(task: Task) -> Env:
    """Be the adapter's ``make_env``."""
    return MAKE_ENV[-1](task)


class Rollout:
    """verl's manager of agent loops, with one worker in this process, and its client of the inference servers.

    Args:
        config: verl's.
        answer: samples, given the ids of a prompt, a limit and the stop tokens, as :meth:`ScriptedPolicy.respond` does.
    """

    def __init__(self, config: Any, answer: Callable[[list[int], int, list[int]], Response]) -> None:
        self.config, self.answer = config, answer

    async def generate(self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any]) -> TokenOutput:
        """Answer as verl's vLLM server does, which says "completed" at a limit too."""
        limit, stop_ids = sampling_params["max_tokens"], sampling_params["stop_token_ids"]
        ids, logprobs, reason = self.answer(prompt_ids, limit, stop_ids)
        versions = {"min_global_steps": 0, "max_global_steps": 0}
        stop_reason = "aborted" if reason == "abort" else "completed"
        return TokenOutput(token_ids=ids, log_probs=logprobs, stop_reason=stop_reason, extra_fields=versions)

    def generate_sequences(self, batch: TensorDict) -> None:
        """Run the rows of a batch."""

        async def play() -> None:
            worker = AgentLoopWorkerTQ.__ray_metadata__.modified_class(self.config, self)
            await worker.generate_sequences(batch)
            await asyncio.gather(*worker.background_tasks)

        asyncio.run(play())


class Actor:
    """Takes what verl's actor is to learn from."""

    def __init__(self) -> None:
        self._dispatch_info = {"actor": list(range(world()))}

    def update_actor(self, batch: transfer_queue.KVBatchMeta) -> dict[str, dict[str, list[float]]]:
        """Keep the batch, without the rows that fill it up."""
        self.keys = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding")]
        return {"metrics": {"mfu": [0.0]}}


class LearningActor(Actor):
    """verl's workers for the actor and the reference policy, with what is asked of them handed on."""

    def __init__(self, config: Any, queue: Queue) -> None:
        super().__init__()
        self.actor = verl_update.Worker(config, queue, "actor")
        self.reference = verl_update.Worker(config, queue, "ref") if config.actor.use_kl_loss else None

    def compute_log_prob(self, batch: transfer_queue.KVBatchMeta) -> transfer_queue.KVBatchMeta:
        """Compute the log-probabilities of the sampled tokens by the policy."""
        self.actor("compute_log_prob", batch)
        return batch

    def compute_ref_log_prob(self, batch: transfer_queue.KVBatchMeta) -> transfer_queue.KVBatchMeta:
        """The same by the reference policy."""
        assert self.reference is not None
        self.reference("compute_ref_log_prob", batch)
        return batch

    def update_actor(self, batch: transfer_queue.KVBatchMeta) -> Any:
        """Update."""
        self.all_keys = list(batch.keys)
        super().update_actor(batch)
        return self.actor("update_actor", batch)


class Trainer(PPOTrainer):
    """verl's trainer, up to the actor.

    Args:
        config: verl's.
        answer: see :class:`Rollout`.
    """

    def __init__(self, config: Any, answer: Callable[[list[int], int, list[int]], Response]) -> None:
        self.queue = Queue()
        for name in vars(Queue):
            if not name.startswith("__"):
                setattr(transfer_queue, name, getattr(self.queue, name))
        super().__init__(config)
        self._init_tokenizer()
        self.reward_loop_manager = SimpleNamespace(reward_loop_worker_handles=[])  # no reward model
        self.agent_loop_manager, self.actor_rollout_wg = Rollout(config, answer), Actor()
        self.global_steps = 1

    def learn(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Make a step; return the rows that the actor learns from, and the metrics."""
        metrics: dict[str, Any] = {}
        self.prepare_step()
        self._step_once(metrics, {}, self.config.data.train_batch_size)
        return [self.queue.rows[key] for key in self.actor_rollout_wg.keys], metrics

    def on_sample_end(self) -> None:
        """There is no server to put to sleep."""

    def on_step_end(self) -> None:
        """There are no weights to hand on."""


ACTOR = "actor_rollout_ref.actor"
MODES = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean")
SPLIT = {f"{ACTOR}.ppo_micro_batch_size_per_gpu": 3}
MOVED = {f"{ACTOR}.ppo_epochs": 2, f"{ACTOR}.optim.lr": 0.001}
KL = {f"{ACTOR}.use_kl_loss": True, f"{ACTOR}.kl_loss_coef": 0.1}
LOSSES: dict[str, dict[str, Any]] = {
    **{f"loss_agg_mode={mode}": {f"{ACTOR}.loss_agg_mode": mode} for mode in MODES},
    **{f"loss_agg_mode={mode}, micro-batches": {f"{ACTOR}.loss_agg_mode": mode, **SPLIT} for mode in MODES},
    "loss_scale_factor=100, micro-batches": {
        f"{ACTOR}.loss_agg_mode": "seq-mean-token-sum-norm",
        f"{ACTOR}.loss_scale_factor": 100,
        **SPLIT,
    },
    "loss_agg_mode=token-mean, micro-batches, two processes": SPLIT,
    "loss_agg_mode=seq-mean-token-mean, micro-batches, two processes": {
        f"{ACTOR}.loss_agg_mode": "seq-mean-token-mean",
        **SPLIT,
    },
    "ReBN, micro-batches": SPLIT,
    "the policy has moved, micro-batches": {**MOVED, **SPLIT},
    "the policy has moved, KL k2": {**MOVED, **KL, f"{ACTOR}.kl_loss_type": "k2"},
    "the policy has moved, KL k3, micro-batches": {**MOVED, **KL, **SPLIT, f"{ACTOR}.kl_loss_type": "k3"},
}
"""For each loss the keys of verl's configuration."""

LR = 1e-2
EQUAL = {f"{ACTOR}.optim.betas": [0.9, 0.999], f"{ACTOR}.optim.weight_decay": 0, f"{ACTOR}.optim.clip_grad": 1.0}
OPTIMIZERS: dict[str, tuple[dict[str, Any], AdamW]] = {
    "the trainer's defaults": ({}, AdamW(LR, weight_decay=0.01)),
    "equal settings": (EQUAL, AdamW(LR)),
    "equal settings, two processes": ({**EQUAL, **SPLIT}, AdamW(LR)),
    "weight decay": ({f"{ACTOR}.optim.weight_decay": 0.1}, AdamW(LR, weight_decay=0.1)),
}
"""For each setting the keys of verl's configuration, and what they mean."""


class VerlHarness(Harness):
    """verl."""

    name = "verl"
    version = version("verl")
    differences = (
        Difference(
            "mode: turn; a turn is worth its return-to-go, on its last token",
            every_turn_with_its_return,
            only=frozenset({"a rewritten history"}),
        ),
        Difference(
            "after several batches without a valid episode the run ends",
            refuses=RuntimeError,
            match="batches in a row had no valid episode",
            only=frozenset({"an environment that always fails"}),
        ),
    )
    algorithms = ("reinforce", "grpo", "rebn")
    losses = tuple(LOSSES)
    optimizers = tuple(OPTIMIZERS)

    def run(self, scenario: Scenario, policy: ScriptedPolicy) -> list[Record]:
        """Return what the actor is handed."""
        records = []
        for row in self._step(scenario, policy, "gem_rebn")[1]:
            first = [0] * len(row["prompts"])
            mask, rewards, logprobs = (
                first + row[name].tolist() for name in ("response_mask", "rm_scores", "old_log_probs")
            )
            records.append(Record(row["input_ids"].tolist(), mask, rewards, logprobs))
        return records

    def compute_advantages(self, scenario: Scenario, policy: ScriptedPolicy, algorithm: str) -> ComputedAdvantages:
        """Return verl's advantages."""
        estimator = {"reinforce": "reinforce_plus_plus", "grpo": "grpo", "rebn": "gem_rebn"}[algorithm]
        advantages = [
            (row["input_ids"].tolist(), row["advantages"][row["response_mask"].bool()].tolist())
            for row in self._step(scenario, policy, estimator)[1]
        ]
        if algorithm == "rebn":
            return ComputedAdvantages(advantages, of_turns(), "over all turns of the batch, population deviation")
        if algorithm == "grpo":
            reference = of_groups(scenario.copies, True, 1e-6)
            return ComputedAdvantages(advantages, reference, "over the group's sample deviation + 1e-6")
        return ComputedAdvantages(
            advantages, of_tokens, "++: returns against those of all tokens, over their sample deviation"
        )

    @by_two
    def compute_gradient(self, scenario: Scenario, policy: ScriptedPolicy, loss: str) -> ComputedGradient:
        """Return the gradient of the last of verl's updates."""
        trainer, _ = self._step(scenario, policy, "gem_rebn" if "ReBN" in loss else "grpo", LOSSES[loss])
        learner, config = trainer.actor_rollout_wg, trainer.config.actor_rollout_ref.actor
        assert len(learner.actor.updates) == config.ppo_epochs
        gradient, model = learner.actor.updates[-1]
        rows = [trainer.queue.rows[key] for key in learner.all_keys]
        count = config.ppo_mini_batch_size * trainer.config.actor_rollout_ref.rollout.n
        assert len(rows) == count > sum(bool(row["response_mask"].any()) for row in rows)  # some only fill up
        in_all = sum(int(row["response_mask"].sum()) for row in rows)
        weights: dict[str, tuple[Callable[[int, int], float], str]] = {
            "token-mean": (lambda own, longest: 1 / in_all, "1 / tokens of the batch"),
            "token-sum": (lambda own, longest: 1.0, "1"),
            "seq-mean-token-sum": (lambda own, longest: 1 / count, "1 / (ppo_mini_batch_size x rollout.n)"),
            "seq-mean-token-sum-norm": (
                lambda own, longest: 1 / count / (config.loss_scale_factor or longest),
                "1 / (ppo_mini_batch_size x rollout.n x loss_scale_factor, or else the longest response beside it)",
            ),
            "seq-mean-token-mean": (
                lambda own, longest: 1 / (own * count),
                "1 / (tokens of the row x ppo_mini_batch_size x rollout.n)",
            ),
        }
        weight, why = weights[config.loss_agg_mode]
        sequences = []
        own_rows, size = learner.actor.own(rows), config.ppo_micro_batch_size_per_gpu
        for start in range(0, len(own_rows), size):
            part = own_rows[start : start + size]
            longest = max(len(row["response_mask"]) for row in part)
            for row in part:
                mask = row["response_mask"].tolist()
                advantages = row["advantages"][row["response_mask"].bool()].tolist()
                if own := sum(mask):
                    sampled = [0] * len(row["prompts"]) + mask
                    sequences.append(
                        WeighedSequence(row["input_ids"].tolist(), sampled, [weight(own, longest)] * own, advantages)
                    )
        if config.ppo_epochs == 1:
            return ComputedGradient(gradient, model, sequences, why)
        objective = Objective(learner.actor.updates[0][1], (config.clip_ratio_low, config.clip_ratio_high), 3.0)
        if learner.reference is not None:
            kl = {"reference": learner.reference.model(), "beta": config.kl_loss_coef, "kl": config.kl_loss_type}
            objective = replace(objective, **kl)
        return ComputedGradient(gradient, model, sequences, why, objective)

    @by_two
    def compute_updates(self, scenario: Scenario, policy: ScriptedPolicy, optimizer: str) -> ComputedUpdates:
        """Return three updates of verl's from a batch."""
        options, declared = OPTIMIZERS[optimizer]
        several = {f"{ACTOR}.ppo_epochs": 3, f"{ACTOR}.optim.lr": LR}
        trainer, _ = self._step(scenario, policy, "grpo", {**several, **options})
        return ComputedUpdates(trainer.actor_rollout_wg.actor.updates, declared)

    def _step(
        self, scenario: Scenario, policy: ScriptedPolicy, estimator: str, options: dict[str, Any] | None = None
    ) -> tuple[Trainer, list[dict[str, Any]]]:
        """Make a training step; with options, one in which verl's own actor learns."""
        tokenizer = self.tokenizer(scenario)
        MAKE_ENV.append(scenario.make_env(tokenizer))
        with tempfile.TemporaryDirectory() as folder:
            config = _config(scenario, tokenizer, str(self.model(scenario)), estimator, Path(folder), options or {})
            trainer = Trainer(config, policy.respond)
            if options is not None:
                trainer.actor_rollout_wg = LearningActor(config.actor_rollout_ref, trainer.queue)
                trainer.ref_policy_wg, trainer.ref_in_actor = trainer.actor_rollout_wg, False
            rows = create_rl_dataset(config.data.train_files, config.data, trainer.tokenizer, None)
            trainer.train_dataloader, trainer.train_dataloader_it = [collate_fn(list(rows))], None
            return trainer, trainer.learn()[0]


def _config(
    scenario: Scenario, tokenizer: Any, model: str, estimator: str, folder: Path, options: dict[str, Any]
) -> Any:
    """Return verl's configuration as the example has it, with the limits of a scenario."""
    args = train_verl.Args(env=scenario.tasks[0].env_id, batch_size=len(scenario.rows), group_size=scenario.copies)
    args.fill_in()
    renderer, make_env = ChatRenderer(tokenizer), scenario.make_env(tokenizer)
    prompts = [_first_prompt(make_env(task), task.reset_seed, renderer) for task in scenario.tasks]
    first = max(length for length in prompts if length < scenario.max_context)
    keys = [
        *train_verl.gem_keys(args, folder),
        *train_verl.algorithm_keys(args, model),
        *train_verl.job_keys(args, model, folder),
        *train_verl.cpu_job.keys(str(folder)),
        f"data.train_files={folder / 'tasks.jsonl'}",
        f"data.max_prompt_length={first}",
        f"+data.tool_role={scenario.tool_role}",
        f"data.max_response_length={scenario.max_context - first}",
        f"algorithm.adv_estimator={estimator}",
        f"{ACTOR}.ppo_mini_batch_size={len(scenario.tasks) + 1}",  # verl adds rows that fill it up
        f"{ACTOR}.ppo_micro_batch_size_per_gpu={(len(scenario.tasks) + 1) * scenario.copies}",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=1",
        "critic.enable=False",
        f"algorithm.rollout_correction.bypass_mode={not options}",
        *(f"{name}={value}" for name, value in options.items()),
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


def _first_prompt(env: Env, seed: int, renderer: ChatRenderer) -> int:
    with env:
        try:
            observation = env.reset(seed)[0]
        except OSError:  # the scenario's failure
            return 0
        return len(renderer.encode(observation) if env.observation_form == "prompt" else renderer.first(observation))


def of_tokens(episodes: list[Episode]) -> list[np.ndarray]:
    """Return verl's ``reinforce_plus_plus`` as a reference: returns-to-go, a turn counted as often as it has tokens."""
    returns = [discounted_returns(episode.rewards) for episode in episodes]
    lengths = [[len(turn.response_ids) for turn in episode.turns] for episode in episodes]
    rows = zip(returns, lengths, episodes, strict=True)
    tokens = np.concatenate([np.repeat(own, counts) for own, counts, episode in rows if episode.valid])
    return [(own - tokens.mean()) / np.sqrt(tokens.var(ddof=1) + 1e-8) for own in returns]


if __name__ == "__main__":
    main(VerlHarness())
