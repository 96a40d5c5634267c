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
from gem.envs.reasoning_gym import ReasoningGymEnv
from gem.envs.reasoning_gym_names import NAMES
from gem.envs.reasoning_gym_rules import HACKABLE, PARTIAL_CREDIT, is_admissible
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
QUICK = [name for name in NAMES if name not in SLOW and name not in HACKABLE]
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


@pytest.mark.parametrize("name", PARTIAL_CREDIT)
def test_the_floor_of_partial_credit_is_what_the_scorer_pays_for_junk(name):
    if name in SLOW:
        pytest.skip("slow to make")
    env = make(name, raw_scores=True)
    paid = []
    for seed in range(12):
        for text in (*JUNK, "junk", "[]", "None", "{}", "Move disk 1 from Peg 1 to Peg 2"):
            env.reset(seed=seed)
            paid.append(answer(env, text)[1])
    assert max(paid) <= PARTIAL_CREDIT[name]


def test_raw_scores_are_those_of_the_scorer():
    env, raw = make("countdown"), make("countdown", raw_scores=True)
    for each, paid in ((env, 0.0), (raw, 0.05)):
        each.reset(seed=1)
        assert answer(each, "1")[1] == paid
    raw.reset(seed=1)
    assert answer(raw, "no number")[1] == 0.01


# A data set, an answer that its scorer pays for, and how much it pays on some of the first questions. "{right}" is the
# right answer, "{other}" that of the question before, "{question}" the question itself.
UNEARNED = [
    ("time_intervals", "00:00", 0.9),
    ("time_intervals", "12:00", 0.5),
    ("time_intervals", "{right} or {other}", 0.0),
    ("time_intervals", "{right}, 00:34:28", 1.0),
    ("polynomial_equations", "0", 0.4),
    ("polynomial_equations", "1, 2", 0.00001),
    ("polynomial_equations", "{right} or {other}", 0.4),
    ("arc_agi", "0", 0.05),
    ("arc_agi", "1 2 3 4", 0.05),
    ("rearc", "0", 0.05),
    ("fraction_simplification", "0/0", 0.05),
    ("fraction_simplification", "1/2", 0.05),
    ("fraction_simplification", "{right} or {other}", 1.0),
    ("fraction_simplification", "{right} {right}", 1.0),
    ("syllogism", "Yes No", 0.3),
    ("syllogism", "Yes or No", 0.2),
    ("course_schedule", "True False", 0.4),
    ("course_schedule", "True or False", 0.3),
    ("isomorphic_strings", "True False", 0.4),
    ("ransom_note", "False, True", 0.4),
    ("acre", "{other} or {right}", 0.2),
    ("acre", "None", 0.3),
    ("mahjong_puzzle", "{right} or {other}", 0.2),
    ("coin_flip", "0", 1.0),
    ("coin_flip", "0.", 1.0),
    ("coin_flip", "1/2", 0.6),
    ("puzzle24", "1*2*3*4", 1.0),
    ("puzzle24", "6*4*1*1", 1.0),
    ("puzzle24", "5*5 - 1/2 - 1/9", 0.01),
    ("gsm_symbolic", "{right} or {other}", 1.0),
    ("gsm_symbolic", "{right} 7 8 9", 1.0),
    ("letter_jumble", "{right} or {other}", 0.9),
    ("letter_jumble", "{right} and so on", 0.9),
    ("spell_backward", "{right}{other}", 0.8),
    ("spell_backward", "{right} or {other}", 0.8),
    ("word_sorting", "{right}, {other}", 0.9),
    ("figlet_font", "{right}{other}", 0.5),
    ("knights_knaves", "{right} or Yes", 0.6),
    ("knights_knaves", "{question}", 0.6),
    ("game_of_life", "{other}", 0.8),
    ("mini_sudoku", "{other}", 0.3),
    ("mini_sudoku", "1 2 3 4\n1 2 3 4\n1 2 3 4\n1 2 3 4", 0.2),
    ("rectangle_count", "8", 0.3),
    ("calendar_arithmetic", "10", 0.05),
    ("sentence_reordering", "the", 0.05),
    ("rotate_matrix", "{question}", 0.1),
    ("number_sorting", "{right} or {other}", 0.0),
    ("gcd", "1 2 3 4", 0.1),
    ("letter_counting", "0 1 2 3 4 5 6 7 8 9", 0.04),
    ("chain_sum", "{right} or {other}", 0.3),
    ("base_conversion", "{other}, {right}", 0.3),
    ("caesar_cipher", "{right} or {other}", 0.3),
    ("bf", "{right} {other}", 0.3),
    ("tsumego", "A1 B2 C3", 0.01),
    ("tsumego", "{other} {right}", 0.3),
    ("emoji_mystery", "{right}!", 0.01),
    ("pool_matrix", "1 2 3 4", 0.0),
    ("word_sequence_reversal", "{right}, {other}", 0.3),
    ("manipulate_matrix", "{right}\n{other}", 0.3),
    ("rubiks_cube", "R R'", 0.01),
]


@pytest.mark.parametrize(("name", "template", "scorers"), UNEARNED)
def test_what_the_scorer_pays_without_an_answer_is_not_paid(name, template, scorers):
    env, raw = make(name), make(name, raw_scores=True)
    given, paid = [], []
    for seed in range(1, 9):
        other = (env.reset(seed=seed - 1), env._entry["answer"])[1]
        question = env.reset(seed=seed)[0].partition("\n\nPut your")[0]
        right = env._entry["answer"]
        text = template.format(right=right, other=other, question=question.replace("{", "").replace("}", ""))
        if right == other or right in (text, f"{text}.0"):
            continue  # a guess that is right
        raw.reset(seed=seed)
        given.append(answer(env, text)[1])
        paid.append(answer(raw, text)[1])
    assert set(given) == {0.0}
    assert max(paid) >= scorers - 1e-9


@pytest.mark.parametrize(
    ("source", "text", "entry"),
    [
        ("gsm_symbolic", "28,080", {}),
        ("gsm_symbolic", "$28080", {}),
        ("coin_flip", "5/16", {"answer": "0.3125"}),
        ("coin_flip", "0.313", {"answer": "0.31299"}),
        ("puzzle24", "(10 - 5) * 6 - 6", {"metadata": {"numbers": [5, 6, 6, 10]}}),
        ("countdown", "3*(1 + 2)", {"metadata": {"numbers": [1, 2, 3]}}),
        ("fraction_simplification", r"$\dfrac{79}{173}$", {}),
        ("quantum_lock", "A → B → C", {}),
        ("quantum_lock", "A, B, C", {}),
        ("knights_knaves", "Ann is a knight, and Bob is a knave.", {"answer": "Ann is a knight, and Bob is a knave."}),
        ("polynomial_equations", "-3.625, 0", {"answer": "-3.625, 0.0"}),
        ("time_intervals", "5", {"answer": "5 days"}),
        ("time_intervals", "18 days, 21:21", {"answer": "18 days, 21:21:12"}),
        ("game_of_life", "[[0, 1], [1, 0]]", {"answer": "[[0,1],[1,0]]"}),
        ("word_sorting", "a,b", {"metadata": {"sorted_words": ["a", "b"]}}),
    ],
)
def test_an_honest_answer_reaches_the_scorer_however_it_is_written(source, text, entry):
    assert is_admissible(source, text, entry)


@pytest.mark.parametrize("name", HACKABLE)
def test_a_data_set_that_can_be_had_without_answering_is_refused_unless_asked_for(name):
    with pytest.raises(ValueError, match="allow_hackable=True"):
        make(name)
    junk = {"complex_arithmetic": "nan", "game_of_life_halting": "junk", "propositional_logic": "(P ∨ Q)"}[name]
    env = make(name, allow_hackable=True)
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
    assert 0.9 < time.monotonic() - begin < 6  # with the start of a process, which is not counted
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
    with pytest.raises(ValueError, match="the scorer of rg:complex_arithmetic is hackable"):
        make("composite", datasets=mixture)
    make("composite", datasets=mixture, allow_hackable=True)


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


@pytest.mark.parametrize("name", ["leg_counting", "composite", "knights_knaves"])
def test_it_keeps_the_contract(name):
    check_env(f"rg:{name}")


def test_without_the_package_the_error_names_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    module._refuse_faults.cache_clear()
    with pytest.raises(ImportError, match=r"install gem-adapters\[rg\]"):
        make("leg_counting")
