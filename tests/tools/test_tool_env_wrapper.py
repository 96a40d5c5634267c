import asyncio
import copy
import json
import pickle
import threading

import pytest

import gem
from gem.core import observation_text
from gem.testing import check_env
from gem.tools.base_tool import BaseTool
from gem.tools.python_code_tool import PythonCodeTool
from gem.tools.tool_env_wrapper import ToolEnvWrapper
from gem.wrappers import ObservationWrapper, TimeLimit

EASY = "game:GuessTheNumber-v0-easy"


class Echo(BaseTool):
    """Answers [echo: ...], in the published form: it knows nothing of find_action."""

    tool_type = "echo"

    def __init__(self, name="echo", error=False):
        super().__init__()
        self.name, self.error, self.calls = name, error, 0

    def instruction_string(self):
        return f"Write [{self.name}: text]."

    def execute_action(self, action):
        start = action.find(f"[{self.name}: ")
        end = action.find("]", start)
        if min(start, end) < 0:
            return False, True, "", action
        self.calls += 1
        return True, self.error, f"{self.name} said {action[start + len(self.name) + 3 : end]}", action[: end + 1]


class Found(Echo):
    def find_action(self, action):
        place = action.find(f"[{self.name}: ")
        return place if place >= 0 else None


class Raising(Found):
    def execute_action(self, action):
        raise SystemExit("it broke \ud800")


class Waiting(Found):
    async def execute_action_async(self, action):
        await asyncio.sleep(0.01)
        return super().execute_action(action)


class Counter(Found):
    """Counts its calls within the episode."""

    per_episode = True

    def __init__(self):
        super().__init__("count")
        self.count, self.closed = 0, False

    def execute_action(self, action):
        self.count += 1
        return True, False, f"count {self.count}", action

    def reset(self):
        self.count = 0

    def close(self):
        self.closed = True

    def get_state(self):
        return {"count": self.count}

    def set_state(self, state):
        self.count = state["count"]


class Board(gem.Env):
    """Shows its board in the suffix, and goes on for ever."""

    def reset(self, seed=None):
        super().reset(seed)
        return "Play.", {"suffix": "\nBOARD 0", "prefix": "RULES\n"}

    def step(self, action):
        return "Next.", 0, False, False, {"suffix": "\nBOARD 1"}


def wrapped(*tools, env=None, **kwargs):
    env = ToolEnvWrapper(env or gem.make(EASY), list(tools), **kwargs)
    env.reset(seed=1)
    return env


def guess(env, right=False):
    return f"\\boxed{{{env.game_number if right else 1 + env.game_number % 10}}}"


def with_python():
    return ToolEnvWrapper(gem.make(EASY), [PythonCodeTool()])


def with_counter():
    return ToolEnvWrapper(gem.make(EASY), [Counter(), Found()], max_tool_uses=None)


@pytest.mark.parametrize("factory", [with_python, with_counter])
def test_wrapped_game_keeps_the_contract_of_environments(factory):
    assert check_env(factory, seeds=range(3))


def test_instructions_follow_the_first_observation():
    alone, _ = gem.make(EASY).reset(seed=1)
    assert ToolEnvWrapper(gem.make(EASY), [Echo()]).reset(seed=1)[0] == f"{alone}\nWrite [echo: text]."
    both = ToolEnvWrapper(gem.make(EASY), [Echo(), Echo("b")]).reset(seed=1)[0]
    assert both == f"{alone}\nAvailable tools:\nWrite [echo: text].\nWrite [b: text]."


@pytest.mark.parametrize("arguments", [{"tools": []}, {"tools": [Echo()], "max_tool_uses": 0}])
def test_environment_without_tools_is_as_before(arguments):
    plain, env = gem.make(EASY), ToolEnvWrapper(gem.make(EASY), **arguments)
    assert env.reset(seed=1)[0] == plain.reset(seed=1)[0]
    ours, theirs = env.step("[echo: x]"), plain.step("[echo: x]")
    assert ours[:4] == theirs[:4]
    assert ours[4]["use_tool"] is False
    assert env.max_turns == plain.max_turns


def test_turn_of_a_tool_answers_with_the_tool_and_leaves_the_game():
    env = wrapped(Echo())
    game = env.env.get_state()
    observation, reward, terminated, truncated, info = env.step("hm [echo: hi] \\boxed{1}")
    assert (observation, reward, terminated, truncated) == ("echo said hi", 0.0, False, False)
    assert isinstance(reward, float)
    assert info == {
        "tool_type": "echo",
        "parsed_action": "hm [echo: hi]",
        "use_tool": True,
        "tool_use_counter": 1,
        "tool_success_counter": 1,
    }
    assert env.env.get_state() == game


def test_only_turns_of_tools_are_marked():
    env = wrapped(Echo())
    assert env.reset(seed=1)[1]["use_tool"] is False
    assert env.step("[echo: x]")[4]["use_tool"] is True
    info = env.step(guess(env))[4]
    assert info["use_tool"] is False
    assert "tool_type" not in info
    assert info["tool_use_counter"] == 1


def test_mark_of_a_wrapper_inside_is_kept():
    env = ToolEnvWrapper(wrapped(Echo()), [Echo("other")])
    env.reset(seed=1)
    assert env.step("[echo: x]")[4]["use_tool"] is True


@pytest.mark.parametrize("error", [False, True])
def test_rewards_are_for_use_and_for_success(error):
    env = wrapped(Found(error=error), tool_reward=0.05, tool_success_reward=0.25)
    _, reward, _, _, info = env.step("[echo: x]")
    assert reward == pytest.approx(0.05 if error else 0.3)
    assert (info["tool_use_counter"], info["tool_success_counter"]) == (1, int(not error))


def test_reward_is_a_float_also_where_the_rewards_are_whole():
    env = wrapped(Echo(), env=Board(), tool_reward=1, tool_success_reward=1)
    assert type(env.step("[echo: x]")[1]) is float


def test_reset_tells_the_counts_of_the_previous_episode():
    env = wrapped(Echo(), Found("bad", error=True))
    env.step("[echo: x]")
    env.step("[bad: x]")
    info = env.reset(seed=1)[1]
    assert (info["prev_ep_tool_use_counter"], info["prev_ep_tool_success_counter"]) == (2, 1)
    assert (info["tool_use_counter"], info["tool_success_counter"]) == (0, 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[a: 1] [b: 2]", "a said 1"),
        ("[b: 2] [a: 1]", "b said 2"),
        ("[old: 3] [b: 2]", "b said 2"),
        ("[old: 3]", "old said 3"),
    ],
)
def test_first_call_in_the_text_wins_and_tools_that_cannot_tell_come_last(text, said):
    tools = Echo("old"), Found("a"), Found("b")
    assert wrapped(*tools).step(text)[0] == said
    assert sum(tool.calls for tool in tools) == 1


def test_call_that_fails_is_the_only_one_executed():
    tools = Found("a", error=True), Found("b")
    wrapped(*tools).step("[a: 1] [b: 2]")
    assert [tool.calls for tool in tools] == [1, 0]


def test_tool_that_raises_has_failed_and_says_why():
    env = wrapped(Raising(), tool_reward=0.1, tool_success_reward=1.0)
    observation, reward, terminated, truncated, info = env.step("[echo: x]")
    assert observation == "[echo error: SystemExit: it broke ?]"
    assert (reward, terminated, truncated) == (0.1, False, False)
    assert (info["tool_use_counter"], info["tool_success_counter"]) == (1, 0)


def test_tool_that_returns_nonsense_has_failed():
    class Nonsense(Found):
        def execute_action(self, action):
            return "what?"

    assert "error: ValueError" in wrapped(Nonsense()).step("[echo: x]")[0]


def test_asynchronous_tool_is_awaited_in_threads_and_in_event_loops():
    async def step():
        return wrapped(Waiting()).step("[echo: x]")[0]

    said = [asyncio.run(step())]
    threads = [threading.Thread(target=lambda: said.append(wrapped(Waiting()).step("[echo: x]")[0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == ["echo said x"] * 5


def test_uses_are_limited_and_the_last_one_says_so():
    env = wrapped(Echo(), max_tool_uses=2)
    assert "last use" not in env.step("[echo: 1]")[0]
    assert env.step("[echo: 2]")[0].startswith("echo said 2\n\nThat was the last use")
    info = env.step("[echo: 3]")[4]
    assert info["use_tool"] is False
    assert info["tool_use_counter"] == 2


def test_state_is_json_without_a_limit_of_uses():
    env = wrapped(Echo(), max_tool_uses=None)
    for _ in range(30):
        env.step("[echo: x]")
    assert "Infinity" not in json.dumps(env.get_state())
    other = wrapped(Echo(), max_tool_uses=None)
    other.set_state(json.loads(json.dumps(env.get_state())))
    assert other.step("[echo: x]")[4]["tool_use_counter"] == 31


@pytest.mark.parametrize(("uses", "turns"), [(3, 7), (None, None)])
def test_max_turns_are_those_of_the_game_and_of_the_tools(uses, turns):
    assert wrapped(Echo(), max_tool_uses=uses).max_turns == turns


def test_max_turns_of_an_endless_environment_is_unknown():
    assert wrapped(Echo(), env=Board()).max_turns is None


def test_turns_of_tools_do_not_count_against_the_games_limit():
    env = wrapped(Echo(), env=TimeLimit(gem.make(EASY), 2), max_tool_uses=5)
    assert env.max_turns == 7
    ends = [any(env.step(action)[2:4]) for action in ["[echo: x]"] * 5 + [guess(env)] * 2]
    assert ends == [False] * 6 + [True]


def test_reward_range_counts_what_tools_pay():
    low, high = gem.make(EASY).reward_range
    rewards = {"tool_reward": -0.1, "tool_success_reward": 0.3}
    assert wrapped(Echo(), max_tool_uses=5, **rewards).reward_range == pytest.approx((low - 0.5, high + 1.0))
    assert wrapped(Echo(), max_tool_uses=None).reward_range == (low, high)
    assert wrapped(Echo(), max_tool_uses=None, tool_reward=0.1).reward_range == (low, float("inf"))


def test_board_is_shown_again_after_a_turn_of_a_tool():
    env = ToolEnvWrapper(Board(), [Echo()])
    env.reset(seed=0)
    observation, _, _, _, info = env.step("[echo: x]")
    assert observation_text(env, observation, info) == "RULES\necho said x\nBOARD 0"
    env.step("move")
    copy = env.spawn(same_state=True)
    observation, _, _, _, info = copy.step("[echo: x]")
    assert observation_text(copy, observation, info) == "echo said x\nBOARD 1"


def test_history_shows_turns_of_tools():
    env = ObservationWrapper(wrapped(Echo()), include_action=True, include_chat_template=False)
    env.reset(seed=1)
    assert env.step("[echo: x] and more")[0].endswith("[echo: x]\necho said x\n")
    with pytest.raises(ValueError, match="inside the observation wrapper"):
        ToolEnvWrapper(env, [Echo()])


def test_step_before_the_first_or_after_the_last_turn_is_refused_also_for_tools():
    env = ToolEnvWrapper(gem.make(EASY), [Echo()])
    with pytest.raises(gem.ResetNeeded):
        env.step("[echo: x]")
    env.reset(seed=1)
    assert env.step(guess(env, right=True))[2]
    with pytest.raises(gem.ResetNeeded):
        env.step("[echo: x]")


def test_tool_of_an_episode_is_each_environments_own_and_begins_anew():
    tool = Counter()
    one, two = wrapped(tool), wrapped(tool)
    assert [one.step("[count: ]")[0], one.step("[count: ]")[0], two.step("[count: ]")[0]] == [
        "count 1",
        "count 2",
        "count 1",
    ]
    one.reset(seed=2)
    assert one.step("[count: ]")[0] == "count 1"
    one.close()
    assert [one.tools[0].closed, two.tools[0].closed, tool.closed] == [True, False, False]


def test_other_tools_are_shared_and_left_open():
    tool = Echo()
    one, two = wrapped(tool), wrapped(tool)
    one.close()
    assert one.tools[0] is two.tools[0] is tool


@pytest.mark.parametrize(
    "duplicate",
    [
        lambda env: env.spawn(same_state=True),
        lambda env: pickle.loads(pickle.dumps(env)),
        copy.deepcopy,
        lambda env: (other := env.spawn(), other.set_state(json.loads(json.dumps(env.get_state()))))[0],
    ],
)
def test_copies_go_on_with_counts_and_tools(duplicate):
    env = wrapped(Counter(), tool_reward=0.5, max_tool_uses=4)
    env.step("[count: ]")
    other = duplicate(env)
    observation, reward, _, _, info = other.step("[count: ]")
    assert (observation, reward, info["tool_use_counter"], other.max_tool_uses) == ("count 2", 0.5, 2, 4)
    assert env.step("[count: ]")[0] == "count 2"


@pytest.mark.parametrize("uses", [-1, -10])
def test_negative_limit_is_refused(uses):
    with pytest.raises(ValueError, match="at least 0"):
        ToolEnvWrapper(gem.make(EASY), [], max_tool_uses=uses)


def test_unknown_argument_is_refused():
    with pytest.raises(TypeError):
        ToolEnvWrapper(gem.make(EASY), [], no_such_argument=1)
