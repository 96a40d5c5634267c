"""Wrappers by name: ``get_wrapper_fns("concat_chat,episode_tracking", tokenizer)``.

A bonus for each use of a tool is paid whether or not the use helped: five programs that do nothing would earn 1.5,
where solving the task earns 1. So tools pay nothing by their published names; ``python_tool_int_reward`` and
``search_tool_int_reward`` pay the published intermediate rewards.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from gem.core import Env
from gem.tools.base_tool import BaseTool
from gem.tools.python_code_tool import PythonCodeTool
from gem.tools.search_tool import SearchTool
from gem.tools.tool_env_wrapper import ToolEnvWrapper
from gem.wrappers.episode_tracking_wrapper import EpisodeTrackingWrapper
from gem.wrappers.observation_wrapper import ObservationWrapper


def _with(tool: BaseTool, reward: float = 0.0, success_reward: float = 0.0) -> Callable[..., Env]:
    return partial(
        ToolEnvWrapper, tools=[tool], tool_reward=reward, tool_success_reward=success_reward, max_tool_uses=5
    )


WRAPPER_FACTORY: dict[str, Callable[..., Env]] = {
    "python_tool": _with(PythonCodeTool(timeout=5)),
    "python_tool_int_reward": _with(PythonCodeTool(timeout=5), 0.05, 0.25),
    "python_tool_no_int_reward": _with(PythonCodeTool(timeout=5)),
    "python_tool_no_int_reward_last_line_error": _with(PythonCodeTool(timeout=5, keep_error_last_line=True)),
    "search_tool": _with(SearchTool(topk=3, timeout=5)),
    "search_tool_int_reward": _with(SearchTool(topk=3, timeout=5), 0.3),
    "search_tool_no_int_reward": _with(SearchTool(topk=3, timeout=5)),
    "concat": partial(ObservationWrapper, include_action=False, include_chat_template=False),
    "concat_with_action": partial(ObservationWrapper, include_action=True, include_chat_template=False),
    "concat_chat": partial(ObservationWrapper, include_action=True, include_chat_template=True),
    "concat_chat_on_reset": partial(
        ObservationWrapper,
        include_action=True,
        include_chat_template=False,
        apply_chat_template_on_reset=True,
    ),
    "episode_tracking": EpisodeTrackingWrapper,
}
"""A function of an environment by name. Tools come first, then one history at most; ``episode_tracking`` goes last."""

TOKENIZER_REQUIRED = ("concat_chat", "concat_chat_on_reset")


def get_wrapper_fns(wrappers: str | None, tokenizer: Any = None) -> list[Callable[[Env], Env]]:
    """Return the wrappers that a comma-separated text names, innermost first.

    Args:
        wrappers: for example ``"concat,episode_tracking"``; empty or None for none.
        tokenizer: goes to the wrappers that need one.

    Raises:
        ValueError: there is no wrapper of that name, or it needs a tokenizer.
    """
    functions: list[Callable[[Env], Env]] = []
    for name in filter(None, (part.strip() for part in (wrappers or "").split(","))):
        if name not in WRAPPER_FACTORY:
            raise ValueError(f"there is no wrapper {name!r}; there are {', '.join(WRAPPER_FACTORY)}")
        wrapper = WRAPPER_FACTORY[name]
        if name in TOKENIZER_REQUIRED:
            if tokenizer is None:
                raise ValueError(f"wrapper {name!r} needs a tokenizer: get_wrapper_fns(..., tokenizer=...)")
            wrapper = partial(wrapper, tokenizer=tokenizer)
        functions.append(wrapper)
    return functions
