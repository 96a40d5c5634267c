"""The updates of a DeepSpeed engine, as they are made."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from gem.testing.gradients import gradient_of


class Updates(list[tuple[dict[str, torch.Tensor], Any]]):
    """For each update the gradient, before it is clipped, and the policy as it was.

    Args:
        engine: DeepSpeed's, without ZeRO.
        path: of the policy.
    """

    def __init__(self, engine: Any, path: str) -> None:
        super().__init__()
        step = engine.step

        def recorded() -> None:
            if engine.is_gradient_accumulation_boundary():
                before = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
                before.load_state_dict(engine.module.state_dict())
                self.append((gradient_of(engine.module), before))
            step()

        engine.step = recorded
