"""The data sets of reasoning_gym, by the installed release itself."""

import base64
import importlib.util
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hostile_answers import CODE

import gem
from gem.envs import reasoning_gym as module
from gem.envs.reasoning_gym import CONSOLATION, PAY_FOR_JUNK, ReasoningGymEnv
from gem.envs.reasoning_gym_names import NAMES
from gem.tasks import Task
from gem.testing import check_env

pytest.importorskip("reasoning_gym")

EVALUATING = (
    "binary_matrix",
    "countdown",
    "intermediate_integration",
    "n_queens",
    "polynomial_multiplication",
    "puzzle24",
    "simple_integration",
    "spiral_matrix",
    "string_insertion",
)
"""Data sets whose scorer evaluates the answer."""

SLOW = ("futoshiki", "intermediate_integration", "knight_swap", "quantum_lock", "sudoku", "zebra_puzzles")
QUICK = [name for name in NAMES if name not in SLOW and name not in PAY_FOR_JUNK]
JUNK = ("", " ", "?!,;:", "{" * 20 + "}" * 20, "\x00", "\\boxed{}", "()", "''")


def make(name, **kwargs):
    return gem.make(f"rg:{name}", **kwargs)


def answer(env, text):
    return env.step(f"\\boxed{{{text}}}")


def test_names_are_those_of_the_installed_release():
    from reasoning_gym.factory import DATASETS

    assert set(DATASETS) == set(NAMES)


def test_registering_imports_no_reasoning_gym():
    code = "import sys, gem.envs.reasoning_gym, gem; gem.print_envs(); assert 'reasoning_gym' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("name", QUICK)
def test_a_question_depends_on_its_index_alone_and_its_answer_pays(name):
    env, other = make(name), make(name)
    other.reset(seed=9)
    for seed in (0, 3, 2**40 + 5):
        assert env.reset(seed=seed) == other.reset(idx=seed)
        try:
            action = env.reference_action()
        except NotImplementedError:
            continue
        assert env.step(action)[1:3] == (1.0, True)


@pytest.mark.parametrize("name", ["acre", "gsm_symbolic", "list_functions", "word_ladder", "pool_matrix", "chain_sum"])
def test_seeds_far_apart_ask_different_questions(name):
    env = make(name)
    assert len({env.reset(seed=seed)[0] for seed in range(0, 60, 10)}) == 6


@pytest.mark.parametrize("name", QUICK)
def test_junk_pays_nothing(name):
    env = make(name)
    for seed in range(3):
        for text in JUNK:
            env.reset(seed=seed)
            assert answer(env, text)[1] == 0.0, text


@pytest.mark.parametrize("name", CONSOLATION)
def test_what_the_scorer_pays_for_junk_is_what_is_written_down(name):
    if name in SLOW:
        pytest.skip("slow to make")
    env = make(name, raw_scores=True)
    paid = []
    for seed in range(12):
        for text in (*JUNK, "junk", "[]", "None", *(["{}"] if name != "codeio" else [])):
            env.reset(seed=seed)
            paid.append(answer(env, text)[1])
    assert 0 < max(paid) <= CONSOLATION[name]


def test_a_score_above_the_consolation_is_the_scorers_own():
    env, raw = make("countdown"), make("countdown", raw_scores=True)
    for each in (env, raw):
        each.reset(seed=1)
    assert answer(env, "1")[1] == 0.0
    assert answer(raw, "1")[1] == CONSOLATION["countdown"]
    raw.reset(seed=1)
    assert answer(raw, "no number")[1] == 0.01


@pytest.mark.parametrize("name", PAY_FOR_JUNK)
def test_a_data_set_that_can_be_had_without_answering_is_refused_unless_asked_for(name):
    with pytest.raises(ValueError, match="pay_for_junk=True"):
        make(name)
    junk = {"complex_arithmetic": "nan", "game_of_life_halting": "junk"}[name]
    env = make(name, pay_for_junk=True)
    paid = []
    for seed in range(10):
        env.reset(seed=seed)
        paid.append(answer(env, junk)[1])
    assert max(paid) == 1.0


@pytest.mark.parametrize("name", EVALUATING)
def test_code_in_an_answer_is_not_run(name, tmp_path):
    trace = tmp_path / "trace"
    env = make(name)
    for code in CODE:
        env.reset(seed=1)
        assert answer(env, code.format(path=str(trace)))[1] == 0.0
    assert not trace.exists()


def test_lists_are_read_where_the_scorer_takes_them():
    env = make("binary_matrix")
    env.reset(seed=1)
    rows = [[int(cell) for cell in row.split()] for row in env._entry["answer"].splitlines()]
    assert answer(env, repr(rows))[1] == 0.1


def test_an_integral_is_not_answered_by_itself():
    env = make("simple_integration")
    env.reset(seed=1)
    asked = pickle.loads(base64.b64decode(env._entry["pickled"]))["metadata"]
    assert answer(env, f"Integral({asked['integrand']}, {asked['variable']})")[1] == 0.0


def test_a_scorer_that_raises_is_no_crash():
    env = make("prime_factorization")
    env.reset(seed=1)
    assert answer(env, "two times three")[1:4] == (0.0, True, False)


def test_an_answer_that_takes_for_ever_to_compute_is_wrong_and_costs_nobody_else(monkeypatch):
    monkeypatch.setattr(module, "SCORE_SECONDS", 1.0)
    env = make("simple_integration")
    env.reset(seed=1)
    right = env.reference_action()
    env.step(right)  # the worker has loaded what it needs
    begin = time.monotonic()
    env.reset(seed=1)
    assert answer(env, "(x + sin(x) + 1)**999")[1:4] == (0.0, True, False)
    assert 0.9 < time.monotonic() - begin < 3
    monkeypatch.undo()
    env.reset(seed=1)
    assert env.step(right)[1] == 1.0


def test_a_sequence_that_grows_without_bound_costs_no_time(monkeypatch):
    monkeypatch.setattr(module, "MAKE_SECONDS", 10.0)
    assert make("number_sequence").reset(seed=163)[0].startswith("-9, -9, -18, -27, -45, ?")


def test_configuration_is_passed_on_and_checked():
    env = make("chain_sum", min_terms=2, max_terms=2)
    assert all(env.reset(seed=seed)[0].count(" + ") + env._entry["question"].count(" - ") == 1 for seed in range(20))
    with pytest.raises(TypeError, match="no_such"):
        make("chain_sum", no_such=1)
    with pytest.raises(ValueError, match="min_terms"):
        make("chain_sum", min_terms=-1)
    with pytest.raises(ValueError, match="not registered"):
        ReasoningGymEnv("no_such_data_set")


def test_published_arguments_are_taken():
    env = ReasoningGymEnv("leg_counting", size=500, seed=42)
    assert env.reset()[0] == env.reset(seed=42)[0]


def test_a_mixture_asks_what_it_is_made_of_and_grades_by_its_rules():
    mixture = [{"name": name, "weight": 1.0, "config": {}} for name in ("countdown", "chain_sum")]
    env = make("composite", datasets=mixture)
    sources = set()
    for seed in range(12):
        env.reset(seed=seed)
        sources.add(env._entry["source"])
        assert env.step(env.reference_action())[1] == 1.0
        env.reset(seed=seed)
        assert answer(env, "junk")[1] == 0.0
    assert sources == {"countdown", "chain_sum"}


def test_a_mixture_with_a_data_set_that_pays_for_junk_is_refused_unless_asked_for():
    mixture = [{"name": name, "weight": 1.0, "config": {}} for name in ("complex_arithmetic", "chain_sum")]
    with pytest.raises(ValueError, match="rg:complex_arithmetic pays for junk"):
        make("composite", datasets=mixture)
    make("composite", datasets=mixture, pay_for_junk=True)


def test_train_and_eval_share_no_question():
    def questions(split):
        env = make("pool_matrix")
        return {env.reset(seed=Task("rg:pool_matrix", seed, split=split).reset_seed)[0] for seed in range(50)}

    assert len(questions("train") & questions("eval")) == 0


@pytest.mark.parametrize("name", ["pool_matrix", "codeio", "bf", "knights_knaves"])
def test_questions_made_in_threads_are_those_made_alone(name):
    alone = [make(name).reset(seed=seed)[0] for seed in range(12)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda seed: make(name).reset(seed=seed)[0], range(12))) == alone


def test_the_library_is_not_imported_where_environments_are():
    code = "import sys, gem; env = gem.make('rg:bf'); env.reset(seed=1); env.step(env.reference_action())"
    code += "; assert 'reasoning_gym' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert done.stdout == b""


@pytest.mark.parametrize("name", ["leg_counting", "composite", "propositional_logic"])
def test_it_keeps_the_contract(name):
    check_env(f"rg:{name}")


def test_without_the_package_the_error_names_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    module._refuse_faults.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'gem-adapters\[rg\]'"):
        make("leg_counting")
