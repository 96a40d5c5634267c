"""Environments of several agents; see :mod:`gem.multiagent.multi_agent_env`."""

from gem.multiagent.multi_agent_env import AgentSelector, MultiAgentEnv

__all__ = ["AgentSelector", "MultiAgentEnv"]
