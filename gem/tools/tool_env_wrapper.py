"""ToolEnvWrapper: an environment in which the model can use tools.

A turn either calls a tool or is the environment's. What calls none goes to the environment, and so does everything
once the uses are spent. A tool's turn is marked by ``info["use_tool"]``, so that its observation can be shown in the
template's tool role.

Of several calls in one text, the first is executed, whichever tool it is of; the others are not.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from gem.core import Env, EnvWrapper, Info, ResetNeeded, StepResult
from gem.faults import error_text
from gem.tools.base_tool import BaseTool, ToolResult
from gem.tools.event_loop import run_async

_FRAME = ("prefix", "suffix")


class ToolEnvWrapper(EnvWrapper):
    """Lets the model use tools between the turns of an environment.

    ``info`` says of every turn how often tools were used (``tool_use_counter``) and without an error
    (``tool_success_counter``), and whether it was a tool's (``use_tool``); then also ``tool_type`` and
    ``parsed_action``, the text up to the end of the call. ``reset`` adds the previous episode's counts
    (``prev_ep_tool_use_counter``, ``prev_ep_tool_success_counter``).

    A tool that raises has failed: the error is the observation. Turns of tools are not the environment's: they do not
    count against its limit.

    Args:
        env: the environment to wrap. Wrappers that show the history go around this one.
        tools: what can be used. Tools that are ``per_episode`` are copied.
        tool_reward: for each use.
        tool_success_reward: for each use without an error, on top.
        max_tool_uses: an episode; None for no limit.

    Raises:
        ImportError, SandboxUnavailable: what a tool needs is not there.
        ValueError: the environment shows the history already, or the limit is negative.
    """

    state_attributes = ("tool_use_counter", "tool_success_counter", "frame", "over")
    blocking = True

    def __init__(
        self,
        env: Env,
        tools: Sequence[BaseTool],
        tool_reward: float = 0.0,
        tool_success_reward: float = 0.0,
        max_tool_uses: int | None = 10,
    ) -> None:
        super().__init__(env)
        if env.observation_form != "message":
            raise ValueError("the environment shows the history: put ToolEnvWrapper inside the observation wrapper")
        if max_tool_uses is not None and max_tool_uses < 0:
            raise ValueError(f"max_tool_uses must be at least 0, or None, got {max_tool_uses}")
        if getattr(env, "answers_in_code", False):
            tools = [tool.without_fences() if hasattr(tool, "without_fences") else tool for tool in tools]
        for tool in tools:
            if hasattr(tool, "prepare"):  # what is no BaseTool may have execute_action and instruction_string alone
                tool.prepare()
        self.tools = [copy.deepcopy(tool) if getattr(tool, "per_episode", False) else tool for tool in tools]
        self.tool_reward = tool_reward
        self.tool_success_reward = tool_success_reward
        self.max_tool_uses = max_tool_uses
        self.tool_use_counter = 0
        self.tool_success_counter = 0
        self.frame: dict[str, str] = {}  # what the environment puts around observations (a board), to be shown again
        self.over = True

    @property
    def max_turns(self) -> int | None:  # type: ignore[override]
        """Turns of the environment and of tools together; None where either has no limit."""
        if self.env.max_turns is None or not self.tools:
            return self.env.max_turns
        return None if self.max_tool_uses is None else self.env.max_turns + self.max_tool_uses

    @property
    def reward_range(self) -> tuple[float, float]:  # type: ignore[override]
        """The environment's range, widened by the rewards and penalties for calls of tools; of an episode too."""
        low, high = self.env.reward_range
        uses = float("inf") if self.max_tool_uses is None else self.max_tool_uses
        pays = (self.tool_reward, self.tool_reward + self.tool_success_reward)
        least, most = min(0.0, *pays), max(0.0, *pays)
        return low + (uses * least if least and uses else 0.0), high + (uses * most if most and uses else 0.0)

    @property
    def own_tools(self) -> list[BaseTool]:
        """The tools that no other environment has."""
        return [tool for tool in self.tools if getattr(tool, "per_episode", False)]

    def reset(self, seed: int | None = None) -> tuple[str, Info]:
        """Begin an episode; the tools' instructions follow the first observation."""
        observation, info = self.env.reset(seed=seed)
        previous = {
            "prev_ep_tool_use_counter": self.tool_use_counter,
            "prev_ep_tool_success_counter": self.tool_success_counter,
        }
        self.tool_use_counter = self.tool_success_counter = 0
        for tool in self.own_tools:
            tool.reset()
        if self.tools and self.max_tool_uses != 0:
            instructions = "\n".join(tool.instruction_string() for tool in self.tools)
            title = "Available tools:\n" if len(self.tools) > 1 else ""
            board = self.env.shown_state if observation.endswith(self.env.shown_state) else ""  # stays at the end
            observation = f"{observation.removesuffix(board)}\n{title}{instructions}{board}"
        self._keep_frame(info)
        self.over = False
        return observation, {**info, **previous, **self._counts(), "use_tool": False}

    def step(self, action: str, verbose: bool = False) -> StepResult:
        """Execute the first call of a tool in the model's text; if there is none, step the environment.

        Args:
            action: what the model wrote.
            verbose: print which tool was used, and how often one was in this episode.
        """
        if self.over:
            raise ResetNeeded
        used = self._use_tool(action)
        if used is None:
            observation, reward, terminated, truncated, info = self.env.step(action)
            self._keep_frame(info)
            self.over = terminated or truncated
            info = {**info, **self._counts(), "use_tool": info.get("use_tool", False)}
            return observation, reward, terminated, truncated, info

        tool, (_, has_error, observation, parsed_action) = used
        self.tool_use_counter += 1
        self.tool_success_counter += not has_error
        if verbose:
            outcome = "with an error" if has_error else "without an error"
            print(f"{tool.tool_type} tool used {outcome}, use {self.tool_use_counter} of this episode")
        if self.tool_use_counter == self.max_tool_uses:
            observation = f"{observation.rstrip()}\n\nThat was the last use of a tool. Give your final answer now."
        reward = float(self.tool_reward + (0.0 if has_error else self.tool_success_reward))
        info = {"tool_type": tool.tool_type, "parsed_action": parsed_action, "use_tool": True}
        return observation, reward, False, False, {**self.frame, **info, **self._counts()}

    def _arguments(self) -> dict[str, Any]:
        """The constructor's arguments, as they were set since."""
        names = ("tools", "tool_reward", "tool_success_reward", "max_tool_uses")
        return {**super()._arguments(), **{name: getattr(self, name) for name in names}}

    def close(self) -> None:
        """Close the environment and its own tools."""
        try:
            self.env.close()
        finally:
            for tool in self.own_tools:
                tool.close()

    def get_state(self) -> dict[str, Any]:
        """Return the state of the wrapper, of its own tools, and of the environment."""
        return {**super().get_state(), "tools": [tool.get_state() for tool in self.own_tools]}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what ``get_state`` returned."""
        super().set_state(state)
        for tool, tool_state in zip(self.own_tools, state["tools"], strict=True):
            tool.set_state(copy.deepcopy(tool_state))

    def _use_tool(self, action: str) -> tuple[BaseTool, ToolResult] | None:
        if self.max_tool_uses is not None and self.tool_use_counter >= self.max_tool_uses:
            return None
        places = [(place, tool) for tool in self.tools if (place := _find(tool, action)) is not None]
        for _, tool in sorted(places, key=lambda pair: pair[0]):
            result = _execute(tool, action)
            if result[0]:
                return tool, result
        return None

    def _keep_frame(self, info: Info) -> None:
        self.frame = {key: info[key] for key in _FRAME if key in info}

    def _counts(self) -> Info:
        return {"tool_use_counter": self.tool_use_counter, "tool_success_counter": self.tool_success_counter}


def _find(tool: BaseTool, action: str) -> int | None:
    try:
        return tool.find_action(action)
    except Exception:  # noqa: BLE001 (executing it will tell)
        return len(action)


def _execute(tool: BaseTool, action: str) -> ToolResult:
    """Execute a call; whatever the tool raises is an observation."""
    execute_async = getattr(tool, "execute_action_async", None)
    try:
        result = run_async(execute_async(action)) if execute_async else tool.execute_action(action)
        is_valid, has_error, observation, parsed_action = result
    except (Exception, SystemExit) as error:  # noqa: BLE001 (an episode must not end with its tool)
        is_valid, has_error, parsed_action = True, True, action
        observation = f"[{tool.tool_type} error: {error_text(error)}]"
    text = str(observation).encode("utf-8", "replace").decode()  # a lone surrogate has no tokens
    return bool(is_valid), bool(has_error), text, parsed_action
