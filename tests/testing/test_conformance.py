"""The conformance suite passes what is right, and finds what is wrong."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("transformers")

from gem.models.build import Recipe, new_model
from gem.rollout import ChatRenderer, Engine, Limits, rebn, run_episodes
from gem.testing.advantages import of_groups, of_turns
from gem.testing.conformance import (
    ComputedAdvantages,
    Difference,
    Harness,
    check_advantages,
    check_gradient,
    check_scenario,
    prepare,
    run,
)
from gem.testing.gradients import ComputedGradient, WeighedSequence, gradient_difference, gradient_of
from gem.testing.records import difference, every_turn, one_scalar, records_of
from gem.testing.scenarios import scenarios


class ByTheDriver(Harness):
    """A trainer that learns from exactly what the runner gives, unless it is told otherwise."""

    name = "driver"
    algorithms = ("rebn", "grpo")

    def __init__(self, tokenizer, change=lambda records: records, **limits):
        self.own_tokenizer, self.change, self.limits = tokenizer, change, limits

    def tokenizer(self, scenario=None):
        return self.own_tokenizer if scenario is None else scenario.tokenizer(self.own_tokenizer)

    def stop_ids(self, renderer):
        return renderer.stop_ids

    def episodes(self, scenario, policy):
        renderer = ChatRenderer(self.tokenizer(scenario), tool_role=scenario.tool_role)
        stop_ids = self.stop_ids(renderer)

        class Said(Engine):
            async def generate(self, prompt_ids, max_new_tokens, *, episode=0):
                return policy.respond(prompt_ids, max_new_tokens, stop_ids)

        given = {"max_turns": scenario.max_turns, "max_new_tokens": scenario.max_new_tokens}
        limits = Limits(**{**given, "max_context": scenario.max_context, **self.limits})
        make_env = scenario.make_env(self.own_tokenizer)
        return asyncio.run(run_episodes(scenario.rows, Said(), renderer, limits, make_env))

    def run(self, scenario, policy):
        return self.change([record for e in self.episodes(scenario, policy) if e.valid for record in records_of(e)])

    def compute_advantages(self, scenario, policy, algorithm):
        episodes = [e for e in self.episodes(scenario, policy) if e.valid]
        advantages = [
            (records_of(e)[0].ids, np.repeat(values, [len(t.response_ids) for t in e.turns]).tolist())
            for e, values in zip(episodes, rebn([e.rewards for e in episodes]), strict=True)
        ]
        expected = of_turns() if algorithm == "rebn" else of_groups(scenario.copies, True, 1e-4)
        return ComputedAdvantages(advantages, expected, "the reference")


@pytest.fixture
def named(tokenizer):
    return {scenario.name: scenario for scenario in scenarios(tokenizer)}


def test_what_the_driver_gives_holds_in_every_scenario(tokenizer, named):
    report = run(ByTheDriver(tokenizer), [name for name in named if name != "1,000 turns"], say=lambda line: None)
    assert [cell.verdict for cell in report.cells] == ["equal"] * (len(named) - 1)
    assert report.conformant


def test_scenarios_are_what_they_say(tokenizer, named):
    def first(name):
        return prepare(named[name], tokenizer)[0][0]

    reasons = [turn.finish_reason for turn in first("a truncated turn in the middle").turns]
    assert reasons == ["stop", "length", "stop", "stop"]
    assert first("a truncated last turn").turns[-1].finish_reason == "length"
    word = first("a word in unusual tokens").turns[1]
    assert word.action == "maybe"
    assert word.response_ids[:-1] != tokenizer("maybe", add_special_tokens=False)["input_ids"]
    assert [turn.action for turn in first("a character split over tokens").turns[1:3]] == ["\ufffd", "é"]
    assert first("an empty answer").turns[1].action == ""
    assert first("the context is full").truncation == "context"
    assert (first("the limit of turns").truncation, len(first("the limit of turns").turns)) == ("turns", 3)
    assert first("an environment that always fails").truncation == "error"

    def ends(name):
        return [episode.truncation for episode in prepare(named[name], tokenizer)[0]]

    assert ends("a failure in reset") == [None] * 4 + ["error"] * 4
    assert ends("a failure in the first turn") == [None, None, "error", None]
    assert ends("a failure in a later turn") == [None, "error", None, None]
    assert ends("an observation that is too long") == [None, None, "overlong", "overlong"]
    assert ends("an empty generation") == ends("an empty generation at first") == [None, "abort", None, None]
    assert {e.total_reward for e in prepare(named["equal returns"], tokenizer)[0]} == {0.625}
    thought = first("thoughts in an answer").turns[0]
    assert (thought.action, thought.full_text) == ("yes", "<think>no</think>yes<|im_end|>")


def test_scenarios_with_templates_of_their_own_are_what_they_say(tokenizer, named):
    def played(name):
        own = named[name].tokenizer(tokenizer)
        return own, prepare(named[name], own)[0][0]

    own, episode = played("an end of two tokens")
    ends = own.convert_tokens_to_ids(["<|end_message|>", "<|end_turn|>"])
    assert all(turn.response_ids[-2:] == ends for turn in episode.turns)
    assert own.decode(episode.turns[-1].prompt_ids).count("<|end_turn|>") == 7
    own, episode = played("an end token that is not the tokenizer's")
    assert own.eos_token == "<|end_of_text|>"
    assert [turn.action for turn in episode.turns[:2]] == ["yes", "yes no"]
    assert {turn.finish_reason for turn in episode.turns} == {"stop"}


def test_a_trainer_whose_engine_does_not_stop_at_the_templates_end_is_found(tokenizer, named):
    class Unstopped(ByTheDriver):
        def stop_ids(self, renderer):
            return ()

    name = "an end token that is not the tokenizer's"
    assert check_scenario(ByTheDriver(tokenizer), named[name], tokenizer).verdict == "equal"
    assert check_scenario(Unstopped(tokenizer), named[name], tokenizer).verdict == "broken"


def test_a_trainer_that_learns_from_failures_is_found(tokenizer, named):
    class Learns(ByTheDriver):
        def run(self, scenario, policy):
            return [record for e in self.episodes(scenario, policy) for record in records_of(e)]

        def compute_advantages(self, scenario, policy, algorithm):
            episodes = self.episodes(scenario, policy)
            advantages = [
                (records_of(e)[0].ids, np.repeat(values, [len(t.response_ids) for t in e.turns]).tolist())
                for e, values in zip(episodes, rebn([e.rewards for e in episodes]), strict=True)
            ]
            return ComputedAdvantages(advantages, of_turns(), "the reference")

    for name in ("a failure in the first turn", "a failure in a later turn"):
        assert check_scenario(ByTheDriver(tokenizer), named[name], tokenizer).verdict == "equal"
        assert check_scenario(Learns(tokenizer), named[name], tokenizer).verdict == "broken"
    member = "a member that fails"
    assert check_advantages(ByTheDriver(tokenizer), "rebn", tokenizer, member).verdict == "equal"
    wrong = check_advantages(Learns(tokenizer), "rebn", tokenizer, member)
    assert (wrong.verdict, "an advantage differs by" in wrong.detail) == ("broken", True)
    assert check_advantages(ByTheDriver(tokenizer), "rebn", tokenizer, "equal returns").verdict == "equal"


def test_tools_in_scenarios_have_their_role(tokenizer, named):
    def first(name):
        return prepare(named[name], tokenizer)[0][0]

    for name, role in (("a tool's answer", "user"), ("a tool's answer in the tool role", "tool")):
        shown = tokenizer.decode(first(name).turns[-1].prompt_ids)
        assert shown.count(f"<|im_end|>\n<|im_start|>{role}\n<information>") == (4 if role == "user" else 3)
    assert first("a tool's answer in the tool role").turns[2].finish_reason == "length"
    assert not first("a rewritten history").append_only
    assert "<|im_end|>" in first("special tokens' text in an observation").first_observation
    assert len({tuple(e.turns[0].response_ids) for e in prepare(named["a group of 8"], tokenizer)[0]}) > 4


def change_first(**fields):
    """Return a change of the first record: a function of each of its fields."""

    def change(records):
        first = records[0]
        return [replace(first, **{name: edit(getattr(first, name)) for name, edit in fields.items()}), *records[1:]]

    return change


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (change_first(mask=lambda m: [*m[:-1], 0]), "mask 0, expected 1"),
        (change_first(rewards=lambda r: [*r[1:], 0.0]), "rewards"),
        (change_first(logprobs=lambda p: [0.0] * len(p)), "logprobs 0.0, expected -"),
        (change_first(logprobs=lambda p: None), "no logprobs"),
        (change_first(ids=lambda ids: [*ids[:-1], 0]), "ids"),
        (change_first(ids=lambda ids: ids[:-1]), "ids, expected"),
        (lambda records: records[1:], "1 sequences, expected 2"),
        (change_first(rewards=lambda r: [float("nan")] * len(r)), "nan"),
    ],
)
def test_what_is_wrong_is_found(tokenizer, named, change, found):
    cell = check_scenario(ByTheDriver(tokenizer, change), named["several turns"], tokenizer)
    assert cell.verdict == "broken"
    assert found in cell.detail


def test_another_prompt_is_found_even_if_the_answers_fit(tokenizer, named):
    cell = check_scenario(ByTheDriver(tokenizer, max_new_tokens=3), named["a truncated turn in the middle"], tokenizer)
    assert cell.verdict == "broken"
    assert "the engine was asked for a prompt that ends" in cell.detail


def test_a_trainer_that_shows_a_tools_answer_as_the_users_is_found(tokenizer, named):
    class Deaf(ByTheDriver):
        def episodes(self, scenario, policy):
            return super().episodes(replace(scenario, tool_role=False), policy)

    assert check_scenario(Deaf(tokenizer), named["a tool's answer"], tokenizer).verdict == "equal"
    cell = check_scenario(Deaf(tokenizer), named["a tool's answer in the tool role"], tokenizer)
    assert cell.verdict == "broken"
    assert "<|im_start|>user" in cell.detail


def test_the_order_of_the_records_does_not_matter(tokenizer, named):
    harness = ByTheDriver(tokenizer, lambda records: records[::-1])
    assert check_scenario(harness, named["a group of 8"], tokenizer).verdict == "equal"


def scalar(records):
    return [replace(r, rewards=[0.0] * (len(r.rewards) - 1) + [sum(r.rewards)]) for r in records]


def test_a_declared_difference_must_be_exactly_that_one(tokenizer, named):
    def verdict(change, name="several turns"):
        harness = ByTheDriver(tokenizer, change)
        harness.differences = [Difference("one scalar", one_scalar)]
        return check_scenario(harness, named[name], tokenizer).verdict

    assert verdict(scalar) == "declared"
    assert verdict(scalar, "one clean turn") == "equal"  # where it makes no difference
    assert verdict(lambda records: records) == "broken"  # it is not there
    assert verdict(lambda records: change_first(mask=lambda m: [0] * len(m))(scalar(records))) == "broken"


def test_a_refusal_must_be_the_declared_one(tokenizer, named):
    def refuse(error):
        def change(records):
            raise error

        return change

    def verdict(change):
        harness = ByTheDriver(tokenizer, change)
        only = frozenset({"several turns"})
        harness.differences = [Difference("refused", refuses=ValueError, match="^no$", only=only)]
        return check_scenario(harness, named["several turns"], tokenizer).verdict

    assert verdict(refuse(ValueError("no"))) == "declared"
    assert verdict(refuse(KeyError("no"))) == "broken"
    assert verdict(refuse(ValueError("no memory"))) == "broken"
    assert verdict(lambda records: records) == "broken"


def test_advantages_are_held_to_the_reference(tokenizer):
    assert check_advantages(ByTheDriver(tokenizer), "rebn", tokenizer).verdict == "equal"
    wrong = check_advantages(ByTheDriver(tokenizer), "grpo", tokenizer)  # they are ReBN's
    assert (wrong.verdict, "an advantage differs by" in wrong.detail) == ("broken", True)


def test_records_of_turns(tokenizer, named):
    episodes, _ = prepare(named["several turns"], tokenizer)
    (whole,) = records_of(episodes[0])
    turns = every_turn(episodes[:1])
    assert sum(sum(record.mask) for record in turns) == sum(whole.mask)
    assert [record.rewards[-1] for record in turns] == episodes[0].rewards
    assert difference([whole], turns) == "4 sequences, expected 1"


# Gradients


def weighed(lengths):
    """Return random sequences, weighed by 1 / tokens of the batch."""
    rng = np.random.default_rng(0)
    total, sequences = sum(lengths), []
    for length in lengths:
        ids = rng.integers(0, 50, length + 5).tolist()
        advantages = rng.normal(size=length).tolist()
        sequences.append(WeighedSequence(ids, [0] * 5 + [1] * length, [1 / total] * length, advantages))
    return sequences


def summed(model, sequences, scales):
    """Return the gradient as a trainer with micro-batches would compute it, in float32, each scaled."""
    import torch

    model.zero_grad()
    for sequence, scale in zip(sequences, scales, strict=True):
        ids = torch.tensor([sequence.ids])
        chances = torch.log_softmax(model(input_ids=ids).logits[0, :-1], -1).gather(1, ids[0, 1:, None])[:, 0]
        own = chances[torch.tensor(sequence.mask[1:], dtype=torch.bool)]
        factors = torch.tensor(sequence.weights) * torch.tensor(sequence.advantages)
        (-scale * (own * factors).sum()).backward()
    return gradient_of(model)


def test_a_gradient_is_that_of_the_declared_sum_or_named_as_wrong(tokenizer):
    pytest.importorskip("torch")
    model, sequences = new_model(tokenizer, Recipe(hidden_size=32, layers=1)), weighed([3, 9, 4, 7])
    right = summed(model, sequences, [1.0] * 4)
    assert gradient_difference(ComputedGradient(right, model, sequences, ""))[0] == ""

    a_micro_batch_scaled = summed(model, sequences, [1.0, 1.0, 1.1, 1.1])
    a_mean_of_means = summed(model, sequences, [23 / 12 / 2, 23 / 12 / 2, 23 / 11 / 2, 23 / 11 / 2])
    shifted = [replace(each, advantages=[*each.advantages[1:], each.advantages[0]]) for each in sequences]
    with_the_prompt_in_the_denominator = summed(model, sequences, [23 / (23 + 4 * 5)] * 4)
    for wrong in (
        a_micro_batch_scaled,
        a_mean_of_means,
        summed(model, shifted, [1.0] * 4),
        with_the_prompt_in_the_denominator,
        {name: 1.002 * each for name, each in right.items()},
    ):
        assert "cosine" in gradient_difference(ComputedGradient(wrong, model, sequences, ""))[0]
    nothing = {name: 0 * each for name, each in right.items()}
    assert "norm of 0" in gradient_difference(ComputedGradient(nothing, model, sequences, ""))[0]
    del right["model.norm.weight"]
    assert "model.norm.weight" in gradient_difference(ComputedGradient(right, model, sequences, ""))[0]


def test_a_harness_without_its_gradient_is_broken(tokenizer):
    cell = check_gradient(ByTheDriver(tokenizer), "any", tokenizer)
    assert (cell.verdict, cell.name) == ("broken", "any")
