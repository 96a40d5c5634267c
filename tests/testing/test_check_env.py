"""Every registered environment passes; and of every check there is an environment that fails it alone."""

import copy
import importlib
import itertools
import os
import random
import sys
import textwrap
import time
from functools import partial

import pytest

import gem
from gem.core import Env, ResetNeeded
from gem.registry import ENV_REGISTRY, all_specs
from gem.testing import CheckFailed, check_env
from gem.testing.check_env import CHECKS, run_checks
from gem.wrappers import ObservationWrapper, TimeLimit


class Walk(Env):
    r"""Well-behaved: walk to 3 by ``\boxed{left}`` and ``\boxed{right}``, slipping now and then."""

    reward_range = (0.0, 1.0)
    max_turns = 12

    def __init__(self, goal=3):
        super().__init__()
        self._goal = goal
        self.turn = 0
        self.over = True
        self.place = 0
        self.visited = []

    def reset(self, seed=None):
        super().reset(seed)
        self.turn = 0
        self.over = False
        self.place = self.rng.randint(-1, 1)
        self.visited = []
        return f"You are at {self.place}. Walk to {self._goal}.", {}

    def step(self, action):
        if self.over:
            raise ResetNeeded
        self.turn += 1
        move = {"\\boxed{left}": -1, "\\boxed{right}": 1}.get(action, 0)
        self.place += move if self.rng.random() < 0.8 else -move
        self.visited.append(self.place)
        terminated = self.place == self._goal
        truncated = not terminated and self.turn >= self.max_turns
        self.over = terminated or truncated
        info = {"success": terminated, "move": "legal" if move else "illegal", "visited": list(self.visited)}
        return f"You are at {self.place}.", float(terminated), terminated, truncated, info

    def sample_random_action(self):
        return f"\\boxed{{{self.action_rng.choice(['left', 'right'])}}}"


class Question(Env):
    """One turn, no state but the question, nothing else declared."""

    max_turns = 1
    question = None

    def reset(self, seed=None):
        super().reset(seed)
        self.question = self.rng.randint(1, 9)
        return f"What is {self.question} + 1?", {}

    def step(self, action):
        if self.question is None:
            raise ResetNeeded
        right = action.strip() == str(self.question + 1)
        self.question = None
        return "", float(right), True, False, {"success": right}

    def sample_random_action(self):
        return str(self.action_rng.randint(1, 10))


class Endless(Walk):
    max_turns = None

    def step(self, action):
        if self.over:
            raise ResetNeeded
        return f"{self.rng.random()}", 0.0, False, False, {}


class Unbuildable(Walk):
    def __init__(self):
        raise OSError("no such server")


class FourResults(Walk):
    def step(self, action):
        return super().step(action)[:4]


class NotANumber(Walk):
    def step(self, action):
        observation, reward, *rest = super().step(action)
        second = self.turn == 2 and action == "\\boxed{left}"
        return observation, float("nan") if second else reward, *rest


class BothEnds(Walk):
    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, terminated or truncated, info


class InfoWithSet(Walk):
    def step(self, action):
        *rest, info = super().step(action)
        return *rest, {**info, "visited": set(self.visited)}


class InfoShared(Walk):
    def step(self, action):
        *rest, info = super().step(action)
        return *rest, {**info, "visited": self.visited}


class AnyArgument(Walk):
    def __init__(self, goal=3, **kwargs):
        super().__init__(goal)


class OwnSeed(Walk):
    instances = itertools.count()

    def __init__(self):
        super().__init__()
        self._number = next(self.instances)

    def reset(self, seed=None):
        observation, info = super().reset(seed)
        return f"{observation} Game {self._number}.", info


class Remembers(Walk):
    _best = 0

    def step(self, action):
        observation, *rest = super().step(action)
        self._best = max(self._best, self.place)
        return observation, *rest

    def reset(self, seed=None):
        observation, info = super().reset(seed)
        return f"{observation} The best so far: {self._best}.", info


class UnseededFromSystem(Walk):
    def reset(self, seed=None):
        return super().reset(random.SystemRandom().getrandbits(64) if seed is None else seed)


class TextSeed(Walk):
    def reset(self, seed=None):
        return super().reset(None if seed is None else abs(int(seed)))


class SharedScratch(Walk):
    scratch = 0

    def step(self, action):
        _, *rest = super().step(action)
        type(self).scratch = self.place
        time.sleep(1e-4)
        return f"You are at {type(self).scratch}.", *rest


class WritesGlobalRandom(Walk):
    def reset(self, seed=None):
        random.seed(0)
        return super().reset(seed)


class HiddenState(Walk):
    def reset(self, seed=None):
        result = super().reset(seed)
        self._left = self.max_turns
        return result

    def step(self, action):
        observation, *rest = super().step(action)
        self._left -= 1
        return f"{observation} {self._left} turns left.", *rest

    def spawn(self, same_state=False, **overrides):
        return copy.deepcopy(self) if same_state else super().spawn(**overrides)


class ForgetsTheEnd(Walk):
    def set_state(self, state):
        super().set_state({**state, "over": False})


class DrawsInGetState(Walk):
    def get_state(self):
        if self._rng is not None:
            self.rng.random()
        return super().get_state()


class SpawnsItself(Walk):
    def spawn(self, same_state=False, **overrides):
        if not same_state:
            return super().spawn(**overrides)
        twin = copy.copy(self)  # shares the random generator and the list
        return twin


class HoldsALambda(Walk):
    def __init__(self):
        super().__init__()
        self._rule = lambda: 0


class IllegalSamples(Walk):
    def sample_random_action(self):
        return self.action_rng.choice(["\\boxed{left}", "\\boxed{up}"])


class NoSamples(Walk):
    def sample_random_action(self):
        raise NotImplementedError("Walk samples no actions")


class SamplesFromRng(Walk):
    def sample_random_action(self):
        return f"\\boxed{{{self.rng.choice(['left', 'right'])}}}"


class FreeIllegalMoves(Walk):
    def step(self, action):
        if "boxed{right}" not in action:
            self.turn -= 1
        return super().step(action)


class RaisesOnText(Walk):
    def step(self, action):
        digits = action[len("\\boxed{") : -1]
        if digits.isdigit():
            int(digits)  # as many do: superscripts are digits too, and 5000 digits are too many
        return super().step(action)


class Slow(Walk):
    def step(self, action):
        if len(action) > 900_000:
            time.sleep(0.4)
        return super().step(action)


class Exits(Walk):
    def step(self, action):
        if "sys.exit" in action:
            sys.exit(0)
        return super().step(action)


class PaysJunk(Walk):
    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, 0.5 if action == "\\boxed{}" else reward, *rest


class PaysTooMuch(Walk):
    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, reward * 2, *rest


class PaysTooOften(Walk):
    """Each reward is within the range, their sum is not."""

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, 0.5 if "\\boxed{right}" in action else reward, *rest


class StepsPastTheEnd(Walk):
    def step(self, action):
        if self.over and self.turn:
            return "It is over.", 0.0, True, False, {}
        return super().step(action)


class StepsBeforeReset(Walk):
    def step(self, action):
        if self.over and not self.turn:
            self.reset()
        return super().step(action)


class ClosesOnce(Walk):
    def close(self):
        if self.__dict__.pop("place", None) is None:
            raise RuntimeError("closed already")


class RaisesSeldom(Walk):
    def reset(self, seed=None):
        if seed == 150:
            raise KeyError("a rare episode")
        return super().reset(seed)


class PaysHedges(Question):
    """It looks for the right answer anywhere in the text."""

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, 0.45 if "Yes" in action and "No" in action else reward, *rest


class PaysNearMisses(Question):
    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, 0.3 if "00:00" in action else reward, *rest


class TakesOneAnswerForAll(Question):
    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, 1.0 if "{nan}" in action else reward, *rest


class PaysTheQuestion(Question):
    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, 1.0 if "What is" in action else reward, *rest


class WrongReference(Walk):
    def reference_action(self):
        return "\\boxed{stay}"


BROKEN = [
    (RaisesSeldom, "random_play"),
    (WrongReference, "reference"),
    (Unbuildable, "make"),
    (FourResults, "interface"),
    (NotANumber, "types"),
    (BothEnds, "types"),
    (InfoWithSet, "info"),
    (InfoShared, "info"),
    (AnyArgument, "unknown_argument"),
    (Remembers, "reset_again"),
    (UnseededFromSystem, "unseeded_reset"),
    (TextSeed, "seed_type"),
    (SharedScratch, "threads"),
    (WritesGlobalRandom, "global_random_state"),
    (HiddenState, "state"),
    (ForgetsTheEnd, "state_of_the_end"),
    (DrawsInGetState, "get_state"),
    (SpawnsItself, "spawn"),
    (HoldsALambda, "pickle"),
    (IllegalSamples, "random_actions"),
    (NoSamples, "random_actions"),
    (SamplesFromRng, "sampling"),
    (FreeIllegalMoves, "max_turns"),
    (RaisesOnText, "hostile_text"),
    (Slow, "hostile_text"),
    (Exits, "hostile_text"),
    (PaysJunk, "junk"),
    (PaysHedges, "constant_answers"),
    (PaysNearMisses, "constant_answers"),
    (TakesOneAnswerForAll, "constant_answers"),
    (PaysTheQuestion, "constant_answers"),
    (PaysTooMuch, "reward_range"),
    (PaysTooOften, "reward_range"),
    (StepsPastTheEnd, "step_needs_reset"),
    (StepsBeforeReset, "step_needs_reset"),
    (ClosesOnce, "close"),
]

HASH_ORDERED = """
    from gem.envs.game_env.tower_of_hanoi import TowerofHanoiEnv

    class HashOrdered(TowerofHanoiEnv):
        def deal(self):
            return super().deal() + " ".join({"apple", "pear", "plum", "fig"})
"""


def failures(make_env):
    return {result.name: str(result.error) for result in run_checks(make_env) if result.error}


@pytest.fixture
def short_step_limit(monkeypatch):
    monkeypatch.setattr("gem.testing.checks.text.STEP_SECONDS", 0.3)


@pytest.mark.parametrize("env_id", [env_id for env_id in all_specs() if env_id.endswith("-easy")])
def test_a_registered_environment_passes(env_id):
    assert len(check_env(env_id)) == len(CHECKS)


@pytest.mark.parametrize("make_env", [Walk, partial(Walk, goal=2), Question, Endless])
def test_an_environment_of_ones_own_passes(make_env):
    assert check_env(make_env) == [check.name for check in CHECKS]


@pytest.mark.parametrize(
    "make_env",
    [
        lambda: TimeLimit(Walk(), max_episode_steps=5),
        lambda: ObservationWrapper(gem.make("game:TowerofHanoi-v0-easy"), include_chat_template=False),
    ],
)
def test_a_wrapped_environment_passes(make_env):
    check_env(make_env)


@pytest.mark.parametrize(("broken", "check"), BROKEN)
def test_a_fault_fails_its_check_alone(broken, check, short_step_limit):
    assert list(failures(broken)) == [check]


def walks_right(observation):
    while True:
        yield "\\boxed{right}"


def stands_still(observation):
    while True:
        yield "\\boxed{stay}"


class WinsForLess(Walk):
    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, reward / 2, *rest


def solver_result(make_env, solver):
    return next(result for result in run_checks(make_env, solver=solver) if result.name == "solver")


def test_a_solver_that_wins_passes_and_is_counted():
    result = solver_result(partial(Walk, goal=2), walks_right)
    assert result.error is None
    assert result.note == "won 10 of 10"


def test_a_solver_that_does_not_win_fails_the_environment():
    assert "won 0 of 10, where 100% were expected" in str(solver_result(Walk, stands_still).error)


def test_a_win_that_is_not_paid_in_full_fails_the_environment():
    assert "returned 0.5, not 1.0" in str(solver_result(WinsForLess, walks_right).error)


def test_an_environment_that_ignores_the_seed_fails_what_compares_new_instances():
    found = failures(OwnSeed)
    assert next(iter(found)) == "same_seed"
    assert {"same_seed", "reset_again", "unseeded_reset", "threads", "processes"} <= set(found)


@pytest.fixture
def hash_ordered(tmp_path, monkeypatch):
    (tmp_path / "hash_ordered.py").write_text(textwrap.dedent(HASH_ORDERED))
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("hash_ordered").HashOrdered
    del sys.modules["hash_ordered"]


def test_dependence_on_the_order_of_a_set_fails_in_another_process(hash_ordered):
    assert list(failures(hash_ordered)) == ["processes"]


def test_a_factory_that_cannot_be_imported_is_tested_in_another_process_too(hash_ordered):
    assert list(failures(lambda: hash_ordered())) == ["processes"]


def test_an_id_registered_in_this_process_alone_is_tested_in_another_too(hash_ordered):
    gem.register("test:HashOrdered-v0", "hash_ordered:HashOrdered")
    try:
        assert list(failures("test:HashOrdered-v0")) == ["processes"]
    finally:
        del ENV_REGISTRY["test:HashOrdered-v0"]


def local_class(start):
    class Local(Walk):
        def reset(self, seed=None):
            observation, info = super().reset(seed)
            return f"{observation} {start()}", info

    return Local


def test_a_class_that_cannot_be_imported_is_tested_in_a_fork():
    assert list(failures(local_class(lambda: ""))) == ["pickle"]
    assert list(failures(local_class(os.getpid))) == ["processes", "pickle"]


def test_without_a_fork_such_a_class_fails(monkeypatch):
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: ["spawn"])
    found = failures(local_class(lambda: ""))
    assert list(found) == ["processes", "pickle"]
    assert "top level of a module" in found["processes"]


def test_a_step_that_hangs_is_reported(short_step_limit):
    class Hangs(Walk):
        def step(self, action):
            if action == "\\boxed{nan}":
                time.sleep(2)
            return super().step(action)

    assert "hangs" in failures(Hangs)["hostile_text"]


def test_all_failures_are_reported_at_once():
    class Twice(PaysJunk, ClosesOnce):
        __module__ = __name__

    with pytest.raises(CheckFailed) as caught:
        check_env(Twice)
    checks = [line.partition(":")[0] for line in str(caught.value).splitlines()]
    assert checks == ["pickle", "close", "junk"]
    assert "empty box: 0.5" in str(caught.value)


def test_an_unknown_id_is_a_value_error():
    with pytest.raises(ValueError, match="there is no environment"):
        check_env("game:NoSuchGame-v0")


def test_global_random_state_is_left_as_it_was():
    random.seed(3)
    before = random.getstate()
    check_env(Walk)
    assert random.getstate() == before


def test_every_check_has_an_environment_that_fails_it():
    elsewhere = {"same_seed", "processes", "solver"}
    assert {check for _, check in BROKEN} | elsewhere == {check.name for check in CHECKS}
