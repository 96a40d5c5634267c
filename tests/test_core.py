import copy
import json
import pickle
import random
import re
from collections import OrderedDict
from fractions import Fraction

import numpy as np
import pytest

import gem
import gem.testing
from gem.core import EnvWrapper
from gem.faults import error_text, excerpt
from gem.seeds import check_seed
from gem.step_results import checked_reset, checked_step
from gem.wrappers import EpisodeTrackingWrapper, TimeLimit


class Dice(gem.Env):
    """Throws a die until the total reaches the limit."""

    max_turns = 99
    reward_range = (0.0, 6.0)
    blocking = False

    def __init__(self, limit=10, *, name="die"):
        super().__init__()
        self._limit = limit
        self._name = name
        self.throws = []
        self.closed = 0

    def reset(self, seed=None):
        super().reset(seed)
        self.throws = []
        return f"Throw the {self._name} to {self._limit}.", {}

    def step(self, action):
        self.throws.append(self.rng.randint(1, 6))
        total = sum(self.throws)
        return f"{self.throws[-1]}", float(self.throws[-1]), total >= self._limit, False, {"total": total}

    def sample_random_action(self):
        return self.action_rng.choice(["high", "low"])

    def close(self):
        self.closed += 1


class Bare(gem.Env):
    def reset(self, seed=None):
        super().reset(seed)
        return str(self.rng.random()), {}

    def step(self, action):
        return action, 0.0, True, False, {}


def throws(env, n=8):
    return [env.step("throw")[0] for _ in range(n)]


# seeds


@pytest.mark.parametrize("seed", [0, 7, 2**70, np.int64(7), np.uint8(7), np.array(7)])
def test_seed_may_be_any_non_negative_integer(seed):
    assert check_seed(seed) == int(seed)
    assert type(check_seed(seed)) is int


@pytest.mark.parametrize("seed", [True, np.True_, 1.0, np.float64(1), "1", b"1", [1], int])
def test_seed_that_is_no_integer_is_a_type_error(seed):
    with pytest.raises(TypeError):
        Dice().reset(seed=seed)


@pytest.mark.parametrize("seed", [-1, np.int64(-1)])
def test_negative_seed_is_a_value_error(seed):
    with pytest.raises(ValueError, match="non-negative"):
        Dice().reset(seed=seed)


def test_numpy_seed_gives_the_episode_of_the_equal_int():
    a, b = Dice(), Dice()
    a.reset(seed=5)
    b.reset(seed=np.int32(5))
    assert throws(a) == throws(b)


def test_seed_fixes_the_episode_and_the_sampled_actions_whatever_went_before():
    a, b = Dice(), Dice()
    a.reset(seed=1)
    throws(a)
    a.sample_random_action()
    for env in (a, b):
        env.reset(seed=5)
    assert throws(a) == throws(b)
    assert [a.sample_random_action() for _ in range(20)] == [b.sample_random_action() for _ in range(20)]


def test_reset_without_a_seed_goes_on_with_the_generator():
    a, b = Dice(), Dice()
    for env in (a, b):
        env.reset(seed=5)
    first = throws(a), throws(b)
    for env in (a, b):
        env.reset()
    second = throws(a), throws(b)
    assert first[0] == first[1]
    assert second[0] == second[1]
    assert first[0] != second[0]


def test_first_reset_without_a_seed_is_not_the_same_every_time():
    assert Bare().reset() != Bare().reset()


def test_rng_is_neither_moved_by_nor_moves_global_generators():
    env = Dice()
    env.reset(seed=5)
    expected = throws(env)
    random.seed(0)
    np.random.seed(0)
    before = random.getstate(), np.random.get_state()[1].tolist()
    env.reset(seed=5)
    got = throws(env)
    env.sample_random_action()
    assert got == expected
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_sampling_actions_does_not_change_the_episode():
    a, b = Dice(), Dice()
    for env in (a, b):
        env.reset(seed=5)
    for _ in range(5):
        a.sample_random_action()
    assert throws(a) == throws(b)


# construction and closing


@pytest.mark.parametrize(("args", "kwargs"), [((3,), {}), ((), {"colour": "red"})])
def test_constructor_rejects_unknown_arguments_even_of_a_class_without_one(args, kwargs):
    with pytest.raises(TypeError):
        Bare(*args, **kwargs)


def test_env_without_step_cannot_be_built():
    class Half(gem.Env):
        def reset(self, seed=None):
            return "", {}

    with pytest.raises(TypeError, match="step"):
        Half()


def test_env_that_samples_no_actions_says_so():
    with pytest.raises(NotImplementedError, match="Bare"):
        Bare().sample_random_action()


def test_context_manager_closes_through_wrappers_and_on_errors():
    env = Dice()
    with pytest.raises(gem.ResetNeeded), TimeLimit(env, 3) as wrapped:
        wrapped.step("throw")
    assert env.closed == 1


# state


def test_state_is_json_and_resumes_the_episode_elsewhere():
    env, other = Dice(limit=50), Dice(limit=50)
    env.reset(seed=3)
    throws(env, 4)
    state = json.loads(json.dumps(env.get_state()))
    other.set_state(state)
    assert other.throws == env.throws
    assert throws(other) == throws(env)


def test_state_does_not_change_as_either_env_plays_on():
    env, other = Dice(), Dice()
    env.reset(seed=3)
    state = env.get_state()
    other.set_state(state)
    throws(env)
    throws(other)
    assert state["throws"] == []


def test_state_leaves_out_private_attributes_and_identity():
    env = gem.make("game:GuessTheNumber-v0-easy")
    env.reset(seed=1)
    state = env.get_state()
    assert not {"env_id", "spec"} & set(state)
    assert not [name for name in state if name.startswith("_")]


def test_state_with_an_attribute_that_is_not_json_names_it():
    env = Dice()
    env.seen = {1, 2}
    with pytest.raises(TypeError, match=r"Dice\.seen is not JSON data.*underscore"):
        env.get_state()


# spawn


def test_spawn_keeps_positional_and_keyword_arguments():
    observation, _ = Dice(20, name="cube").spawn().reset(seed=1)
    assert observation == "Throw the cube to 20."


def test_spawn_overrides_arguments():
    observation, _ = Dice(20, name="cube").spawn(limit=5).reset(seed=1)
    assert observation == "Throw the cube to 5."


def test_spawn_keeps_arguments_taken_as_var_keywords():
    class Loose(Bare):
        def __init__(self, size=1, **options):
            super().__init__()
            self.size, self.options = size, options

    spawned = Loose(2, colour="red").spawn(shape="round")
    assert (spawned.size, spawned.options) == (2, {"colour": "red", "shape": "round"})


def test_spawn_rejects_unknown_arguments():
    with pytest.raises(TypeError):
        Dice().spawn(colour="red")


def test_spawn_begins_a_new_episode_unless_told_to_take_the_state():
    env = Dice(limit=50)
    env.reset(seed=3)
    throws(env, 4)
    twin, fresh = env.spawn(same_state=True), env.spawn()
    assert fresh.throws == []
    assert twin.throws == env.throws
    assert throws(twin) == throws(env)


def test_spawn_keeps_the_id_and_a_spec_that_rebuilds_it():
    env = gem.make("game:GuessTheNumber-v0-easy").spawn(max_number=40)
    rebuilt = gem.make(env.spec.id, **env.spec.kwargs)
    assert env.env_id == "game:GuessTheNumber-v0-easy"
    assert rebuilt.reset(seed=2) == env.reset(seed=2)
    assert "to 40" in env.reset(seed=2)[0]


def test_spawn_through_wrappers_wraps_in_the_same_way_and_overrides_the_inner_env():
    env = EpisodeTrackingWrapper(TimeLimit(Dice(50), max_episode_steps=3))
    env.reset(seed=3)
    env.step("throw")
    twin, other = env.spawn(same_state=True), env.spawn(name="cube")
    assert twin.step("throw") == env.step("throw")
    assert twin.step("throw")[3]
    assert twin.step_counter == 3
    assert other.reset(seed=1)[0] == "Throw the cube to 50."
    assert other.env.env is not env.env.env


# wrappers


def test_wrapper_answers_with_the_inner_env():
    inner = Dice()
    env = EnvWrapper(EnvWrapper(inner))
    assert env.reset(seed=3) == ("Throw the die to 10.", {})
    assert env.unwrapped is inner
    assert env.rng is inner.rng
    assert env.action_rng is inner.action_rng
    assert env.throws is inner.throws
    assert (env.max_turns, env.reward_range, env.blocking) == (99, (0.0, 6.0), False)
    assert env.sample_random_action() in ("high", "low")
    env.step("throw")
    assert len(env.throws) == 1


def test_wrapper_sees_attributes_that_the_inner_env_gets_later():
    inner = Dice()
    env = EnvWrapper(inner)
    inner.score = 1
    assert env.score == 1
    inner.score, inner.max_turns = 2, 5
    assert (env.score, env.max_turns) == (2, 5)


def test_wrapper_may_replace_a_class_attribute_of_the_inner_env():
    inner = Dice()
    env = EnvWrapper(inner)
    env.max_turns = 3
    assert (env.max_turns, inner.max_turns) == (3, 99)


def test_wrapper_has_no_attribute_that_the_inner_env_lacks():
    env = EnvWrapper(Dice())
    with pytest.raises(AttributeError, match="colour"):
        _ = env.colour


def test_attribute_asked_for_before_the_wrapper_has_an_env_is_an_attribute_error():
    class Early(EnvWrapper):
        def __init__(self, env):
            self.label = self.throws
            super().__init__(env)

    with pytest.raises(AttributeError, match="env"):
        Early(Dice())


def test_wrapper_hides_the_inner_envs_private_attributes():
    assert not hasattr(EnvWrapper(Dice()), "_limit")


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_copied_or_pickled_wrapper_plays_on_alike_and_apart(clone):
    env = TimeLimit(Dice(limit=99), max_episode_steps=50)
    env.reset(seed=3)
    throws(env, 3)
    other = clone(env)
    assert throws(other) == throws(env)
    assert other.spawn().reset(seed=1)[0] == "Throw the die to 99."
    other.step("throw")
    assert len(other.throws) == len(env.throws) + 1


def test_state_passes_through_wrappers():
    env = TimeLimit(Dice(limit=99), max_episode_steps=5)
    env.reset(seed=3)
    throws(env, 3)
    other = TimeLimit(Dice(limit=99), max_episode_steps=5)
    other.set_state(json.loads(json.dumps(env.get_state())))
    assert other.step("throw") == env.step("throw")
    assert other.step("throw")[3]


# environments written for gem-llm 0.1.0


class Published(gem.Env):
    """Takes any argument, resets in its constructor, and puts a suffix into info."""

    def __init__(self, size: int = 3, **_):
        super().__init__()
        self.size = size
        self.reset()

    def reset(self, seed: int | None = None):
        super().reset(seed)
        self.cell = self.rng.randrange(10**6)
        self.turn_count = 0
        return "Find the cell.", {"suffix": "Enter your guess."}

    def step(self, action: str):
        self.turn_count += 1
        done = self.turn_count == self.size
        return f"turn {self.turn_count}", 0.0, done, done, {"suffix": "Enter your guess."}


class PublishedWrapper(EnvWrapper):
    def __init__(self, env: gem.Env):
        super().__init__(env)

    def reset(self, seed: int | None = None):
        observation, info = self.env.reset(seed)
        return observation.upper(), info


@pytest.fixture
def published(monkeypatch):
    from gem import registry

    monkeypatch.setattr(registry, "ENV_REGISTRY", dict(registry.ENV_REGISTRY))
    gem.register("old:Published-v0", Published, size=2)
    return "old:Published-v0"


def test_published_env_and_wrapper_run_unchanged(published):
    env = PublishedWrapper(gem.make(published))
    assert env.reset(seed=1) == ("FIND THE CELL.", {"suffix": "Enter your guess."})
    assert env.step("x") == ("turn 1", 0.0, False, False, {"suffix": "Enter your guess."})
    assert env.step("x")[2:4] == (True, True)
    assert env.turn_count == 2
    assert env.spawn(size=1).unwrapped.size == 1


def test_published_env_that_resets_in_its_constructor_still_obeys_make_seed(published):
    env, expected = gem.make(published, seed=4), Published()
    env.reset()
    expected.reset(seed=4)
    assert env.cell == expected.cell


def test_published_env_runs_in_a_vector(published):
    vec = gem.make_vec([published] * 2, seed=4)
    assert vec.reset(seed=0)[0] == ["Find the cell."] * 2
    vec.step(["x", "x"])
    _, rewards, terminated, _, infos = vec.step(["x", "x"])
    assert rewards.tolist() == [0.0, 0.0]
    assert terminated.all()
    assert infos[0]["final_obs"] == "turn 2"


def test_random_actions_of_copies_are_the_same():
    env = gem.make("game:Minesweeper-v0")
    env.reset(seed=3)
    assert len({env.spawn(same_state=True).sample_random_action() for _ in range(4)}) == 1


def test_a_wrapped_copy_keeps_the_seed_given_to_make():
    wrapped = TimeLimit(gem.make("game:GuessTheNumber-v0", seed=5), 3)
    secrets = set()
    for _ in range(3):
        copy = wrapped.spawn(same_state=True)
        copy.reset()
        secrets.add(copy.game_number)
    assert len(secrets) == 1


@pytest.mark.parametrize("value", [(1, 2), {1: "one"}, {1}, object()])
def test_state_that_json_would_change_is_an_error_that_names_the_attribute(value):
    env = Dice()
    env.reset(seed=0)
    env.oddity = value
    with pytest.raises(TypeError, match=r"Dice\.oddity is not JSON data"):
        env.get_state()


def test_an_environment_may_bring_a_generator_of_its_own():
    env = Dice()
    env.rng = np.random.default_rng(0)
    assert isinstance(env.rng, np.random.Generator)


# what an environment returns


class Returns(gem.Env):
    def reset(self, seed=None):
        return "", {}

    def step(self, action):
        return None


def step_of(observation="x", reward=1.0, terminated=False, truncated=False, info=None):
    return observation, reward, terminated, truncated, {} if info is None else info


@pytest.mark.parametrize(
    "reward", [2, True, np.float32(0.5), np.float64(0.5), np.int64(3), np.array(0.25), Fraction(1, 2)]
)
def test_a_reward_is_any_number(reward):
    checked = checked_step(Returns(), step_of(reward=reward))[1]
    assert (type(checked), checked) == (float, float(reward))


@pytest.mark.parametrize(
    ("flag", "expected"), [(np.bool_(True), True), (np.array(False), False), (1, True), (0, False)]
)
def test_flags_are_bools_of_any_kind_or_0_and_1(flag, expected):
    assert checked_step(Returns(), step_of(terminated=flag))[2] is expected
    assert checked_step(Returns(), step_of(truncated=flag))[3] is expected


def test_texts_and_infos_become_plain_ones_and_a_plain_info_is_the_same_object():
    info = {"a": 1}
    assert checked_step(Returns(), [*step_of(info=info)])[4] is info
    observation, info = checked_reset(Returns(), (np.str_("x"), OrderedDict(a=1)))
    assert (type(observation), type(info), observation, info) == (str, dict, "x", {"a": 1})


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (None, "returned None, not (observation, reward, terminated, truncated, info)"),
        (("x", 1.0, True, {}), "returned ('x', 1.0, True, {}), not"),
        ("abcde", "returned 'abcde', not"),
        (step_of(5), "returned 5, a int, as observation, not a str"),
        (step_of(reward="1"), "returned '1', a str, as reward, not a finite number"),
        (step_of(reward=10**400), "a int, as reward, not a finite number"),
        (step_of(reward=float("nan")), "returned the reward nan"),
        (step_of(reward=np.float32("inf")), "returned the reward inf"),
        (step_of(terminated="False"), "returned 'False', a str, as terminated, not a bool"),
        (step_of(truncated=None), "returned None, a NoneType, as truncated, not a bool"),
        (step_of(truncated=2), "returned 2, a int, as truncated, not a bool"),
        (step_of(info=[1]), "returned [1], a list, as info, not a dict"),
        (step_of(["x" * 10**6] * 10**6), "as observation, not a str"),
    ],
)
def test_what_is_no_step_is_an_error_that_names_the_environment_and_what_it_returned(result, error):
    with pytest.raises((TypeError, ValueError), match=f"^Returns.step .*{re.escape(error)}") as raised:
        checked_step(Returns(), result)
    assert len(str(raised.value)) < 500


def test_what_is_no_reset_is_an_error_too():
    with pytest.raises(TypeError, match=r"Returns.reset returned 'xy', not \(observation, info\)"):
        checked_reset(Returns(), "xy")
    with pytest.raises(TypeError, match=r"Returns.reset returned None, a NoneType, as info, not a dict"):
        checked_reset(Returns(), ("x", None))


# errors as text


class Unspeakable(Exception):
    def __str__(self):
        raise SystemExit(3)

    __repr__ = __str__


class Nameless(type):
    @property
    def __name__(cls):
        raise RuntimeError("no name")


def test_an_errors_text_never_raises_and_is_of_limited_length():
    assert error_text(ValueError("no")) == "ValueError: no"
    assert error_text(Unspeakable()) == "Unspeakable: (its __str__ raised SystemExit)"
    assert error_text(Nameless("Odd", (Exception,), {})("no")) == "Odd: no"
    assert error_text(ValueError("\ud800")) == "ValueError: ?"
    text = error_text(type("A" * 10**6, (Exception,), {})("a" * 10**6 + "z" * 10**6))
    assert len(text) < 5000
    assert (text[0], text[-1]) == ("A", "z")


def test_an_excerpt_never_raises_and_is_of_limited_length():
    assert excerpt([1, "a"]) == "[1, 'a']"
    assert len(excerpt({"a" * 10**6: ["b" * 10**6] * 10**6})) < 300
    assert excerpt(Unspeakable()) == "<Unspeakable>"
    assert excerpt("\ud800") == "'\\ud800'"


@pytest.mark.parametrize("error", [Unspeakable(), GeneratorExit()])
def test_the_checks_report_whatever_an_environment_raises(error):
    class Raises(Dice):
        def step(self, action):
            raise error

    with pytest.raises(AssertionError, match=f"raised {type(error).__name__}: "):
        gem.testing.check_env(Raises)
