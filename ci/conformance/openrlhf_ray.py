"""Ray for OpenRLHF's trainer, in this process: calls of methods. To be imported before the trainer is made."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

from openrlhf.trainer import ppo_trainer
from openrlhf.trainer.ppo_utils import experience_maker, samples_generator
from openrlhf.trainer.ray import launcher


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


class OtherRank:
    """Is the other rank's actor: it has the same weights, and what it learns from is not here."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def execute_batch(self, method: str, *args: Any) -> Any:
        return self.actor.execute_batch(method, *args) if method == "forward" else []

    def fit(self, **_: Any) -> dict[str, float]:
        return {}
