import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from gem.rollout import Episode, Turn, append_episode, begin_run, current_run, read_episodes, read_jsonl
from gem.tasks import Task


def episode(seed, split="train"):
    return Episode(Task("x", seed, split=split), "hello", [Turn([1], [2], [-0.5], "stop", "a", reward=1.0)])


def write(folder, steps, seed=0, split="train"):
    for step in steps:
        append_episode(folder, episode(seed, split), step)


def seeds(folder, split="train", **of):
    return [episode.task.seed for episode in read_episodes(folder, split, **of)]


def in_a_process(code, *arguments):
    """Run code in a process of its own that has this file's functions."""
    source = f"import sys; sys.path[:0] = {sys.path!r}\nexec(open({__file__!r}).read())\n{code}"
    return subprocess.run([sys.executable, "-c", source, *map(str, arguments)], check=True, text=True)


def test_episodes_come_back_by_split_and_step(tmp_path):
    for seed, (split, step) in enumerate([("train", 1), ("train", 1), ("train", 11), ("eval", 1), ("train", 2)]):
        append_episode(tmp_path / "new", episode(seed, split), step)
    assert read_episodes(tmp_path / "new", "train", 1) == [episode(0), episode(1)]
    assert read_episodes(tmp_path / "new", "train", 11) == [episode(2)]
    assert read_episodes(tmp_path / "new", "eval", 1) == [episode(3, "eval")]
    assert seeds(tmp_path / "new") == [0, 1, 4, 2]


def test_where_there_is_no_step_there_is_none_in_the_name(tmp_path):
    append_episode(tmp_path, episode(0))
    assert read_episodes(tmp_path, "train") == [episode(0)]
    assert read_episodes(tmp_path, "train", step=0) == []


def test_a_line_that_is_being_written_is_left_for_later(tmp_path):
    append_episode(tmp_path, episode(0))
    (file,) = tmp_path.iterdir()
    with open(file, "a") as half:
        half.write(episode(1).to_json()[:20])
    assert read_episodes(tmp_path, "train") == [episode(0)]


@pytest.mark.parametrize("split", ["train", "eval"])
def test_no_folder_has_no_episodes(tmp_path, split):
    assert read_episodes(tmp_path / "none", split) == []


def test_name_and_line_hold_run_and_step(tmp_path):
    begin_run(tmp_path / "of a run")
    for folder, run in ((tmp_path / "of a run", 1), (tmp_path / "of none", 0)):
        append_episode(folder, episode(0), np.int64(3))
        (file,) = folder.glob("train-*")
        assert file.name.startswith(f"train-3-run1-{os.getpid()}@" if run else f"train-3-{os.getpid()}@")
        line = json.loads(file.read_text())
        assert (line["run"], line["step"]) == (run, 3)
        assert list(read_jsonl(file)) == [episode(0)]


@pytest.mark.parametrize(("step", "error"), [(-1, ValueError), (1.0, TypeError), ("1", TypeError)])
def test_what_is_no_step_is_refused(tmp_path, step, error):
    with pytest.raises(error):
        append_episode(tmp_path, episode(0), step)


def test_after_a_resume_a_step_has_the_newer_run_s_episodes_only(tmp_path):
    begin_run(tmp_path)
    write(tmp_path, [1, 2, 3], seed=1)
    write(tmp_path, [3], seed=1, split="eval")
    begin_run(tmp_path, resume=True)
    write(tmp_path, [3, 4], seed=2)
    write(tmp_path, [3], seed=2, split="eval")
    assert seeds(tmp_path, "eval", step=3) == [2]
    assert seeds(tmp_path) == [1, 1, 2, 2]
    assert seeds(tmp_path, run=1) == [1, 1, 1]
    assert seeds(tmp_path, "eval", run=1, step=3) == [1]


def test_what_a_crashed_run_did_beyond_the_checkpoint_does_not_hold(tmp_path):
    begin_run(tmp_path)
    write(tmp_path, [1, 2, 3, 4, 5], seed=1)
    write(tmp_path, [2, 4], seed=1, split="eval")
    begin_run(tmp_path, resume=True)
    assert seeds(tmp_path) == [1] * 5  # as long as the new run has done nothing
    write(tmp_path, [2], seed=2, split="eval")  # it resumes after step 2, and validates before it trains
    assert seeds(tmp_path) == [1, 1]
    assert seeds(tmp_path, "eval") == [2]
    write(tmp_path, [3], seed=2)
    assert seeds(tmp_path) == [1, 1, 2]
    begin_run(tmp_path, resume=True)
    write(tmp_path, [2], seed=3)  # after step 1
    assert seeds(tmp_path) == [1, 3]
    assert seeds(tmp_path, "eval") == []


def test_episodes_without_a_step_are_of_the_newest_run_too(tmp_path):
    append_episode(tmp_path, episode(0))
    begin_run(tmp_path, resume=True)
    assert seeds(tmp_path) == [0]
    append_episode(tmp_path, episode(1))
    assert seeds(tmp_path) == [1]
    assert seeds(tmp_path, run=0) == [0]


def test_a_folder_with_episodes_is_resumed_or_refused(tmp_path):
    assert begin_run(tmp_path).number == 1
    assert begin_run(tmp_path).number == 2  # the first run ended before its first episode
    write(tmp_path, [1])
    with pytest.raises(ValueError, match="resume=True"):
        begin_run(tmp_path)
    assert begin_run(tmp_path, resume=True).number == 3


def test_workers_write_into_the_run_that_the_main_process_began(tmp_path):
    begin_run(tmp_path)
    in_a_process("write(sys.argv[1], [3], 1)", tmp_path)
    begin_run(tmp_path, resume=True)
    in_a_process("write(sys.argv[1], [3], 2)", tmp_path)
    assert seeds(tmp_path) == [2]
    assert [len(read_episodes(tmp_path, "train", run=run)) for run in (1, 2)] == [1, 1]


def test_a_process_follows_the_one_that_began_its_run_and_no_other(tmp_path):
    in_a_process("begin_run(sys.argv[1])", tmp_path)
    write(tmp_path, [1])
    in_a_process("begin_run(sys.argv[1], resume=True)", tmp_path)
    assert current_run(tmp_path).number == 1  # what this process still writes is not of the other's run
    assert begin_run(tmp_path, resume=True) == current_run(tmp_path)
    assert current_run(tmp_path).number == 3


def test_a_worker_goes_into_the_next_run_of_its_main_process(tmp_path):
    code = "print(current_run(sys.argv[1]).number, flush=True); input(); print(current_run(sys.argv[1]).number)"
    source = f"import sys; from gem.rollout import current_run\n{code}"
    begin_run(tmp_path)
    command = [sys.executable, "-c", source, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout.readline() == "1\n"
        begin_run(tmp_path, resume=True)
        assert worker.communicate("\n")[0] == "2\n"


def test_threads_of_a_process_do_not_mix_their_lines(tmp_path):
    turns = [Turn([1] * 3000, [2], None, "stop", "a" * 20_000)]
    long = [Episode(Task("x", seed), "hello", turns) for seed in range(80)]
    threads = [
        threading.Thread(target=lambda k=k: [append_episode(tmp_path, e, 1) for e in long[k::8]]) for k in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seeds(tmp_path, step=1)) == list(range(80))
