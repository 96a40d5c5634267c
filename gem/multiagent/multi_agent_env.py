"""MultiAgentEnv: an environment of several agents, which act in turn or all at once.

It has the names and the interface of gem-llm's class, whose vocabulary is that of PettingZoo
(https://pettingzoo.farama.org). Observations, actions, rewards and ends are dicts from agent to value. The rollout
runner and the adapters play environments of one agent; this class is for code that drives the agents itself.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from gem.core import Env, Info

AgentStep = tuple[dict[str, str], dict[str, float], dict[str, bool], dict[str, bool], dict[str, Info]]
"""Observations, rewards, terminations, truncations and infos, by agent."""

AgentState = tuple[str, float, bool, bool, Info]
"""An agent's observation, the sum of its rewards, whether it has ended by the task or by a limit, and its info."""


class AgentSelector:
    """Whose move it is.

    Args:
        agents: in the order of their moves.
        mode: ``"sequential"``: one after another; ``"parallel"``: all at once.

    Attributes:
        selected: who moves, of those who do so in turn; None if nobody is left.

    Raises:
        ValueError: there is no such mode.
    """

    def __init__(self, agents: Sequence[str], mode: Literal["sequential", "parallel"] = "sequential") -> None:
        if mode not in ("sequential", "parallel"):
            raise ValueError(f"mode must be sequential or parallel, got {mode!r}")
        self.mode = mode
        self.reinit(agents)

    def reinit(self, agents: Sequence[str]) -> None:
        """Begin again with the first of some agents."""
        self._agents = list(agents)
        self._index = 0

    @property
    def selected(self) -> str | None:
        """Who moves; it may be set to one of the agents."""
        return self._agents[self._index] if self._agents else None

    @selected.setter
    def selected(self, agent: str) -> None:
        self._index = self._agents.index(agent)

    def get_active_agents(self) -> list[str]:
        """Return those who move now."""
        if self.mode == "parallel":
            return list(self._agents)
        return [] if self.selected is None else [self.selected]

    def next(self) -> None:
        """Pass the move on."""
        if self.mode == "sequential" and self._agents:
            self._index = (self._index + 1) % len(self._agents)

    def is_first(self) -> bool:
        """Return whether the first agent moves."""
        return self._index == 0

    def is_last(self) -> bool:
        """Return whether the last agent moves."""
        return self._index == len(self._agents) - 1

    def add_agent(self, agent: str) -> None:
        """Let an agent move, after the others."""
        if agent not in self._agents:
            self._agents.append(agent)

    def remove_agent(self, agent: str) -> None:
        """Let an agent move no more; if it was its move, it is that of the agent after it."""
        if agent not in self._agents:
            return
        index = self._agents.index(agent)
        self._agents.remove(agent)
        if index < self._index:
            self._index -= 1
        self._index = self._index % len(self._agents) if self._agents else 0


class MultiAgentEnv(Env):
    """An environment of several agents.

    Subclasses set :attr:`possible_agents`, and write ``observe`` and ``_process_actions``.

    Attributes:
        possible_agents: all that may take part.
        agents: those that still do.
        terminations: whether the task has ended for an agent.
        truncations: whether a limit has.
        rewards: of the last step.
        infos: of the last step.
        agent_selector: whose move it is; None where all move at once.
        shared_memory: messages: ``{"from", "to", "message"}``.
        global_context: a text for all.
    """

    def __init__(self) -> None:
        super().__init__()
        self.possible_agents: list[str] = []
        self.agents: list[str] = []
        self.terminations: dict[str, bool] = {}
        self.truncations: dict[str, bool] = {}
        self.rewards: dict[str, float] = {}
        self.infos: dict[str, Info] = {}
        self.agent_selector: AgentSelector | None = None
        self.shared_memory: list[dict[str, str]] = []
        self.global_context = ""
        self._cumulative_rewards: dict[str, float] = {}

    @abc.abstractmethod
    def observe(self, agent: str) -> str:
        """Return what an agent sees."""

    @abc.abstractmethod
    def _process_actions(self, actions: dict[str, str]) -> AgentStep:
        """Make the moves; set ``terminations`` and ``truncations`` of the agents that have ended."""

    def reset(self, seed: int | None = None) -> tuple[dict[str, str], dict[str, Info]]:  # type: ignore[override]
        """Begin an episode with all agents, and return their observations and infos."""
        super().reset(seed)
        self.agents = []
        self.terminations, self.truncations, self.rewards = {}, {}, {}
        self.infos, self._cumulative_rewards = {}, {}
        self.shared_memory, self.global_context = [], ""
        if self.agent_selector is not None:
            self.agent_selector.reinit([])
        for agent in self.possible_agents:
            self.add_agent(agent)
        return {agent: self.observe(agent) for agent in self.agents}, {agent: {} for agent in self.agents}

    def step(self, actions: Mapping[str, str]) -> AgentStep:  # type: ignore[override]
        """Make the moves of those whose move it is; agents that have ended leave.

        Args:
            actions: by agent.

        Raises:
            ValueError: they are no dict, an agent's is missing, or one moves whose move it is not.
        """
        if not isinstance(actions, Mapping):
            raise ValueError(f"actions are a dict from agent to text, got {type(actions).__name__}")
        active = self._active_agents()
        for agent in active:
            has_ended = self.terminations.get(agent, False) or self.truncations.get(agent, False)
            if agent not in actions and not has_ended:
                raise ValueError(f"the action of {agent} is missing")
        for agent in actions:
            if agent not in active:
                raise ValueError(f"it is not the move of {agent}")
        step = self._process_actions(dict(actions))
        for agent in self.agents:
            if agent in step[1]:
                self._cumulative_rewards[agent] = self._cumulative_rewards.get(agent, 0.0) + step[1][agent]
        if self.agent_selector is not None:
            self.agent_selector.next()  # before any leaves, whose place tells who follows
        self._remove_dead_agents()
        return step

    def _remove_dead_agents(self) -> None:
        """Let those leave for whom the episode has ended."""
        for agent in list(self.agents):
            if self.terminations.get(agent, False) or self.truncations.get(agent, False):
                self.remove_agent(agent)

    def get_state(self, agent: str | None = None) -> Any:
        """Return an agent's state (:data:`AgentState`), or that of the environment, as :meth:`gem.core.Env.get_state`.

        Raises:
            ValueError: the agent does not take part.
        """
        if agent is None:
            raise NotImplementedError(f"{type(self).__name__} saves no state: name an agent for what it sees")
        if agent not in self.agents:
            raise ValueError(f"{agent} does not take part")
        ends = self.terminations.get(agent, False), self.truncations.get(agent, False)
        return self.observe(agent), self._cumulative_rewards.get(agent, 0.0), *ends, self.infos.get(agent, {})

    def get_active_states(self) -> dict[str, AgentState]:
        """Return the states of those whose move it is."""
        return {agent: self.get_state(agent) for agent in self._active_agents() if agent in self.agents}

    def add_agent(self, agent_id: str) -> None:
        """Let an agent take part."""
        if agent_id in self.agents:
            return
        self.agents.append(agent_id)
        self.terminations[agent_id] = self.truncations[agent_id] = False
        self.rewards[agent_id] = self._cumulative_rewards[agent_id] = 0.0
        self.infos[agent_id] = {}
        if self.agent_selector is not None:
            self.agent_selector.add_agent(agent_id)

    def remove_agent(self, agent_id: str) -> None:
        """Let an agent leave."""
        if agent_id not in self.agents:
            return
        self.agents.remove(agent_id)
        for table in (self.terminations, self.truncations, self.rewards, self.infos, self._cumulative_rewards):
            table.pop(agent_id, None)
        if self.agent_selector is not None:
            self.agent_selector.remove_agent(agent_id)

    def send_message(self, from_agent: str, to_agent: str, message: str) -> None:
        """Leave a message for an agent in ``shared_memory``.

        Raises:
            ValueError: one of the two does not take part.
        """
        for agent in (from_agent, to_agent):
            if agent not in self.agents:
                raise ValueError(f"{agent} does not take part")
        self.shared_memory.append({"from": from_agent, "to": to_agent, "message": message})

    def broadcast_message(self, from_agent: str, message: str) -> None:
        """Leave a message for all others; errors as in :meth:`send_message`."""
        if from_agent not in self.agents:
            raise ValueError(f"{from_agent} does not take part")
        for agent in self.agents:
            if agent != from_agent:
                self.send_message(from_agent, agent, message)

    def _active_agents(self) -> list[str]:
        return list(self.agents) if self.agent_selector is None else self.agent_selector.get_active_agents()
