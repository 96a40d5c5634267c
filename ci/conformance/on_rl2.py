"""Hold the RL2 adapter to the conformance kit, in rl-square's own rollout.

RL2's are ``Rollout.rollout`` and ``__call__``, packing and advantages; without a GPU the stand-ins of ``ci/cpu/rl2``
are needed to import them. A script stands in for the requests to sglang.
"""

from __future__ import annotations

import asyncio
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

if not torch.cuda.is_available():
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cpu" / "rl2"))
    import rl2_cpu  # noqa: F401 - puts the stand-ins in their places

import wandb
from omegaconf import OmegaConf
from RL2.trainer import ppo
from RL2.workers import rollout

import gem_rl2
from gem.testing.conformance import Harness, Lowered, Record, main, of_groups, of_turns
from gem.testing.scenarios import Scenario, Script

PLAYING: list[tuple[Script, Any]] = []
"""The script of the scenario which is being played, and the tokenizer."""


async def scripted(url: str, states: list[int], sampling_params: dict[str, Any]) -> dict[str, Any]:
    """Answer as sglang does."""
    script, tokenizer = PLAYING[-1]
    answer = script.say(states, sampling_params["max_new_tokens"])
    return {
        "text": tokenizer.decode(answer.token_ids, skip_special_tokens=True),
        "meta_info": {
            "output_token_logprobs": [
                [p, token, None] for p, token in zip(answer.logprobs or [], answer.token_ids, strict=True)
            ],
            "completion_tokens": len(answer.token_ids),
            "finish_reason": {"type": answer.finish_reason},
        },
    }


rollout.async_generate = scripted
rollout.make_request = lambda *_: None  # there is no server whose memory could be freed
wandb.log = lambda *args, **kwargs: None


class RL2Harness(Harness):
    """RL2, rl-square 0.0.2."""

    name = "RL2"
    version = version("rl-square")
    algorithms = ("reinforce", "grpo", "rebn")

    def play(self, scenario: Scenario, script: Script) -> list[Record]:
        """Return the sequences that RL2 has packed."""
        tensor_dict, _ = self._batch(scenario, script)
        return [
            Record(ids, [0, *mask], [0.0, *rewards], [0.0, *logprobs])
            for ids, mask, rewards, logprobs in _rows(tensor_dict, "rewards", "llm_logps")
        ]

    def lower(self, scenario: Scenario, script: Script, algorithm: str) -> Lowered:
        """Return RL2's advantages."""
        tensor_dict, cu_seqs = self._batch(scenario, script)
        config = {"estimator": "rebn" if algorithm == "rebn" else "reinforce", "gamma": 1.0, "lamda": 1.0}
        config |= {"responses_per_prompt": scenario.copies, "global_norm": False, "norm_var": algorithm == "grpo"}
        ppo.compute_advantages(OmegaConf.create(config), tensor_dict, cu_seqs, 1)
        advantages = [
            (ids, [value for value, one in zip(values, mask, strict=True) if one])
            for ids, mask, values in _rows(tensor_dict, "advantages")
        ]
        if algorithm == "rebn":
            return Lowered(advantages, of_turns(), "over all turns of the batch, population deviation")
        eps = torch.finfo(torch.float32).eps
        if algorithm == "grpo":
            return Lowered(advantages, of_groups(scenario.copies, True, eps), "over the group's sample deviation")
        return Lowered(advantages, of_groups(scenario.copies, False, eps), "the group's mean taken off")

    def _batch(self, scenario: Scenario, script: Script) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        tokenizer = self.tokenizer()
        PLAYING.append((script, tokenizer))
        sampling = {"temperature": 1.0, "max_new_tokens": scenario.max_new_tokens}
        worker = object.__new__(rollout.Rollout)  # the rest of it makes processes
        worker.config = OmegaConf.create(
            {
                "max_turns": scenario.max_turns or 10_000,
                "responses_per_prompt": scenario.copies,
                "dynamic_filtering": False,
                "server_args": {},
                "gem": {"max_context": scenario.max_context, "tool_role": scenario.tool_role},
            }
        )
        worker.tokenizer, worker.router_url, worker.worker_url = tokenizer, "", ""
        worker.train_sampling_params = sampling
        worker.device_mesh = {"tp": SimpleNamespace(get_local_rank=lambda: 0)}
        worker.env = gem_rl2.GemEnv(scenario.make_env(tokenizer))
        asyncio.set_event_loop(loop := asyncio.new_event_loop())
        try:
            return worker([gem_rl2.row(task) for task in scenario.rows], True, 1)
        finally:
            loop.close()


def _rows(tensor_dict: dict[str, torch.Tensor], *names: str) -> list[tuple[Any, ...]]:
    """Return ids, mask and more of every sequence; RL2 has all but the ids shifted by one."""
    rows = []
    for i, eos_mask in enumerate(tensor_dict["eos_mask"]):
        length = int(eos_mask.argmax()) + 1
        ids = [*tensor_dict["states"][i, :length].tolist(), int(tensor_dict["actions"][i, length - 1])]
        rows.append((ids, *(tensor_dict[name][i, :length].tolist() for name in ("action_mask", *names))))
    return rows


if __name__ == "__main__":
    torch.distributed.init_process_group("nccl", store=torch.distributed.HashStore(), rank=0, world_size=1)
    main(RL2Harness())
