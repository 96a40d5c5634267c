"""Question answering and logic."""

import pytest

import gem
from gem.envs.qa_env import QaEnv, normalize
from gem.testing import check_env

SAME = [
    ("**Hamlet**", "Hamlet"),
    ("*Hamlet*", "Hamlet"),
    (r"\text{True}", "True"),
    (r"\textbf{Tuesday} ", "Tuesday"),
    ("Ph.D.", "PhD"),
    ("J. K. Rowling", "J.K. Rowling"),
    ("Washington, D. C.", "Washington, D.C."),
    ("5 a.m.", "5 am"),
    ("paris", "Paris"),
    ("The Beatles", "Beatles"),
    ("Hamlet.", "Hamlet"),
    ('"Hamlet"', "Hamlet"),
    ("1,000", "1000"),
    ("U.S.", "US"),
    ("New-York", "New York"),
    ("Paris, France", "Paris France"),
    ("A", "a"),
    ("−5", "-5"),
    ("(b)", "b"),
    ("AC/DC", "AC DC"),
    ("Ⅷ", "viii"),
    ("  two\n words ", "two words"),
    ("10^2", "10²"),
    ("km2", "km²"),
    ("H2O", "H₂O"),
    ("1 1/2", "1½"),
    ("1/2", "½"),
    ('"1984"', "1984"),
    ("vitamin a", "Vitamin A"),
    ("E=mc^2", "E=mc²"),
    ("５", "5"),
]
DIFFERENT = [
    ("**", "Hamlet"),
    (r"\text{}", "True"),
    ("2*3", "23"),
    ("main.py", "mainpy"),
    ("5 a.m.", "5 p.m."),
    ("**Hamlet** or **Othello**", "Hamlet"),
    ("", "A"),
    (" ", "the"),
    ("the", "A"),
    ("35", "3.5"),
    ("5", "-5"),
    ("1.0", "10"),
    ("C", "C++"),
    ("C#", "C"),
    ("A+", "A"),
    ("3/5", "35"),
    ("1,5", "15"),
    ("?", "!"),
    ("...", ""),
    ("Paris or London", "Paris"),
    ("x" * 3_000, "x" * 3_000),
    ("102", "10²"),
    ("10²", "102"),
    ("x2", "x²"),
    ("10⁻²", "10²"),
    ("11/2", "1½"),
    ("1½", "11/2"),
    ("12", "½"),
    ("102", "10₂"),
    ("510", "5'10\""),
    ("5", "5!"),
    ("Vitamin", "Vitamin A"),
    ("Hepatitis", "Hepatitis A"),
    ("Yes No", "Yes"),
    ("Yes or No", "No"),
    ("True False", "True"),
    ("A B C D", "A"),
    ("Paris London", "Paris"),
    ("Paris | London", "Paris"),
    ("not Paris", "Paris"),
    ("Par\u200bis", "Paris"),
    ("\u0420aris", "Paris"),
    ("<b>Paris</b>", "Paris"),
    ("the answer", "Paris"),
    ("1:30", "130"),
    ("12", "1 2"),
]


@pytest.mark.parametrize(("answer", "gold"), SAME)
def test_what_does_not_change_the_meaning_does_not_count(answer, gold):
    assert QaEnv.check_correct(answer, gold)


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
def test_what_changes_the_meaning_counts_and_nothing_is_no_answer(answer, gold):
    assert not QaEnv.check_correct(answer, gold)


def test_normalizing_twice_changes_nothing_more():
    for text in {text for pair in SAME + DIFFERENT for text in pair}:
        assert normalize(normalize(text)) == normalize(text)


def test_any_of_several_references_is_right_and_numbers_are_references():
    assert QaEnv.check_correct("eight", ["8", "eight"])
    assert QaEnv.check_correct("8", [8])
    assert QaEnv.check_correct("True", True)


FORGED = [
    "<answer>Paris</answer> no: <answer>London</answer>",
    "<think><answer>Paris</answer></think> I do not know. <answer></answer>",
    "<answer>Paris, London, Rome</answer>",
    "<answer>Paris",
    "Paris</answer>",
    "<ANSWER>Paris</ANSWER>",
    "<information>Doc 1: <answer>Paris</answer></information><answer>see above</answer>",
    "<answer><answer>Paris</answer></answer>",
    "\\boxed{Paris}",
    "Paris",
    "<answer>What is the capital of France?</answer>",
    "<answer>" + "Paris " * 500 + "</answer>",
]


@pytest.mark.parametrize("text", FORGED)
def test_a_forged_or_hedged_answer_earns_nothing(text):
    env = QaEnv(dataset=[{"question": "What is the capital of France?", "answer": "Paris"}])
    env.reset(seed=0)
    assert env.step(text)[1] == 0.0


@pytest.mark.parametrize("boxed", [False, True])
def test_the_form_that_is_asked_for_is_the_one_that_is_graded(boxed):
    env = QaEnv(dataset=[{"question": "Capital of France?", "answer": "Paris"}], extract_boxed=boxed)
    forms = ["<answer>Paris</answer>", "\\boxed{Paris}"]
    asked = env.reset(seed=0)[0]
    assert ("\\boxed{" in asked, "<answer>" in asked) == (boxed, not boxed)
    for form, expected in zip(forms, [not boxed, boxed], strict=True):
        env.reset(seed=0)
        assert env.step(form)[1] == float(expected)


def test_without_an_answer_the_episode_ends_and_pays_nothing():
    env = gem.make("qa:Sample")
    env.reset(seed=0)
    assert env.step("I do not know")[1:] == (0.0, True, False, {"success": False, "correct": False})


@pytest.mark.parametrize("env_id", ["qa:Sample", "logic:Sample"])
def test_samples_keep_the_contract(env_id):
    check_env(env_id)


def test_logic_asks_for_true_or_false_in_a_box_and_grades_that():
    env = gem.make("logic:Sample")
    answers = set()
    for seed in range(env.size):
        asked = env.reset(seed=seed)[0]
        assert r"\boxed{True} or \boxed{False}" in asked
        gold = env.row["answer"]
        answers.add(gold)
        for answer in ("True", "False", "true", "Maybe", ""):
            env.reset(seed=seed)
            assert env.step(f"\\boxed{{{answer}}}")[1] == float(answer.lower() == gold.lower())
        env.reset(seed=seed)
        assert env.step(f"<answer>{gold}</answer>")[1] == 0.0
    assert answers == {"True", "False"}


def test_every_statement_of_the_logic_sample_is_as_its_answer_says():
    for row in gem.make("logic:Sample")._rows:
        facts, rules, _, statement = row["question"].splitlines()
        known = {tuple(fact.split(" is ")) for fact in facts.removeprefix("Facts: ").rstrip(".").split(". ")}
        people = {name for name, _ in known}
        parsed = []
        for rule in rules.removeprefix("Rules: ").rstrip(".").split(". "):
            condition, result = rule.removeprefix("If someone is ").split(" then they are ")
            parsed.append((condition.split(" and "), result))
        while True:
            new = {
                (name, result)
                for name in people
                for conditions, result in parsed
                if all((name, condition) in known for condition in conditions)
            } - known
            if not new:
                break
            known |= new
        name, claim = statement.removeprefix("Statement: ").rstrip(".").split(" is ")
        negated = claim.startswith("not ")
        holds = (name, claim.removeprefix("not ")) in known
        assert str(holds != negated) == row["answer"], row


def test_exact_match_as_published_for_squad_is_there_to_be_chosen():
    rows = [{"question": "How cold is it?", "answer": "-5"}]
    for chosen, reward in (("strict", 0.0), ("squad", 1.0)):
        env = QaEnv(dataset=rows, exact_match=chosen)
        env.reset(seed=0)
        assert env.step("<answer>5!</answer>")[1] == reward
    env.reset(seed=0)
    assert env.step("<answer> </answer>")[1] == 0.0
    with pytest.raises(ValueError, match='exact_match must be "strict" or "squad", got \'loose\''):
        QaEnv(dataset=rows, exact_match="loose")
