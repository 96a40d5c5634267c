"""The CPU shims that let verl run without a GPU: the rollout by transformers, without Ray."""

import asyncio
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("verl")

import torch
from transformers import AutoModelForCausalLM

SHIMS = Path(__file__).parents[2] / "ci" / "cpu" / "verl"
sys.path.insert(0, str(SHIMS))

import hf_rollout
from verl.plugin.platform import PlatformRegistry
from verl.workers.rollout.base import get_rollout_class
from verl.workers.rollout.replica import RolloutReplicaRegistry

CONFIG = SimpleNamespace(prompt_length=64, response_length=64, seed=0)
PROMPTS = [[1, 5, 9], [7] * 20, [3, 4], list(range(10, 40))]
SAMPLED = {"temperature": 0.7, "max_tokens": 12, "logprobs": True, "top_p": 1.0, "top_k": -1}


def generate(model, prompts, params):
    async def run():
        server = hf_rollout.HFServer(CONFIG, str(model))
        return await asyncio.gather(*(server.generate(p, params, request_id=str(i)) for i, p in enumerate(prompts)))

    return asyncio.run(run())


@torch.no_grad()
def logprobs_of(model, prompt, response, temperature):
    logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1] / temperature
    return torch.log_softmax(logits.float(), dim=-1).gather(1, torch.tensor(response)[:, None])[:, 0]


def test_log_probabilities_are_those_of_the_whole_sequence_whatever_is_in_the_batch(small_model):
    model = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    for prompt, output in zip(PROMPTS, generate(small_model, PROMPTS, SAMPLED), strict=True):
        expected = logprobs_of(model, prompt, output.token_ids, 0.7)
        torch.testing.assert_close(torch.tensor(output.log_probs), expected, atol=1e-5, rtol=0)


def test_answers_end_at_the_end_token_or_at_the_limit(small_model):
    end = AutoModelForCausalLM.from_pretrained(small_model).generation_config.eos_token_id
    for output in generate(small_model, PROMPTS * 20, SAMPLED):
        assert end not in output.token_ids[:-1]
        assert len(output.token_ids) == 12 or output.token_ids[-1] == end
        assert len(output.token_ids) <= 12


def test_at_temperature_0_the_most_likely_token_is_taken(small_model):
    model = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    greedy = {**SAMPLED, "temperature": 0}
    for prompt, output in zip(PROMPTS, generate(small_model, PROMPTS, greedy), strict=True):
        with torch.no_grad():
            best = model(torch.tensor([prompt + output.token_ids])).logits[0, len(prompt) - 1 : -1].argmax(dim=-1)
        assert output.token_ids == best.tolist()


def test_the_same_prompt_is_sampled_anew_for_every_request(small_model):
    outputs = generate(small_model, [PROMPTS[0]] * 16, {**SAMPLED, "temperature": 9.0})
    assert len({tuple(output.token_ids) for output in outputs}) > 8


def test_answers_end_at_the_stop_tokens_of_their_request_too(small_model):
    model = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    likely = [int(model(torch.tensor([p])).logits[0, -1].argmax()) for p in PROMPTS]  # the first greedy tokens
    greedy = {**SAMPLED, "temperature": 0, "stop_token_ids": [likely[0]]}
    stopped, *others = generate(small_model, PROMPTS, greedy)
    assert stopped.token_ids == [likely[0]]
    assert all(likely[0] not in output.token_ids[:-1] for output in others)


def test_an_answer_has_room_in_the_context_only(small_model):
    (output,) = generate(small_model, [[7] * 120], {**SAMPLED, "max_tokens": 50})
    assert len(output.token_ids) <= 8


def test_parameters_that_it_does_not_sample_by_are_refused(small_model):
    with pytest.raises(ValueError, match=r"top_p=0\.9"):
        generate(small_model, PROMPTS, {**SAMPLED, "top_p": 0.9})


def test_new_weights_are_taken_and_those_of_another_model_refused(small_model):
    model = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    weights = {name: tensor + 0.1 for name, tensor in model.state_dict().items()}

    async def run():
        server = hf_rollout.HFServer(CONFIG, str(small_model))
        await server.load_weights(weights, global_steps=3)
        output = await server.generate(PROMPTS[0], {**SAMPLED, "temperature": 0}, request_id="")
        with pytest.raises(ValueError, match="not of this model"):
            await server.load_weights({"nonsense": torch.zeros(1)}, None)
        return output

    output = asyncio.run(run())
    model.load_state_dict(weights)
    expected = logprobs_of(model, PROMPTS[0], output.token_ids, 1.0)
    torch.testing.assert_close(torch.tensor(output.log_probs), expected, atol=1e-4, rtol=1e-4)
    assert output.extra_fields["global_steps"] == 3


def test_a_reference_model_is_not_offloaded():
    """Slow tests train with one (tests/jobs/test_verl.py): without this, FSDP2 pins memory, which needs a GPU."""
    code = "import resident_reference, verl.utils.fsdp_utils as u; print(u.CPUOffloadPolicy(pin_memory=True))"
    # In a process of its own, as the shim wants to be imported before verl's engines.
    done = subprocess.run([sys.executable, "-c", code], cwd=SHIMS, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1:] == ["None"], done.stderr


def test_verl_finds_platform_and_rollout():
    import cpu_platform

    assert PlatformRegistry.get("cpu") is cpu_platform.CpuPlatform
    assert RolloutReplicaRegistry.get("hf") is hf_rollout.HFReplica
    assert get_rollout_class("hf") is hf_rollout.HFServerAdapter
    assert cpu_platform.CpuPlatform().is_platform_available() is False  # it is never chosen unasked
