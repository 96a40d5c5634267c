import pytest

from gem.rollout import Episode, Turn, append_episode, read_episodes
from gem.tasks import Task


def episode(seed, split="train"):
    return Episode(Task("x", seed, split=split), "hello", [Turn([1], [2], [-0.5], "stop", "a", reward=1.0)])


def test_episodes_come_back_by_split_and_step(tmp_path):
    for seed, (split, step) in enumerate([("train", 1), ("train", 1), ("train", 11), ("eval", 1)]):
        append_episode(tmp_path / "new", episode(seed, split), step)
    assert read_episodes(tmp_path / "new", "train", 1) == [episode(0), episode(1)]
    assert read_episodes(tmp_path / "new", "train", 11) == [episode(2)]
    assert read_episodes(tmp_path / "new", "eval", 1) == [episode(3, "eval")]
    assert read_episodes(tmp_path / "new", "train") == [episode(0), episode(1), episode(2)]


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
