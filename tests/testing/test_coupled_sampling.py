"""Equal weights sample equal tokens, whatever the order, and as the model would sample them."""

import copy
import sys
from collections import Counter
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

sys.path.insert(0, str(Path(__file__).parents[2] / "ci" / "cpu" / "shared"))

import hf_sampling

from gem.models.build import Recipe, new_model
from gem.testing.coupled_sampling import CoupledNoise, CoupledSampler

PROMPTS = [[5, 6, 7], [8, 9], [5, 6, 7], [5, 6, 7], [8, 9]]


@pytest.fixture(scope="module")
def model(tokenizer):
    return new_model(tokenizer, Recipe(hidden_size=32, layers=1))


def sampled(model, prompts, seed=0):
    sampler = CoupledSampler(copy.deepcopy(model), [0], seed)
    return sorted((tuple(prompt), tuple(sampler.respond(prompt, 6).token_ids)) for prompt in prompts)


def test_the_order_of_requests_changes_nothing(model):
    assert sampled(model, PROMPTS) == sampled(model, PROMPTS[::-1])
    assert sampled(model, PROMPTS) != sampled(model, PROMPTS, seed=1)


def test_the_same_prompt_again_is_answered_anew(model):
    assert len(set(sampled(model, [[5, 6, 7]] * 8))) == 8


def test_tokens_come_as_often_as_the_model_has_them(model):
    sampler = CoupledSampler(copy.deepcopy(model), [0])
    with torch.no_grad():
        chances = torch.softmax(model(torch.tensor([[5, 6, 7]])).logits[0, -1], -1)
    first = Counter(sampler.respond([5, 6, 7], 1).token_ids[0] for _ in range(2000))
    likely = set(chances.topk(len(chances) // 2).indices.tolist())
    share = sum(count for token, count in first.items() if token in likely) / 2000
    assert share == pytest.approx(float(chances[list(likely)].sum()), abs=0.05)


def test_answers_end_at_a_stop_token_or_the_limit(model):
    sampler = CoupledSampler(copy.deepcopy(model), [0])
    answer = sampler.respond([5, 6, 7], 5, stop_ids=range(1, 2000))
    assert (len(answer.token_ids), answer.finish_reason) == (1, "stop")
    assert len(answer.logprobs) == 1
    longer = CoupledSampler(copy.deepcopy(model), []).respond([5, 6, 7], 5)
    assert (len(longer.token_ids), longer.finish_reason) == (5, "length")


def test_the_cpu_engines_sample_the_same_in_any_batch(model, monkeypatch):
    monkeypatch.setattr(hf_sampling, "end_ids", lambda model: {0})
    expected = sampled(model, PROMPTS)
    for size in (1, 2, 5):
        monkeypatch.setattr(hf_sampling, "COUPLED", CoupledNoise(0))
        found = []
        for start in range(0, len(PROMPTS), size):
            batch = PROMPTS[start : start + size]
            answers = hf_sampling.sample(model, batch, [6] * len(batch), [1.0] * len(batch))
            found += [(tuple(prompt), tuple(ids)) for prompt, (ids, _) in zip(batch, answers, strict=True)]
        assert sorted(found) == expected


def test_the_seed_is_taken_from_the_environment(monkeypatch):
    monkeypatch.setenv("GEM_COUPLED_SAMPLING", "5")
    noise = CoupledNoise.from_environment()
    assert noise is not None
    assert noise.seed == 5
    monkeypatch.delenv("GEM_COUPLED_SAMPLING")
    assert CoupledNoise.from_environment() is None


def test_new_weights_are_taken(model, tokenizer):
    sampler = CoupledSampler(copy.deepcopy(model), [0])
    other = new_model(tokenizer, Recipe(hidden_size=32, layers=1, seed=7))
    sampler.take(dict(other.named_parameters()))
    assert sampler.respond([5, 6, 7], 6).token_ids == CoupledSampler(other, [0]).respond([5, 6, 7], 6).token_ids
