"""Run the conformance suite on the OpenRLHF adapter, in a training step of OpenRLHF's own trainer.

OpenRLHF's are the command's arguments, the data set, the sampling (``SamplesGenerator`` and the rollout actor), and the
trainer's step: experience, advantages, replay buffer and the actor's loop over its batches. Without Ray and a model
there are CPU shims: calls in this process for Ray, a policy for vLLM, zeros for the model's log-probabilities, and a
training step that only keeps the batch it is handed. Without a GPU those of ``ci/cpu/openrlhf`` are needed as well.
An episode that is left out is a row of one token with an advantage of 0 (:mod:`gem_openrlhf_trainer`).
"""

from __future__ import annotations

import asyncio
import logging
import runpy
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.utils.data import DataLoader

if not torch.cuda.is_available():
    cpu_shims = Path(__file__).resolve().parents[1] / "cpu" / "openrlhf" / "sitecustomize.py"
    runpy.run_path(str(cpu_shims))  # installs them

from openrlhf.datasets import PromptDataset
from openrlhf.trainer import ppo_trainer
from openrlhf.trainer.ppo_utils import NaiveReplayBuffer, experience_maker, samples_generator
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ray import launcher, ppo_actor, vllm_engine

import gem_openrlhf
from gem.rollout import Episode
from gem.rollout.rows import openrlhf_row
from gem.testing.advantages import of_groups
from gem.testing.conformance import ComputedAdvantages, Difference, Harness, main
from gem.testing.records import Record, one_scalar
from gem.testing.scenarios import Scenario, ScriptedPolicy

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import train_openrlhf

logging.disable(logging.INFO)  # OpenRLHF prints one sample per step


async def _all(calls: list[Coroutine[Any, Any, Any]]) -> list[Any]:
    return await asyncio.gather(*calls)


RAY = SimpleNamespace(  # a reference is the value itself, or a coroutine if an asynchronous method was called
    put=lambda value: value, get=lambda value: value, wait=lambda calls, **_: (asyncio.run(_all(calls)), [])
)
for module in (samples_generator, experience_maker, ppo_trainer, launcher):
    module.ray = RAY


class Remote:
    """Is Ray's handle of an actor, whose methods are called in this process, with copies of what they are given."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def __getattr__(self, name: str) -> SimpleNamespace:
        method = getattr(self.actor, name)
        return SimpleNamespace(remote=lambda *args, **kwargs: method(*deepcopy(args), **deepcopy(kwargs)))


class ScriptedVLLM:
    """Answers as vLLM's asynchronous engine does."""

    output_processor = SimpleNamespace(get_num_unfinished_requests=lambda: 0)

    def __init__(self, policy: ScriptedPolicy) -> None:
        self.policy = policy

    async def generate(self, prompt: dict[str, list[int]], params: Any, request_id: str) -> AsyncIterator[Any]:
        said = self.policy.respond(prompt["prompt_token_ids"], params.max_tokens, params.stop_token_ids)
        pairs = zip(said.token_ids, said.logprobs or [], strict=True)
        logprobs = [{token: SimpleNamespace(logprob=logprob)} for token, logprob in pairs]
        yield SimpleNamespace(
            outputs=[SimpleNamespace(token_ids=said.token_ids, logprobs=logprobs, finish_reason=said.finish_reason)]
        )


class Model(torch.nn.Module):
    """Is a model that finds everything certain."""

    def forward(self, sequences: torch.Tensor, action_mask: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return torch.zeros(action_mask.shape)


class ActorTrainer(ppo_actor.ActorPPOTrainer):
    """OpenRLHF's trainer of the actor, whose step keeps the batch."""

    def __init__(self, strategy: Any) -> None:  # the rest of it is about the model and vLLM
        self.strategy, self.args, self.dataloader_pin_memory = strategy, strategy.args, False
        self.max_epochs = self.args.train.max_epochs
        self.replay_buffer = NaiveReplayBuffer(self.args.train.micro_batch_size)
        self.batches: list[Experience] = []

    def training_step(self, experience: Experience, *_: Any) -> dict[str, Any]:
        self.batches.append(experience)
        return {"metrics": {"policy_loss": 0.0}, "weights": {"policy_loss": "token"}, "num_action_tokens": 1} | {
            "num_samples": len(experience.sequences)
        }


class OpenRLHFHarness(Harness):
    """OpenRLHF."""

    name = "OpenRLHF"
    version = version("openrlhf")
    differences = (
        Difference(
            "the adapter refuses it: an episode is one sequence",
            refuses=ValueError,
            match="leave out the wrapper that rewrites the history",
            only=frozenset({"a rewritten history"}),
        ),
        Difference("one scalar per episode, on its last sampled token", one_scalar),
    )
    algorithms = ("reinforce", "grpo", "rloo", "reinforce_baseline", "dr_grpo", "flash_reinforce")

    def run(self, scenario: Scenario, policy: ScriptedPolicy) -> list[Record]:
        """Return what the actor learns from; a reward is by how much the returns fall behind it."""
        return [
            Record(ids, [0, *mask], [0.0, *(-np.diff([*returns, 0.0])).tolist()], [0.0, *logprobs])
            for ids, mask, logprobs, returns, _ in self._step(scenario, policy, "reinforce")
        ]

    def compute_advantages(self, scenario: Scenario, policy: ScriptedPolicy, algorithm: str) -> ComputedAdvantages:
        """Return the advantages of what was sampled."""
        advantages = [
            (ids, [value for value, sampled in zip(values, mask, strict=True) if sampled])
            for ids, mask, _, _, values in self._step(scenario, policy, algorithm)
            if any(mask)
        ]
        return ComputedAdvantages(advantages, *REFERENCES[algorithm](scenario.copies))

    def _step(self, scenario: Scenario, policy: ScriptedPolicy, algorithm: str) -> list[tuple[list[Any], ...]]:
        """Take a training step; return ids, mask, log-probabilities, returns and advantages of what is learned from."""
        args = _arguments(scenario, algorithm, str(self.model(scenario)))
        tokenizer = self.tokenizer(scenario)
        found = []
        for batch in _learned_batches(scenario, policy, args, tokenizer):
            for i, length in enumerate(batch.attention_mask.sum(1).tolist()):
                others = (batch.action_mask, batch.rollout_log_probs, batch.returns, batch.advantages)  # of ids[1:]
                row = [values[i, : length - 1].tolist() for values in others]
                if batch.labels[i].masked and not any(row[-1]):
                    row[0] = [0] * len(row[0])
                found.append((batch.sequences[i, :length].tolist(), *row))
        return found


Reference = Callable[[list[Episode]], Sequence[Sequence[float]]]


def whitened(baseline: Reference | None = None) -> Reference:
    """Return OpenRLHF's normalisation over all tokens: an episode counts as often as it has sampled tokens.

    Args:
        baseline: the advantages that are normalised, an entry per turn; by default the episodes' returns.
    """

    def expected(episodes: list[Episode]) -> list[list[float]]:
        rows = [[e.total_reward] * len(e.turns) for e in episodes] if baseline is None else baseline(episodes)
        values = [row[0] if e.valid else 0.0 for row, e in zip(rows, episodes, strict=True)]
        tokens = np.repeat(values, [e.sampled_tokens if e.valid else 0 for e in episodes])
        deviation = np.sqrt(max(tokens.var(), 1e-8))
        return [
            [float((value - tokens.mean()) / deviation)] * len(e.turns)
            for value, e in zip(values, episodes, strict=True)
        ]

    return expected


def of_others(size: int) -> Reference:
    """Return the return less the mean of the others in the group."""

    def expected(episodes: list[Episode]) -> list[list[float]]:
        found = []
        for i, episode in enumerate(episodes):
            group = episodes[i // size * size :][:size]
            others = [e.total_reward for e in group if e.valid and e is not episode]
            found.append([episode.total_reward - float(np.mean(others))] * len(episode.turns))
        return found

    return expected


REFERENCES: dict[str, Callable[[int], tuple[Reference, str]]] = {
    "reinforce": lambda _: (whitened(), "against those of all tokens, over their population deviation"),
    "grpo": lambda size: (of_groups(size, True, 1e-9), "over the group's sample deviation + 1e-9"),
    "rloo": lambda size: (of_others(size), "against the mean of the group's others"),
    "reinforce_baseline": lambda size: (
        whitened(of_groups(size, False, 0.0)),
        "against the group's mean, over the population deviation of all tokens",
    ),
    "dr_grpo": lambda size: (of_groups(size, False, 0.0), "against the group's mean"),
    "flash_reinforce": lambda _: (lambda es: of_groups(len(es), False, 0.0)(es), "against the batch's mean"),
}
"""For each algorithm: from the size of the groups to the advantages, and what they are."""


def _learned_batches(scenario: Scenario, policy: ScriptedPolicy, args: Any, tokenizer: Any) -> list[Experience]:
    """Take a training step; return the micro-batches that the actor learns from."""
    strategy = SimpleNamespace(
        args=args,
        is_rank_0=lambda: False,
        all_reduce=lambda value: value,
        ring_attn_group=None,
        accumulated_gradient=1,
    )
    rollout = _without_init(
        vllm_engine.RolloutRayActor,
        executor=gem_openrlhf.GemAgentExecutor(tool_role=scenario.tool_role, make_env=scenario.make_env(tokenizer)),
        llm=ScriptedVLLM(policy),
        _mm_pad_token_ids=set(),
    )
    policy = _without_init(ppo_actor.PolicyModelActor, strategy=strategy, actor=Model(), trainer=ActorTrainer(strategy))
    group = launcher.RayActorGroup.__new__(launcher.RayActorGroup)
    group.duplicate_actors, group._actor_handlers = 1, [Remote(policy)]

    rows = PromptDataset(
        [openrlhf_row(task, max_turns=scenario.max_turns) for task in scenario.tasks], tokenizer, strategy
    )
    loader = DataLoader(rows, collate_fn=rows.collate_fn)
    generator = samples_generator.SamplesGenerator(strategy, loader, None, tokenizer, [Remote(rollout)])
    samples, *_ = generator.generate_samples(max_len=args.data.max_len, max_new_tokens=args.rollout.max_new_tokens)
    ppo_trainer.BasePPOTrainer(strategy, group, None, None, None, None, tokenizer).train_step(samples, 1)
    return policy.trainer.batches


def _without_init(actor_class: Any, /, **attributes: Any) -> Any:
    """Return one of a Ray actor's class, as it is below Ray, with these attributes."""
    cls = actor_class.__ray_metadata__.modified_class
    made = cls.__new__(cls)
    vars(made).update(attributes)
    return made


class _ParsedError(Exception):
    """Has the arguments."""


def _arguments(scenario: Scenario, algorithm: str, model: str) -> Any:
    """Return what OpenRLHF's command makes of the example's flags, with the limits of a scenario.

    Its parser is in its main block, so that is run up to where the arguments are used.
    """
    size = len(scenario.rows)
    args = train_openrlhf.Args(
        steps=1,
        batch_size=size,
        group_size=scenario.copies,
        max_new_tokens=scenario.max_new_tokens,
        validation=0,
    )
    args.fill_in()

    def stop(parsed: Any) -> None:
        raise _ParsedError(parsed)

    with tempfile.TemporaryDirectory() as folder:
        flags = [
            *train_openrlhf.gem_flags(args, Path(folder)),
            *train_openrlhf.algorithm_flags(args, model),
            *train_openrlhf.job_flags(args, model, Path(folder)),
            *("--algo.advantage.estimator", {"grpo": "group_norm"}.get(algorithm, algorithm)),
            *("--data.max_len", str(scenario.max_context)),
            *("--rollout.micro_batch_size", "2"),  # several, so that there is something to put together
            *("--reward.clip_range", "-1000000", "1000000"),  # by default -10 to 10
        ]
        with (
            patch.object(sys, "argv", ["train_ppo_ray", *flags]),
            patch("ray.is_initialized", return_value=True),
            patch("openrlhf.utils.get_strategy", stop),
        ):
            try:
                runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__")
            except _ParsedError as parsed:
                return parsed.args[0]
    raise AssertionError("openrlhf.cli.train_ppo_ray has not asked for a strategy")


if __name__ == "__main__":
    main(OpenRLHFHarness())
