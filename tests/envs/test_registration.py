import inspect
import json
import subprocess
import sys

import pytest

import gem
from gem import registry
from gem.core import EnvSpec, EnvWrapper
from gem.wrappers import TimeLimit

GUESS = ("min_number", "max_number", "max_turns", "shaped")
MASTERMIND = ("code_length", "num_numbers", "max_turns")
MINESWEEPER = ("rows", "cols", "num_mines", "max_turns")
HANOI = ("num_disks", "max_turns", "shaped")
WORDS = ("word_length", "max_turns")
FIFTEEN = ("num_rows", "max_turns", "shaped")
SUDOKU = ("scale", "clues", "max_turns")
GAME_2048 = ("target_tile", "max_turns")
SOKOBAN = ("dim_room", "num_boxes", "max_turns", "shaped")
HIDDEN = ("hardcore", "num_words", "max_turns")
PUBLISHED = {
    "game:GuessTheNumber-v0": (GUESS, (1, 50, 7, True)),
    "game:GuessTheNumber-v0-hard": (GUESS, (1, 50, 7, True)),
    "game:GuessTheNumber-v0-easy": (GUESS, (1, 10, 4, True)),
    "game:GuessTheNumber-v0-random": (GUESS, (None, None, None, True)),
    "game:GuessTheNumber-v1": (GUESS, (1, 50, 7, False)),
    "game:GuessTheNumber-v1-hard": (GUESS, (1, 50, 7, False)),
    "game:GuessTheNumber-v1-easy": (GUESS, (1, 10, 4, False)),
    "game:GuessTheNumber-v1-random": (GUESS, (None, None, None, False)),
    "game:Mastermind-v0-hard": (MASTERMIND, (4, 8, 30)),
    "game:Mastermind-v0-easy": (MASTERMIND, (2, 6, 10)),
    "game:Mastermind-v0-random": (MASTERMIND, (None, None, None)),
    "game:Minesweeper-v0-hard": (MINESWEEPER, (8, 8, 12, 64)),
    "game:Minesweeper-v0-easy": (MINESWEEPER, (5, 5, 5, 25)),
    "game:Minesweeper-v0-random": (MINESWEEPER, (None, None, None, None)),
    "game:Wordle-v0-hard": (WORDS, (5, 25)),
    "game:Wordle-v0-easy": (WORDS, (3, 15)),
    "game:Wordle-v0-random": (WORDS, (None, None)),
    "game:FifteenPuzzle-v0-hard": (FIFTEEN, (4, 50, True)),
    "game:FifteenPuzzle-v0-easy": (FIFTEEN, (2, 10, True)),
    "game:FifteenPuzzle-v0-random": (FIFTEEN, (None, None, True)),
    "game:Hangman-v0-hard": (WORDS, (7, 20)),
    "game:Hangman-v0-easy": (WORDS, (3, 10)),
    "game:Hangman-v0-random": (WORDS, (None, None)),
    "game:Sudoku-v0-hard": (SUDOKU, (9, 50, 50)),
    "game:Sudoku-v0-easy": (SUDOKU, (4, 10, 15)),
    "game:Sudoku-v0-random": (SUDOKU, (None, None, None)),
    "game:TowerofHanoi-v0-hard": (HANOI, (5, 35, True)),
    "game:TowerofHanoi-v0-easy": (HANOI, (3, 10, True)),
    "game:TowerofHanoi-v0-random": (HANOI, (None, None, True)),
    "game:TowerofHanoi-v1-easy": (HANOI, (3, 10, False)),
    "game:Game2048-v0-easy": (GAME_2048, (64, 50)),
    "game:Game2048-v0-hard": (GAME_2048, (512, 50)),
    "game:Game2048-v0-extreme-hard": (GAME_2048, (2048, 100)),
    "game:Game2048-v0-random": (GAME_2048, (None, None)),
    "game:Sokoban-v0-hard": (SOKOBAN, ((8, 8), 4, 50, True)),
    "game:Sokoban-v0-easy": (SOKOBAN, ((6, 6), 2, 20, True)),
    "game:Sokoban-v0-random": (SOKOBAN, (None, None, None, True)),
    "game:Crosswords-v0-hard": (HIDDEN, (True, 3, 40)),
    "game:Crosswords-v0-easy": (HIDDEN, (False, 3, 30)),
    "game:Crosswords-v0-random": (HIDDEN, (None, None, None)),
    "game:WordSearch-v0-hard": (HIDDEN, (True, 5, 20)),
    "game:WordSearch-v0-easy": (HIDDEN, (False, 5, 20)),
    "game:WordSearch-v0-random": (HIDDEN, (None, None, None)),
}


class Seeded(gem.Env):
    def __init__(self, seed=0, size=1):
        super().__init__()
        self.seed, self.size = seed, size

    def reset(self, seed=None):
        super().reset(seed)
        return f"{self.seed} {self.size} {self.rng.random()}", {}

    def step(self, action):
        return "", 0.0, True, False, {}


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    monkeypatch.setattr(registry, "ENV_REGISTRY", dict(registry.ENV_REGISTRY))


def run(script, path=""):
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(path)},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result


# ids and arguments


@pytest.mark.parametrize("env_id", PUBLISHED)
def test_published_id_has_its_parameters(env_id):
    names, values = PUBLISHED[env_id]
    assert registry.find_spec(env_id).kwargs == dict(zip(names, values, strict=True))
    env = gem.make(env_id)
    env.reset(seed=0)
    assert env.env_id == env_id
    assert env.max_turns > 0


def test_plain_ids_of_games_are_the_hard_ones():
    specs = registry.all_specs()
    for env_id in specs:
        if env_id.startswith("game:") and env_id.endswith("-hard") and not env_id.endswith("-extreme-hard"):
            assert specs[env_id.removesuffix("-hard")].kwargs == specs[env_id].kwargs


def test_spec_rebuilds_the_env_with_its_overrides():
    env = gem.make("game:GuessTheNumber-v0-easy", max_number=40)
    again = gem.make(env.spec.id, **env.spec.kwargs)
    assert again.reset(seed=3) == env.reset(seed=3)
    assert "to 40" in again.reset(seed=3)[0]


def test_overrides_do_not_change_the_registry():
    gem.make("game:GuessTheNumber-v0-easy", max_number=40)
    assert gem.make("game:GuessTheNumber-v0-easy").spec.kwargs["max_number"] == 10


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("game:GuessTheNumber-v0-eazy", "game:GuessTheNumber-v0-easy"),
        ("game:guessthenumber-v0", "game:GuessTheNumber-v0"),
        ("TowerOfHanoi-v0-hard", "game:TowerofHanoi-v0-hard"),
    ],
)
def test_unknown_id_is_answered_with_the_nearest(wrong, near):
    with pytest.raises(ValueError, match=f"no environment '{wrong}'. The nearest: .*{near}[,.]"):
        gem.make(wrong)


def test_id_unlike_any_other_is_answered_without_guesses():
    with pytest.raises(ValueError, match=r"no environment 'zzz'\. `gem envs` lists"):
        gem.make("zzz")


def test_unknown_argument_is_answered_with_those_there_are():
    with pytest.raises(TypeError, match="TowerofHanoi-v0 takes no argument 'disks'; it takes num_disks, max_turns"):
        gem.make("game:TowerofHanoi-v0", disks=4)


def test_taken_id_is_refused():
    gem.register("my:Env-v0", Seeded)
    with pytest.raises(ValueError, match="'my:Env-v0' is registered already"):
        gem.register("my:Env-v0", Seeded)


def test_entry_point_may_be_a_class_a_function_or_a_name():
    gem.register("my:Class-v0", Seeded, size=2)
    gem.register("my:Function-v0", lambda limit=3: TimeLimit(Seeded(), limit))
    gem.register("my:Name-v0", "gem.envs.game_env.tower_of_hanoi:TowerofHanoiEnv", num_disks=2)
    assert gem.make("my:Class-v0").size == 2
    assert gem.make("my:Function-v0", limit=4).max_turns == 4
    assert "2 disks" in gem.make("my:Name-v0").reset(seed=0)[0]


@pytest.mark.parametrize("entry_point", ["no_such_package.envs:Env", "gem.core:NoSuchEnv", "gem.core"])
def test_entry_point_that_cannot_be_loaded_is_an_import_error_that_names_it(entry_point):
    gem.register("my:Broken-v0", entry_point)
    with pytest.raises(ImportError, match=f"my:Broken-v0 from {entry_point}"):
        gem.make("my:Broken-v0")


def test_env_whose_module_needs_a_missing_package_is_an_import_error_that_names_the_package(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    gem.register("my:NeedsMore-v0", "needs_more:Env")
    with pytest.raises(ImportError, match="no_such_package"):
        gem.make("my:NeedsMore-v0")


def test_print_envs_prints_a_line_an_id(capsys):
    gem.print_envs()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == list(registry.all_specs())


# seeds


def test_make_seed_seeds_the_first_reset_only():
    a, b = (gem.make("game:Mastermind-v0", seed=s) for s in (4, None))
    assert (a.reset(), a.game_code) == (b.reset(seed=4), b.game_code)
    assert (a.reset(), a.game_code) == (b.reset(), b.game_code)


def test_make_seed_gives_way_to_the_seed_of_reset():
    a, b = (gem.make("game:Mastermind-v0", seed=s) for s in (4, 5))
    assert (a.reset(seed=6), a.get_state()) == (b.reset(seed=6), b.get_state())


def test_make_seed_reaches_a_constructor_that_takes_one():
    gem.register("my:Seeded-v0", Seeded)
    env = gem.make("my:Seeded-v0", seed=8)
    assert env.seed == 8
    assert env.reset() == Seeded(8).reset(seed=8)


def test_make_refuses_bad_seeds():
    with pytest.raises(TypeError, match="seed"):
        gem.make("game:Mastermind-v0", seed="1")


# make_vec


def test_make_vec_has_its_published_signature():
    empty = inspect.Parameter.empty
    added = {"backend", "autoreset_mode", "timeout", "workers", "backend_kwargs"}
    parameters = inspect.signature(gem.make_vec).parameters
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in added)
    assert [(p.name, p.default) for p in parameters.values() if p.name not in added] == [
        ("env_ids", empty),
        ("wrappers", None),
        ("vec_kwargs", None),
        ("async_mode", False),
        ("seed", 0),
        ("kwargs", empty),
    ]


def test_make_vec_seeds_env_i_with_seed_plus_i():
    vec = gem.make_vec(["game:Mastermind-v0"] * 3, None, None, False, 10)
    expected = [gem.make("game:Mastermind-v0") for _ in range(3)]
    assert vec.reset()[0] == [env.reset(seed=10 + i)[0] for i, env in enumerate(expected)]
    assert [env.game_code for env in vec.envs] == [env.game_code for env in expected]


def test_make_vec_wraps_in_order_and_passes_arguments_to_each_and_to_all():
    gem.register("my:Seeded-v0", Seeded)
    vec = gem.make_vec(
        ["my:Seeded-v0"] * 2, [EnvWrapper, lambda env: TimeLimit(env, 2)], [{}, {"seed": 99}], seed=5, size=3
    )
    assert [type(env).__name__ for env in (vec.envs[0], vec.envs[0].env)] == ["TimeLimit", "EnvWrapper"]
    assert [(env.seed, env.size) for env in vec.envs] == [(5, 3), (99, 3)]


def test_make_vec_takes_one_id_alone():
    assert gem.make_vec("game:Mastermind-v0").num_envs == 1


def test_make_vec_does_not_change_the_callers_vec_kwargs():
    own = [{"max_turns": 2}]
    gem.make_vec("game:Mastermind-v0", vec_kwargs=own, seed=3)
    assert own == [{"max_turns": 2}]


def test_make_vec_refuses_vec_kwargs_of_another_length():
    with pytest.raises(ValueError, match="1 entries for 2"):
        gem.make_vec(["game:Mastermind-v0"] * 2, vec_kwargs=[{}])


def test_make_vec_async_mode_gives_the_same_results():
    with gem.make_vec(["game:Mastermind-v0"] * 2, async_mode=True, seed=3) as vec:
        assert vec.reset() == gem.make_vec(["game:Mastermind-v0"] * 2, seed=3).reset()


# tools


def test_make_wraps_an_environment_in_the_tools_that_are_named():
    env = gem.make("game:GuessTheNumber-v0-easy", seed=3, tools="python+search")
    assert [tool.tool_type for tool in env.tools] == ["python_code", "search"]
    assert "<python>" in env.reset()[0]
    assert [tool.tool_type for tool in env.spawn().tools] == ["python_code", "search"]
    assert type(gem.make("game:GuessTheNumber-v0-easy", tools=[])).__name__ == "GuessTheNumberEnv"
    with pytest.raises(ValueError, match="there is no tool 'moon'; there are python, search"):
        gem.make("game:GuessTheNumber-v0-easy", tools="python,moon")


def test_make_applies_wrappers_by_name_around_tools():
    env = gem.make("game:GuessTheNumber-v0-easy", tools="python", wrappers="concat,episode_tracking")
    names = [type(env).__name__, type(env.env).__name__, type(env.env.env).__name__]
    assert names == ["EpisodeTrackingWrapper", "ObservationWrapper", "ToolEnvWrapper"]
    assert type(gem.make("game:GuessTheNumber-v0-easy", wrappers=["concat"])).__name__ == "ObservationWrapper"
    with pytest.raises(ValueError, match="there is no wrapper 'moon'"):
        gem.make("game:GuessTheNumber-v0-easy", wrappers="moon")
    with pytest.raises(ValueError, match="needs a tokenizer"):
        gem.make("game:GuessTheNumber-v0-easy", wrappers="concat_chat")


def test_an_environment_that_takes_tools_gets_them_itself():
    class Own(gem.Env):
        def __init__(self, tools=()):
            super().__init__()
            self.own = tools

        def reset(self, seed=None):
            return "", {}

        def step(self, action):
            return "", 0.0, True, False, {}

    gem.register("test:Own-v0", Own)
    try:
        assert gem.make("test:Own-v0", tools="hammer").own == "hammer"
    finally:
        del registry.ENV_REGISTRY["test:Own-v0"]


# importing


def test_import_gem_is_light_silent_and_configures_no_logging():
    script = """
import logging, sys
import gem
heavy = {"torch", "transformers", "reasoning_gym", "rich", "typer", "trl", "datasets"} & set(sys.modules)
assert not heavy, heavy
assert not logging.root.handlers and logging.root.level == logging.WARNING
assert not [name for name in sys.modules if name.startswith("gem.envs.game_env.")]
"""
    result = run(script)
    assert (result.stdout, result.stderr) == ("", "")


@pytest.fixture
def third_party(tmp_path):
    """A folder in which another package, with an entry point, is installed."""
    (tmp_path / "mylab.py").write_text(
        "import gem\n"
        "class Maze(gem.Env):\n"
        "    def reset(self, seed=None):\n"
        "        super().reset(seed)\n"
        "        return 'a maze', {}\n"
        "    def step(self, action):\n"
        "        return 'out', 1.0, True, False, {}\n"
    )
    info = tmp_path / "mylab-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mylab\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[gem.envs]\nmylab:Maze-v0 = mylab:Maze\n")
    return tmp_path


def test_env_of_another_package_is_listed_without_importing_it_and_imported_by_make(third_party):
    script = """
import json, sys
from gem.envs.registration import make
from gem.registry import all_specs
entry_point = all_specs()["mylab:Maze-v0"].entry_point
before = "mylab" in sys.modules
observation, _ = make("mylab:Maze-v0").reset()
print(json.dumps([entry_point, before, "mylab" in sys.modules, observation]))
"""
    assert json.loads(run(script, third_party).stdout) == ["mylab:Maze", False, True, "a maze"]


def test_env_of_another_package_is_found_by_make_alone(third_party):
    assert run("import gem; print(gem.make('mylab:Maze-v0').env_id)", third_party).stdout == "mylab:Maze-v0\n"


def test_id_that_another_package_asks_for_but_is_taken_stays_as_it_is_with_a_warning(third_party):
    path = third_party / "mylab-1.0.dist-info" / "entry_points.txt"
    path.write_text("[gem.envs]\ngame:Mastermind-v0 = mylab:Maze\n")
    script = """
import warnings
from gem.registry import all_specs
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    spec = all_specs()["game:Mastermind-v0"]
print("mylab" not in spec.entry_point, any("mylab:Maze" in str(w.message) for w in caught))
"""
    assert run(script, third_party).stdout == "True True\n"


def test_a_module_that_raises_while_it_is_imported_is_an_import_error(tmp_path, monkeypatch):
    (tmp_path / "broken_maze.py").write_text("raise RuntimeError('licence not found')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match=r"cannot load mylab:Broken-v0 .*licence not found"):
        EnvSpec("mylab:Broken-v0", "broken_maze:Maze").load()


def test_an_entry_point_may_be_nested(tmp_path, monkeypatch):
    (tmp_path / "nested_maze.py").write_text("class Outer:\n    class Inner: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert EnvSpec("mylab:Nested-v0", "nested_maze:Outer.Inner").load().__name__ == "Inner"


@pytest.mark.parametrize("seed", ["a", 1.5])
def test_make_vec_refuses_a_seed_that_is_no_integer(seed):
    with pytest.raises(TypeError, match="seed must be a non-negative integer or None"):
        gem.make_vec(["game:GuessTheNumber-v0-easy"], seed=seed)


def test_make_vec_without_a_seed_seeds_from_the_operating_system():
    secrets = set()
    for _ in range(20):
        vec = gem.make_vec(["game:GuessTheNumber-v0-hard"], seed=None)
        vec.reset()
        secrets.add(vec.envs[0].game_number)
    assert len(secrets) > 1


def test_a_constructor_that_takes_anything_is_given_the_seed():
    seen = []

    def build(**kwargs):
        seen.append(kwargs)
        return gem.make("game:GuessTheNumber-v0-easy")

    gem.register("mylab:Anything-v0", build)
    try:
        gem.make_vec(["mylab:Anything-v0"] * 2, seed=5)
    finally:
        del registry.ENV_REGISTRY["mylab:Anything-v0"]
    assert [kwargs["seed"] for kwargs in seen] == [5, 6]
