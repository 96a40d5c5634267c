"""A task for OpenRLHF's stock ``MultiTurnAgentExecutor``, which hands over text."""

from __future__ import annotations

import asyncio
import json
import weakref
from functools import lru_cache
from typing import Any

from openrlhf.utils.agent import AgentInstanceBase

from gem.core import observation_text
from gem.rollout import ChatRenderer
from gem_openrlhf_trainer import Label


class AgentInstance(AgentInstanceBase):
    """A task for OpenRLHF's stock ``MultiTurnAgentExecutor``, for those who build on it.

    .. code-block:: python

        class Instance(gem_openrlhf_text.AgentInstance):
            model = "Qwen/Qwen3-0.6B"  # whose tokenizer and chat template the conversation is made with


        class AgentExecutor(MultiTurnAgentExecutor):
            def __init__(self):
                super().__init__(Instance)

    That executor takes text and encodes it, control tokens included, so an environment that writes them forges a turn;
    it closes no answer that its limit cut, discounts nothing, sets no deadline to a step, and does not survive one that
    raises. :class:`gem_openrlhf.GemAgentExecutor` has none of these limits.

    Attributes:
        model: a name or folder that ``AutoTokenizer.from_pretrained`` takes; a subclass sets it.
        tool_role: whether a tool's observation is a message of the tool role; see :class:`gem.rollout.ChatRenderer`.
        template_kwargs: arguments of the chat template.
    """

    model: str = ""
    tool_role: bool = False
    template_kwargs: dict[str, Any] | None = None

    def __init__(self, *_: Any, **__: Any) -> None:
        if not self.model:
            raise TypeError("a subclass of AgentInstance sets `model`, the name or folder of the tokenizer's model")
        self.renderer = _renderer_of(self.model, self.tool_role, json.dumps(self.template_kwargs))
        self.total_reward, self.turns = 0.0, 0
        self.prompt_ids: list[int] = []
        """The end of the prompt of the next answer."""

    async def reset(self, states: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Begin the task in ``states["label"]``; return the first prompt's text."""
        task = Label(states["label"]).task
        self.env = await asyncio.to_thread(task.make)
        # That executor may end an episode without a word: then the environment is closed with this object.
        self._close = weakref.finalize(self, self.env.close)
        observation, info = await asyncio.to_thread(self.env.reset, task.reset_seed)
        self.first_observation = observation_text(self.env, observation, info)
        self.prompt_ids = self.renderer.first(self.first_observation)
        return {"observation": self._text(self.prompt_ids)}

    async def step(self, state_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Take ``state_dict["action_text"]``; return the reward, the next message, and whether the episode is over."""
        import torch

        answer = self.renderer.parse(self.renderer.encode(state_dict["action_text"]), self.prompt_ids)
        observation, reward, terminated, truncated, info = await asyncio.to_thread(self.env.step, answer.action)
        self.total_reward, self.turns = self.total_reward + reward, self.turns + 1
        done = terminated or truncated
        if done:
            await asyncio.to_thread(self._close)
        success = float(bool(info.get("success", terminated and self.total_reward >= 1)))
        role = self.renderer.role_of(info)
        self.prompt_ids = self.renderer.bridge(
            self.renderer.end_of_turn(role),
            observation_text(self.env, observation, info),
            role,
            first=self.first_observation,
        )
        return {
            "rewards": torch.tensor(float(reward)),
            "scores": torch.tensor(success),
            "environment_feedback": "" if done else self._text(self.prompt_ids),
            "done": done,
            "extra_logs": {"gem/success": torch.tensor(success), "gem/turns": torch.tensor(float(self.turns))},
        }

    def _text(self, ids: list[int]) -> str:
        return self.renderer.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@lru_cache(maxsize=4)
def _renderer_of(model: str, tool_role: bool, template_kwargs: str) -> ChatRenderer:
    from transformers import AutoTokenizer

    return ChatRenderer(AutoTokenizer.from_pretrained(model), None, tool_role, json.loads(template_kwargs))
