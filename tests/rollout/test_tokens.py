"""Tokens that are stored once: views that are to be used like lists."""

import asyncio
import copy
import json
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gem.core import Env
from gem.rollout import ChatRenderer, Engine, Episode, Limits, Response, Turn, run_episode
from gem.rollout.diff import episode_differences
from gem.rollout.tokens import Logprobs, Tokens, bridge_between
from gem.tasks import Task

IDS = st.lists(st.integers(0, 9), max_size=6)
BOUNDS = st.none() | st.integers(-8, 8)


@given(IDS, IDS, IDS)
def test_a_view_is_a_sequence_like_the_list(before, ids, after):
    view = Tokens(before).extended(ids).extended(after).part(len(before), len(before) + len(ids))
    assert view == ids
    assert ids == view
    assert (view != ids) is False
    assert view == Tokens(ids)
    assert (len(view), list(view), view.tolist(), bool(view)) == (len(ids), ids, ids, bool(ids))
    assert list(reversed(view)) == ids[::-1]
    for token in range(10):
        assert (token in view, view.count(token)) == (token in ids, ids.count(token))
    assert {type(token) for token in view} <= {int}
    assert (view + after, before + view, view + view) == (ids + after, before + ids, ids + ids)
    assert {type(total) for total in (view + after, before + view, view + view)} == {list}


@given(IDS, IDS)
def test_views_are_equal_as_lists_are(one, other):
    assert (Tokens(one) == Tokens(other)) is (one == other)
    assert (Tokens(one) == other) is (one == other)
    assert Tokens(one) != tuple(one)


@given(IDS, IDS, BOUNDS, BOUNDS, st.sampled_from([None, 1, 2, -1, -3]))
def test_a_slice_of_a_view_is_the_lists(before, ids, start, stop, step):
    view = Tokens(before).extended(ids).part(len(before))
    assert view[start:stop:step] == ids[start:stop:step]
    assert type(view[start:stop:step]) is list


@given(IDS, IDS, IDS, st.integers(0, 8), st.none() | st.integers(0, 8))
def test_a_part_of_a_view_is_the_slice(before, ids, after, start, stop):
    view = Tokens(before).extended(ids).extended(after).part(len(before), len(before) + len(ids))
    assert view.part(start, stop) == ids[start:stop]


def test_a_view_has_the_lists_items_and_ends():
    view = Tokens([1, 2, 3])
    assert (view[0], view[-1]) == (1, 3)
    for place in (3, -4):
        with pytest.raises(IndexError):
            view[place]


def test_a_view_stays_as_it_is_when_more_is_stored():
    prompt = Tokens([1, 2])
    response = prompt.extended([3]).part(2)
    longer = prompt.extended(response).extended([4, 5])
    assert (prompt, response, longer) == ([1, 2], [3], [1, 2, 3, 4, 5])
    assert longer._array is prompt._array


def test_two_continuations_of_a_view_do_not_meet():
    prompt = Tokens([1, 2])
    one, other = prompt.extended([3]), prompt.extended([4])
    assert (prompt, one, other) == ([1, 2], [1, 2, 3], [1, 2, 4])
    assert (one.extended([5]), other.extended([6])) == ([1, 2, 3, 5], [1, 2, 4, 6])


def test_a_view_cannot_be_changed_through_what_it_gives():
    view = Tokens([1, 2, 3])
    for copied in (view.tolist(), view[:], view + view, np.asarray(view)):
        copied[0] = 9
    with pytest.raises(TypeError):
        view[0] = 9
    with pytest.raises(TypeError):
        hash(view)
    assert view == [1, 2, 3]


def test_ids_that_are_no_integers_are_refused():
    for wrong in (["a"], [1.5], [None]):
        with pytest.raises(TypeError):
            Tokens(wrong)


@pytest.mark.parametrize("items", [[], [1, 2, 3]])
def test_arrays_are_copies_of_the_right_type(items):
    view = Tokens([7]).extended(items).part(1)
    array = np.array(view, dtype=np.int64)
    assert (array.tolist(), array.dtype, np.asarray(view).dtype) == (items, np.int64, np.int64)
    assert np.asarray(Logprobs(items)).dtype == np.float64
    assert np.array(view, dtype=np.float32).dtype == np.float32
    view.extended([8])  # an array that looked into it would forbid that
    assert array.tolist() == items


def test_a_long_view_is_shown_in_short():
    assert repr(Tokens([1, 2])) == "Tokens([1, 2])"
    assert repr(Logprobs([-0.5])) == "Logprobs([-0.5])"
    assert repr(Tokens(range(1000))) == f"Tokens({list(range(20))} and 980 more)"


def test_log_probabilities_keep_their_bits():
    values = [-0.1, -1e-300, -0.0, float(np.float32(-0.3))]
    assert Logprobs(values) == values
    assert [value.hex() for value in Logprobs(values)] == [value.hex() for value in values]
    assert Logprobs(np.array(values, dtype=np.float32)) == [float(value) for value in np.float32(values)]


@given(IDS, IDS, IDS, st.booleans())
def test_a_bridge_is_what_follows_prompt_and_response(prompt, response, rest, shared):
    seen = [*prompt, *response]
    own = Tokens(prompt)
    answered = own.extended(response)
    view = answered.part(len(prompt))
    following = answered.extended(rest) if shared else Tokens([*seen, *rest])
    for args in ((own, view, following), (prompt, response, [*seen, *rest]), (own, response, [*seen, *rest])):
        assert bridge_between(*args) == rest
    other = [token + 1 for token in seen]
    if seen:
        assert bridge_between(own, view, Tokens(other + rest)) is None
        assert bridge_between(own, view, answered.part(0, len(seen) - 1)) is None
        assert bridge_between(prompt, response, seen[:-1]) is None


# Episodes


class Long(Env):
    """Goes on for a number of turns."""

    blocking = False

    def __init__(self, turns):
        super().__init__()
        self._turns = turns

    def reset(self, seed=None):
        super().reset(seed)
        self.turn = 0
        return "Go.", {}

    def step(self, action):
        self.turn += 1
        return "x", 0.0, self.turn == self._turns, False, {}


class Rambling(Engine):
    """Samples a hundred tokens, and looks at nothing."""

    def __init__(self, tokenizer):
        self.ids = [*tokenizer("so " * 49, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]

    async def generate(self, prompt_ids, max_new_tokens, *, episode=0):
        return Response(list(self.ids), [-0.5] * len(self.ids), "stop")


def long_episode(tokenizer, turns):
    engine, renderer = Rambling(tokenizer), ChatRenderer(tokenizer)
    return asyncio.run(run_episode(Task("x", 0), engine, renderer, Limits(), lambda task: Long(turns)))


def tokens_of(episode):
    return len(episode.turns[-1].prompt_ids) + len(episode.turns[-1].response_ids)


def held(make):
    """Return what is made, and how many bytes it holds."""
    make()
    tracemalloc.start()
    made = make()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return made, size


def test_an_episode_stores_every_token_once(tokenizer):
    episode, size = held(lambda: long_episode(tokenizer, 200))
    read, size_read = held(lambda: Episode.from_json(episode.to_json()))
    assert read == episode
    text = sum(len(turn.action) + len(turn.observation) for turn in episode.turns)
    sampled = episode.sampled_tokens
    for held_bytes in (size, size_read):
        # 8 bytes per id and a log-probability, and the objects of a turn.
        assert held_bytes < 8 * (tokens_of(episode) + sampled) + text + 1500 * len(episode.turns)


def test_views_of_an_episode_are_those_of_lists(tokenizer):
    episode = long_episode(tokenizer, 4)
    listed = copy.deepcopy(episode)
    for turn in listed.turns:
        turn.prompt_ids, turn.response_ids = list(turn.prompt_ids), list(turn.response_ids)
        turn.logprobs = list(turn.logprobs)
    assert listed == episode
    assert episode.append_only
    assert episode.to_json() == listed.to_json()
    assert json.loads(episode.to_json())["turns"][1]["bridge_ids"]
    for one, other in zip(vars(episode.as_sequence()).values(), vars(listed.as_sequence()).values(), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(episode.as_transitions(), listed.as_transitions(), strict=True):
        np.testing.assert_array_equal(one.prompt_ids, other.prompt_ids)
        np.testing.assert_array_equal(one.logprobs, other.logprobs)
    assert episode_differences([episode], [listed]) == []


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda episode: pickle.loads(pickle.dumps(episode))])
def test_a_copy_stores_every_token_once_as_well(tokenizer, copied):
    episode = long_episode(tokenizer, 50)
    copy_of, size = held(lambda: copied(episode))
    assert copy_of == episode
    assert size < 8 * (tokens_of(episode) + episode.sampled_tokens) + 3000 * len(episode.turns)
    assert len(pickle.dumps(episode)) < 17 * tokens_of(episode) + 1000 * len(episode.turns)


def test_an_engine_cannot_change_the_ids_of_an_episode(tokenizer):
    class Rude(Rambling):
        async def generate(self, prompt_ids, max_new_tokens, *, episode=0):
            with pytest.raises((TypeError, AttributeError)):
                prompt_ids[0] = 7
            with pytest.raises(AttributeError):
                prompt_ids.append(7)
            answer = await super().generate(prompt_ids, max_new_tokens, episode=episode)
            asyncio.get_running_loop().call_soon(answer.token_ids.clear)  # its own list is not the episode's
            return answer

    renderer = ChatRenderer(tokenizer)
    episode = asyncio.run(run_episode(Task("x", 0), Rude(tokenizer), renderer, Limits(), lambda task: Long(3)))
    assert episode == long_episode(tokenizer, 3)


def test_a_turn_takes_lists_and_views_alike():
    assert Turn([1], [2], [-0.5], "stop", "a") == Turn(Tokens([1]), Tokens([2]), Logprobs([-0.5]), "stop", "a")
