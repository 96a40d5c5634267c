"""What is in a file after a crash, on a full disk, and where two runs want the same folder."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gem.files import append_lines, hold_folder, replace_file, whole_lines
from gem.rollout import Episode, Turn, append_episode, begin_run, read_episodes, read_jsonl, write_jsonl
from gem.tasks import Task

EPISODE = Episode(Task("game:Hangman-v0", 0), "Go.", [Turn([1], [2, 3], [0.0, -1.0], "stop", "a", "b", 1.0, True)])


def test_lines_of_threads_do_not_mix(tmp_path):
    path = tmp_path / "a.jsonl"

    def write(name):
        for _ in range(50):
            append_lines(path, [json.dumps(name * 5_000)])

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [json.loads(line) for _, line in whole_lines(path)]
    assert sorted(line[0] for line in lines) == sorted("abcd" * 50)
    assert all(len(line) == 5_000 and len(set(line)) == 1 for line in lines)


def limited(code):
    """Run code that may write files of 4 KiB; SIGXFSZ is ignored, so more is an OSError, as on a full disk."""
    prepare = "import resource, signal; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
    prepare += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    subprocess.run([sys.executable, "-c", prepare + code], check=True)


REFUSED = "try:\n    {}\nexcept OSError:\n    pass\nelse:\n    raise SystemExit('it was written')\n"


def test_what_does_not_fit_is_not_begun(tmp_path):
    path = tmp_path / "a.jsonl"
    append_lines(path, ['"first"'])
    limited("from gem.files import append_lines\n" + REFUSED.format(f"append_lines({str(path)!r}, ['1' * 9000])"))
    assert path.read_text() == '"first"\n'


def test_a_file_that_cannot_be_replaced_is_the_old_one(tmp_path):
    path = tmp_path / "a"
    replace_file(path, "old")
    limited("from gem.files import replace_file\n" + REFUSED.format(f"replace_file({str(path)!r}, '1' * 9000)"))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_link_stays_and_a_pipe_is_written_to(tmp_path):
    (tmp_path / "link").symlink_to("target")
    replace_file(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"
    replace_file("/dev/null", "anything")
    assert not Path("/dev/null").is_file()


def test_episodes_after_a_torn_line_are_read(tmp_path):
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [EPISODE])
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:100])
    write_jsonl(path, [EPISODE], append=True)
    with pytest.warns(UserWarning, match="line 2 is torn"):
        assert list(read_jsonl(path)) == [EPISODE, EPISODE]


def test_a_recorded_episode_after_a_torn_line_is_read(tmp_path):
    append_episode(tmp_path, EPISODE, 1)
    (file,) = tmp_path.glob("*.jsonl")
    with open(file, "ab") as stream:
        stream.write(b'{"run": 0, "step": 1, "vers')
    append_episode(tmp_path, EPISODE, 1)
    assert read_episodes(tmp_path, "train") == [EPISODE, EPISODE]


def another(code):
    """Run code in another process, and return what it writes."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout


def test_a_folder_has_one_run_at_a_time(tmp_path):
    begin_run(tmp_path / "run")
    hold_folder(tmp_path / "run")  # the same process may
    code = f"""
from gem.files import FolderInUse
from gem.rollout import begin_run
try:
    begin_run({str(tmp_path / "run")!r}, resume=True)
except FolderInUse as error:
    print(error)
"""
    assert f"is being written by another run (process {os.getpid()} on " in another(code)
    another(f"from gem.rollout import begin_run; begin_run({str(tmp_path / 'other')!r})")
    hold_folder(tmp_path / "other")  # that run has ended


HOSTILE = [
    "[" * 100_000,
    '{"version": 1}',
    '{"version": 1, "turns": 5, "task": {}}',
    '{"version": 1, "turns": [5], "task": {"env_id": "a", "seed": 0}}',
    '{"version": 1, "turns": [], "task": 5}',
    '{"version": 1, "turns": [], "task": {"env_id": 5, "seed": 0}}',
    '{"version": 1, "turns": [], "task": {"env_id": "a", "seed": 0, "env_kwargs": []}}',
    '{"version": 1, "turns": [], "task": {"env_id": "a", "seed": 1e400}}',
    '{"version": 1, "turns": [], "task": {"env_id": "a", "seed": 0}, "first_observation": 5}',
    '{"version": 1, "turns": [], "task": {"env_id": "a", "seed": 0}, "started": NaN}',
    f'{{"version": 1, "turns": [], "task": {{"env_id": "a", "seed": 0}}, "retries": {"9" * 5_000}}}',
]
BAD_TURNS = [
    {"prompt_ids": "abc"},
    {"prompt_ids": [1.5]},
    {"response_ids": [2**70]},
    {"logprobs": "x"},
    {"reward": "1"},
    {"reward": True},
    {"reward": 10**400},
    {"reward": float("nan")},
    {"terminated": 1},
    {"info": []},
    {"observation": None},
    {"action": {}},
    {"full_text": 5},
    {"surplus": 5},
]


@pytest.mark.parametrize("line", HOSTILE)
def test_lines_that_are_no_episodes_are_a_value_error(line):
    with pytest.raises(ValueError, match="not an episode"):
        Episode.from_json(line)


@pytest.mark.parametrize("change", BAD_TURNS, ids=str)
def test_turns_of_other_types_are_a_value_error(change):
    data = json.loads(EPISODE.to_json())
    data["turns"][0].update(change)
    with pytest.raises(ValueError, match="not an episode"):
        Episode.from_json(json.dumps(data))


def test_an_error_of_reading_names_file_and_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(f"{EPISODE.to_json()}\n[]\n")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: not an episode"):
        list(read_jsonl(path))
