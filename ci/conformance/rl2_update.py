"""RL2's own actor: its worker, loss, FSDP and optimiser, in float32, over gloo."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock, patch

import torch
from RL2.utils import data_parallelism
from RL2.workers.actor import Actor as RL2Actor
from torch.distributed import fsdp
from transformers import AutoModelForCausalLM
from two_processes import join_alone


def actor(config: Any, model: str, options: dict[str, Any]) -> Actor:
    """Return RL2's actor for a model in a folder, with keys of its configuration."""
    always = {
        "model_name": model,
        "max_length_per_device": 10**6,
        "use_liger_kernel": False,
        "gradient_checkpointing": False,
        "offload_model": True,  # so that every rank loads the weights
        "offload_optimizer": False,
        "tis_coef": 0.0,  # else the loss is also weighed by the ratio of the probabilities
    }
    config.merge_with({**always, **options})
    return Actor(config)


class Actor(RL2Actor):
    """RL2's actor, of which every update is kept.

    Args:
        config: RL2's, of the actor.

    Attributes:
        updates: for each the gradient before it is clipped, and the policy as it was.
        minibatches: for each update how many of them this rank had.
    """

    def __init__(self, config: Any) -> None:
        join_alone()
        float32 = {f"{name}_dtype": torch.float32 for name in ("param", "reduce", "buffer")}
        with patch.object(data_parallelism, "MixedPrecision", lambda **_: fsdp.MixedPrecision(**float32)):
            super().__init__(config, True)
        self.scheduler = Mock()  # the learning rate stays
        self.updates: list[tuple[dict[str, torch.Tensor], Any]] = []
        self.minibatches: list[int] = []
        self._since = 0

    def backward(self, loss: torch.Tensor) -> None:
        self._since += 1
        super().backward(loss)

    def optimizer_step(self) -> float:
        before = AutoModelForCausalLM.from_pretrained(self.config.model_name, dtype=torch.float32)
        before.load_state_dict({**before.state_dict(), **self.whole()})
        shards = [(each, each.data.clone()) for each in self.model.parameters()]
        for each, _ in shards:
            each.data.copy_(each.grad)  # FSDP puts together parameters only
        self.updates.append((self.whole(), before))
        for each, values in shards:
            each.data.copy_(values)
        self.minibatches.append(self._since)
        self._since = 0
        return super().optimizer_step()

    def whole(self) -> dict[str, torch.Tensor]:
        """Return the parameters of all ranks, by the names that they had before FSDP."""
        with fsdp.FullyShardedDataParallel.summon_full_params(self.model):
            named = self.model.named_parameters()
            return {name.replace("_fsdp_wrapped_module.", ""): each.data.clone() for name, each in named}
