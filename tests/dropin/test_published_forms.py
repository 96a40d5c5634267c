"""Code in the form in which gem-llm 0.1.0 is used: it passes on that package and on this one.

``python ci/dropin.py --games`` runs it on both. Nothing here is imported from elsewhere in the tests.
"""

import asyncio
import math
import random
import re

import pytest

import gem
from gem.core import Env, EnvWrapper
from gem.envs.game_env.guess_the_number import GuessTheNumberEnv
from gem.tools.base_tool import BaseTool
from gem.tools.python_code_tool import PythonCodeTool
from gem.tools.tool_env_wrapper import ToolEnvWrapper
from gem.utils.constants import TERMINAL_STATE, LanguageGameReward
from gem.utils.parsing import extract_last_boxed_answer, last_boxed_only_string
from gem.wrappers.wrapper_factory import WRAPPER_FACTORY, get_wrapper_fns

datasets = pytest.importorskip("datasets")

EASY = "game:GuessTheNumber-v0-easy"
ROWS = [{"problem": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(12)]


class ReverseText(Env):
    """An environment as gem-llm's README writes one."""

    def __init__(self, str_len: int = 5, **_):
        super().__init__()
        self.str_len = str_len

    def reset(self, seed=None):
        super().reset(seed)
        self.text = "".join(random.choice("abc") for _ in range(self.str_len))
        return f"Reverse {self.text}.", {}

    def step(self, action):
        answer = extract_last_boxed_answer(action)
        reward = LanguageGameReward.format_error_reward if answer is None else float(answer == self.text[::-1])
        return TERMINAL_STATE, reward, True, True, {}

    def sample_random_action(self):
        return "\\boxed{abc}"


@pytest.fixture(autouse=True, scope="module")
def registered():
    from gem.envs.registration import ENV_REGISTRY

    gem.register("published:ReverseText", ReverseText, str_len=4)
    yield
    del ENV_REGISTRY["published:ReverseText"]


def solve_reverse(observation):
    return f"\\boxed{{{observation.split()[-1][:-1][::-1]}}}"


def test_an_environment_is_registered_made_and_played():
    env = gem.make("published:ReverseText", str_len=7)
    observation, info = env.reset(seed=3)
    assert (len(env.text), info) == (7, {})
    assert env.step(solve_reverse(observation))[1:4] == (1.0, True, True)
    env.reset()
    assert env.step("no box")[1] == -0.1
    with pytest.raises(ValueError, match="Unknown"):
        gem.make("published:Unknown")


def test_episodes_are_run_and_printed(capsys):
    from gem.utils.debug import run_and_print_episode

    run_and_print_episode(gem.make("published:ReverseText"), solve_reverse)
    assert "terminated:  True" in capsys.readouterr().out.replace("terminated: True", "terminated:  True")


@pytest.mark.parametrize("async_mode", [False, True])
def test_vector_environments_are_run_and_printed(async_mode, capsys):
    from gem.utils.debug import run_and_print_episode, run_and_print_episode_with_selective_step

    vec = gem.make_vec(["published:ReverseText"] * 3, async_mode=async_mode)
    assert isinstance(vec, gem.Env)

    def policy(observations):
        return [solve_reverse(observation) for observation in observations]

    run_and_print_episode(vec, policy, ignore_done=True, max_steps=2)
    run_and_print_episode_with_selective_step(
        vec, lambda observations: ["\\boxed{abc}"] * 3, ignore_done=True, max_steps=4
    )
    assert "Step 4" in capsys.readouterr().out


def test_some_environments_of_a_vector_are_stepped():
    vec = gem.make_vec([EASY] * 4, vec_kwargs=[{"max_turns": n + 2} for n in range(4)])
    vec.reset()
    observations, rewards, _, _, infos = vec.step({1: "\\boxed{5}", 3: "\\boxed{5}"})
    assert (len(observations), len(rewards), len(infos)) == (2, 2, 2)
    assert [env.max_turns for env in vec.envs] == [2, 3, 4, 5]
    assert vec.num_envs == 4


@pytest.mark.parametrize("name", ["concat", "concat_with_action"])
def test_wrappers_show_the_history(name):
    (wrap,) = get_wrapper_fns(name, tokenizer=None)
    env = wrap(gem.make(EASY))
    first, _ = env.reset(seed=0)
    for guess in (2, 9):
        last = env.step(f"\\boxed{{{guess}}}")[0]
    assert len(last) > len(first)
    assert ("\\boxed{9}" in last) is (name == "concat_with_action")
    assert name in WRAPPER_FACTORY


class Bonus(EnvWrapper):
    """A wrapper that looks at the text of a win, and at an attribute of the environment inside."""

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        bonus = "Congratulations!" in observation
        return observation, reward + bonus, terminated, truncated, {**info, "turns": self.env.turn_count}

    def reset(self, seed=None):
        return self.env.reset(seed=seed)


def test_a_wrapper_pays_a_bonus():
    env = Bonus(gem.make(EASY))
    env.reset(seed=1)
    _, reward, terminated, _, info = env.step(f"\\boxed{{{env.unwrapped.game_number}}}")
    assert (reward, terminated, info["turns"]) == (2.0, True, 1)


class Halved(GuessTheNumberEnv):
    """A game of the package with other rewards."""

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return (observation, reward / 2, *rest)


def test_a_game_is_subclassed():
    env = Halved(min_number=1, max_number=5, max_turns=3)
    env.reset(seed=2)
    env.game_number = 4
    assert env.step("\\boxed{4}")[1] == 0.5


def math_env(**kwargs):
    from gem.envs.math_env import MathEnv

    return MathEnv(dataset=datasets.Dataset.from_list(ROWS), use_mp=False, **kwargs)


def test_a_data_set_is_evaluated_in_one_pass():
    env = math_env(eval=True)
    correct, asked = [], []
    for _ in range(len(ROWS)):
        observation, _ = env.reset()
        asked.append(int(re.search(r"\d+", observation)[0]))
        correct.append(env.step(f"I think \\boxed{{{asked[-1] + 1}}}")[4]["correct"])
    assert asked == list(range(12))
    assert all(correct)
    assert env.epoch == 0
    env.reset()
    assert env.epoch == 1


def test_a_data_set_is_shuffled_and_each_question_asked_once_a_pass():
    env = math_env(seed=5)
    passes = [[env.reset()[0] for _ in range(12)] for _ in range(2)]
    assert len(set(passes[0])) == len(set(passes[1])) == 12
    assert passes[0] != passes[1]


def test_answers_are_set_and_checked():
    env = math_env()
    env.reset()
    assert env.check_correct(f"\\boxed{{{env.answer}}}", env.answer)
    env.answer = "777"
    assert env.step("\\boxed{777}")[1] == 1.0


def test_a_collector_copies_states_into_a_group():
    """Every group asks one question of all its members, and the groups ask others."""
    env = math_env(seed=1)
    questions = []
    for _ in range(6):
        env.reset()
        members = [env.spawn(same_state=True) for _ in range(3)]
        rewards = [member.step(f"\\boxed{{{env.answer}}}")[1] for member in members]
        assert rewards == [1.0] * 3
        questions.append(env.answer)
    assert len(set(questions)) == 6
    other = math_env(seed=2)
    other.reset()
    other.set_state(env.get_state())
    assert other.answer == env.answer


class CodeTag(PythonCodeTool):
    """A tool with tags of its own, which overrides one method."""

    def execute_action(self, action):
        match = re.search(r"<code>(.*?)</code>", action, re.DOTALL)
        if match is None:
            return False, True, "", action
        return True, False, f"ran {match[1]}", action[: match.end()]


class Lookup(BaseTool):
    tool_type = "lookup"

    def instruction_string(self):
        return "Write LOOKUP and a word."

    def execute_action(self, action):
        if "LOOKUP" not in action:
            return False, True, "", action
        return True, False, f"{action.split()[-1]} is a word.", action


def test_tools_are_subclassed_and_called():
    env = ToolEnvWrapper(gem.make(EASY), tools=[CodeTag(), Lookup()], tool_reward=0.1, max_tool_uses=5)
    observation, info = env.reset(seed=0)
    assert "Write LOOKUP and a word." in observation
    assert info["tool_use_counter"] == 0
    assert env.step("so <code>1 + 1</code> and")[:2] == ("ran 1 + 1", 0.1)
    observation, reward, terminated, truncated, info = env.step("LOOKUP cat", verbose=False)
    assert (observation, reward, terminated, truncated) == ("cat is a word.", 0.1, False, False)
    assert (info["tool_use_counter"], info["tool_type"]) == (2, "lookup")
    assert "tool_type" not in env.step("\\boxed{5}")[4]


def test_the_python_tool_runs_code():
    is_valid, has_error, observation, parsed = PythonCodeTool(timeout=10).execute_action(
        "Let me see: <python>print(6 * 7)</python> more"
    )
    assert (is_valid, has_error) == (True, False)
    assert "42" in observation
    assert parsed.endswith("</python>")


class AgentInstance:
    """The form of OpenRLHF's agents: coroutines over one environment."""

    def __init__(self):
        self.env = gem.make(EASY, max_turns=6)

    async def reset(self, states, **kwargs):
        observation, _ = self.env.reset(seed=states.get("seed"))
        return {"observation": observation}

    async def step(self, states, **kwargs):
        observation, reward, terminated, truncated, _ = self.env.step(states["action_text"])
        done = terminated or truncated
        return {"rewards": reward, "scores": reward, "environment_feedback": observation, "done": done}


def test_an_agent_of_openrlhf_plays():
    async def play(seed):
        agent = AgentInstance()
        await agent.reset({"seed": seed})
        low, high = 1, 10
        while True:
            guess = (low + high) // 2
            step = await agent.step({"action_text": f"\\boxed{{{guess}}}"})
            if step["done"]:
                return step["rewards"]
            if "higher" in step["environment_feedback"].lower():
                low = guess + 1
            else:
                high = guess - 1

    async def play_all():
        return await asyncio.gather(*(play(seed) for seed in range(8)))

    assert asyncio.run(play_all()) == [1.0] * 8


def test_a_loop_in_the_form_of_tinkers_cookbook():
    """Environments in a group, with a cap on turns, returns discounted, and a mean taken off."""

    def rollout(env, max_steps=8, gamma=0.9):
        env.reset()
        rewards = []
        for _ in range(max_steps):
            _, reward, terminated, truncated, _ = env.step(env.sample_random_action())
            rewards.append(float(reward))
            if terminated or truncated:
                break
        return sum(reward * gamma**turn for turn, reward in enumerate(rewards))

    random.seed(0)
    envs = [gem.make("game:Mastermind-v0-easy") for _ in range(4)]
    returns = [rollout(env) for env in envs for _ in range(3)]
    assert all(math.isfinite(each) and -0.2 <= each <= 1 for each in returns)
    advantages = [each - sum(returns) / len(returns) for each in returns]
    assert abs(sum(advantages)) < 1e-9


def test_graders_and_parsers():
    from gem.utils.math_grader import boxed_reward_fn, extract_answer, grade
    from gem.utils.qa_em import em_check

    assert boxed_reward_fn("so \\boxed{1/2}", "0.5", fast=False, correct_reward=1, incorrect_reward=0)[1] == 1
    assert (grade("3", "3"), grade("3", "4"), extract_answer("\\boxed{8}")) == (True, False, "8")
    assert last_boxed_only_string("a \\boxed{x_{1}} b") == "\\boxed{x_{1}}"
    assert em_check("The cat!", ["cat"])


def test_agents_take_turns():
    from gem.multiagent import AgentSelector, MultiAgentEnv

    class Talk(MultiAgentEnv):
        def __init__(self):
            super().__init__()
            self.possible_agents = ["ann", "bo"]
            self.agent_selector = AgentSelector(self.possible_agents)

        def observe(self, agent):
            return f"{len(self.shared_memory)} messages"

        def _process_actions(self, actions):
            for agent, action in actions.items():
                self.broadcast_message(agent, action)
            return (
                {agent: self.observe(agent) for agent in self.agents},
                dict.fromkeys(actions, 1.0),
                dict(self.terminations),
                dict(self.truncations),
                dict(self.infos),
            )

    env = Talk()
    env._make_np_random = random.Random  # which gem-llm's class calls, and does not have
    observations, _ = env.reset()
    assert observations == {"ann": "0 messages", "bo": "0 messages"}
    for agent in ("ann", "bo", "ann"):
        assert list(env.get_active_states()) == [agent]
        env.step({agent: "hello"})
    assert env.get_state("ann")[:2] == ("3 messages", 2.0)
