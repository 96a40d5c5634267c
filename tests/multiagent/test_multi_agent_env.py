"""Environments of several agents, in the form that gem-llm publishes."""

import pytest

from gem.multiagent import AgentSelector, MultiAgentEnv


class Count(MultiAgentEnv):
    """Agents say numbers; one that says 0 has ended."""

    def __init__(self, mode="sequential"):
        super().__init__()
        self.possible_agents = ["a", "b", "c"]
        self.agent_selector = AgentSelector(self.possible_agents, mode)
        self.total = 0

    def observe(self, agent):
        return f"{agent} sees {self.total}"

    def _process_actions(self, actions):
        for agent, action in actions.items():
            self.total += int(action)
            self.rewards[agent] = float(action)
            self.terminations[agent] = action == "0"
        some = list(actions)
        return (
            {agent: self.observe(agent) for agent in some},
            {agent: self.rewards[agent] for agent in some},
            {agent: self.terminations[agent] for agent in some},
            dict.fromkeys(some, False),
            {agent: {} for agent in some},
        )


def test_agents_move_in_turn():
    env = Count()
    observations, infos = env.reset(seed=1)
    assert observations == {agent: f"{agent} sees 0" for agent in "abc"}
    assert infos == {"a": {}, "b": {}, "c": {}}
    observations, rewards, terminations, truncations, _ = env.step({"a": "2"})
    assert (observations, rewards, terminations, truncations) == (
        {"a": "a sees 2"},
        {"a": 2.0},
        {"a": False},
        {"a": False},
    )
    assert env.get_active_states() == {"b": ("b sees 2", 0.0, False, False, {})}
    assert env.get_state("a") == ("a sees 2", 2.0, False, False, {})
    with pytest.raises(ValueError, match="the action of b is missing"):
        env.step({})
    with pytest.raises(ValueError, match="it is not the move of a"):
        env.step({"a": "1", "b": "1"})
    with pytest.raises(ValueError, match="dict"):
        env.step("1")


def test_nobody_is_passed_over_when_an_agent_leaves():
    env = Count()
    env.reset()
    moved = []
    for action in ("0", "1", "1", "0", "1"):
        (agent,) = env.agent_selector.get_active_agents()
        moved.append(agent)
        env.step({agent: action})
    assert moved == ["a", "b", "c", "b", "c"]
    assert env.agents == ["c"]
    env.step({"c": "0"})
    assert (env.agents, env.agent_selector.get_active_agents(), env.agent_selector.selected) == ([], [], None)
    assert list(env.reset()[0]) == ["a", "b", "c"]


def test_agents_move_at_once():
    env = Count("parallel")
    env.reset()
    env.step({"a": "1", "b": "2", "c": "0"})
    assert env.agent_selector.get_active_agents() == env.agents == ["a", "b"]
    env.step({"a": "1", "b": "2"})
    assert [env.get_state(agent)[1] for agent in "ab"] == [2.0, 4.0]


def test_messages():
    env = Count()
    env.reset()
    env.send_message("a", "b", "hello")
    env.broadcast_message("c", "all")
    assert [(m["from"], m["to"], m["message"]) for m in env.shared_memory] == [
        ("a", "b", "hello"),
        ("c", "a", "all"),
        ("c", "b", "all"),
    ]
    for send in (lambda: env.send_message("a", "z", ""), lambda: env.broadcast_message("z", "")):
        with pytest.raises(ValueError, match="z does not take part"):
            send()


def test_agents_can_join():
    env = Count()
    env.reset()
    env.add_agent("d")
    env.remove_agent("a")
    assert env.agents == ["b", "c", "d"]
    selector = env.agent_selector
    assert [selector.selected, selector.is_first(), selector.is_last()] == ["b", True, False]
    with pytest.raises(ValueError, match="sequential or parallel"):
        AgentSelector([], "random")
