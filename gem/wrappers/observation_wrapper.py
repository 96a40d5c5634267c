"""ObservationWrapper: the history of the episode as one observation.

For agents that are given one text per turn. Agents that work on token ids need no such wrapper:
:mod:`gem.rollout` keeps the ids of the history as they were sampled.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from gem.core import Env, EnvWrapper, Info, StepResult, observation_text
from gem.utils.control_tokens import beginnings, broken_up, control_tokens

WrapperObsType = str


class Past(NamedTuple):
    """A turn that is over: what was observed (and in which role), and what was done."""

    observation: str
    role: str
    action: str


class ObservationWrapper(EnvWrapper):
    """Puts past observations, and actions, before the current observation.

    The first observation holds the task, so a history limit never drops it. The environment's present state (a board),
    with which its observations end, is shown once, at the end: the history does not repeat it.

    Args:
        env: the environment to wrap.
        include_action: whether past actions are shown.
        include_chat_template: render the history as a conversation with the tokenizer's chat template.
        apply_chat_template_on_reset: render only the first observation so, generation prompt included.
        max_history_length: how many past turns are shown; None shows all.
        tokenizer: whatever has ``apply_chat_template``; for the two options above.
        allow_control_tokens: whether the text of a control token in an observation becomes that token in a rendered
            history. By default an invisible character breaks it up, so that nothing can forge a turn.

    Raises:
        ValueError: the options contradict each other, or the tokenizer is missing.
    """

    state_attributes = ("first", "past", "current", "board")

    def __init__(
        self,
        env: Env,
        include_action: bool = True,
        include_chat_template: bool = True,
        apply_chat_template_on_reset: bool = False,
        max_history_length: int | None = None,
        tokenizer: Any = None,
        allow_control_tokens: bool = False,
    ) -> None:
        super().__init__(env)
        if include_chat_template and apply_chat_template_on_reset:
            raise ValueError("include_chat_template and apply_chat_template_on_reset exclude each other")
        if (include_chat_template or apply_chat_template_on_reset) and tokenizer is None:
            raise ValueError("a chat template needs a tokenizer: pass tokenizer=...")
        if include_chat_template and not include_action:
            raise ValueError("a conversation needs the actions: include_chat_template takes include_action=True")
        if max_history_length is not None and max_history_length < 0:
            raise ValueError(f"max_history_length must be at least 0, got {max_history_length}")
        self._include_action = include_action
        self._include_chat_template = include_chat_template
        self._on_reset = apply_chat_template_on_reset
        self._limit = max_history_length
        self.observation_form = "prompt" if include_chat_template or apply_chat_template_on_reset else "history"
        self.tokenizer = tokenizer
        guarded = {} if tokenizer is None or allow_control_tokens else _control_tokens(tokenizer)
        self._control = beginnings(guarded.values())
        self.first = ""
        self.past: list[tuple[str, str, str]] = []
        self.current: tuple[str, str] = ("", "user")
        self.board = ""  # the environment's present state, which follows what is current

    include_action = property(lambda wrapper: wrapper._include_action, doc="Whether past actions are shown.")
    include_chat_template = property(
        lambda wrapper: wrapper._include_chat_template, doc="Whether the history is a conversation."
    )
    apply_chat_template_on_reset = property(
        lambda wrapper: wrapper._on_reset, doc="Whether the first observation alone is one."
    )

    @property
    def obs_queue(self) -> list[tuple[str, bool]]:
        """The observations that are shown, the current one last, with the board, and whether each is a tool's."""
        past = [(turn.observation, turn.role == "tool") for turn in self._shown_past()]
        return [*past, (self._current_text(), self.current[1] == "tool")]

    @property
    def act_queue(self) -> list[str]:
        """The actions that are shown."""
        return [turn.action for turn in self._shown_past()]

    def _shown_past(self) -> list[Past]:
        first = max(0, len(self.past) - self._limit) if self._limit is not None else 0
        return [Past(*turn) for turn in self.past[first:]]

    def _current_text(self) -> str:
        return self.current[0] + self.board

    def reset(self, seed: int | None = None) -> tuple[str, Info]:
        """Begin an episode, and its history."""
        observation, info = self.env.reset(seed=seed)
        if self._on_reset:  # a prompt, with all that belongs to it
            content = observation_text(self.env, observation, info)
            task = observation = self._render([{"role": "user", "content": content}])
            self.board = ""
        else:
            observation = self._without_board(observation, info)
            task = observation_text(self.env, observation, info)
        self.first = task
        self.past = []
        self.current = (observation, _role(info))
        return self.observation({} if self._on_reset else info), info

    def step(self, action: str) -> StepResult:
        """Step, and show the history. ``info["parsed_action"]`` replaces the action in it."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.past.append((*self.current, info.get("parsed_action", action)))
        self.current = (self._without_board(observation, info), _role(info))
        return self.observation(info), reward, terminated, truncated, info

    def _without_board(self, observation: str, info: Info) -> str:
        """Return an observation without the present state, which is kept for the end of the history."""
        state = self.env.shown_state
        self.board = state if observation.endswith(state) or info.get("use_tool", False) else ""
        return observation.removesuffix(self.board)

    def observation(self, info: Info) -> str:
        """Return the history with the current observation at its end.

        ``info["prefix"]`` and ``info["suffix"]``, which some environments set, enclose the whole; in a
        conversation they enclose the current message, so that they are never taken for the model's words.
        """
        past = self._shown_past()
        task = maybe_add_new_line(self.first) if len(past) < len(self.past) else ""
        prefix, suffix = info.get("prefix", ""), info.get("suffix", "")
        observation, role = self._current_text(), self.current[1]
        if not self._include_chat_template:
            texts = []
            for turn in past:
                texts += [turn.observation, turn.action] if self._include_action else [turn.observation]
            return prefix + task + "".join(map(maybe_add_new_line, [*texts, observation])) + suffix

        messages = []
        for turn in past:
            messages.append({"role": turn.role, "content": turn.observation})
            messages.append({"role": "assistant", "content": turn.action})
        messages.append({"role": role, "content": prefix + observation + suffix})
        if task:
            messages[0] = {"role": "user", "content": task + messages[0]["content"]}
        return self._render(messages)

    def _render(self, messages: list[dict[str, str]]) -> str:
        """Return messages (``role``, ``content``) in the tokenizer's chat template, with a generation prompt."""
        guarded = [
            message
            if message["role"] == "assistant"  # the model may have sampled control tokens: a thought is between two
            else {**message, "content": broken_up(message["content"], self._control)}
            for message in messages
        ]
        return self.tokenizer.apply_chat_template(guarded, tokenize=False, add_generation_prompt=True)


def _control_tokens(tokenizer: Any) -> dict[int, str]:
    if not hasattr(tokenizer, "added_tokens_decoder"):  # whatever it is, it is no Hugging Face tokenizer
        return {}
    return control_tokens(tokenizer, str(tokenizer.chat_template))


def _role(info: Info) -> str:
    return "tool" if info.get("use_tool", False) else "user"


def maybe_add_new_line(text: str) -> str:
    """Return a text that ends with a line break, unless it is empty."""
    return text if not text or text.endswith("\n") else text + "\n"
