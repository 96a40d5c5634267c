"""Wrappers by name: ``get_wrapper_fns("concat_chat,episode_tracking", tokenizer)``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from gem.core import Env
from gem.wrappers.episode_tracking_wrapper import EpisodeTrackingWrapper
from gem.wrappers.observation_wrapper import ObservationWrapper

WRAPPER_FACTORY: dict[str, Callable[..., Env]] = {
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
"""A function of an environment by name. One history at most; ``episode_tracking`` goes last."""

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
