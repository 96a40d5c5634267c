"""What stands in for sglang and flash-attn says what the real ones would."""

import asyncio
import base64
import importlib.util
import pickle
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("RL2") is None:
    pytest.skip("rl-square is not installed", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parents[2] / "ci" / "cpu" / "rl2"))

import rl2_cpu
import sglang_server
import torch
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer


def test_packed_attention_looks_at_its_own_sequence_only():
    lengths, heads, groups, width = [3, 1, 7, 4], 4, 2, 8
    torch.manual_seed(0)
    query = torch.randn(sum(lengths), heads, width)
    key, value = (torch.randn(sum(lengths), groups, width) for _ in range(2))
    ends = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    got = rl2_cpu.packed_attention(query, key, value, ends, softmax_scale=0.3)
    parts = []
    for q, k, v in zip(*(tensor.split(lengths) for tensor in (query, key, value)), strict=True):
        k, v = (tensor.repeat_interleave(heads // groups, dim=1) for tensor in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * 0.3
        scores = scores.masked_fill(torch.ones(len(q), len(q)).triu(1).bool(), -torch.inf)
        parts.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
    torch.testing.assert_close(got, torch.cat(parts), atol=1e-5, rtol=1e-5)


def test_sequences_on_several_devices_are_refused():
    with pytest.raises(NotImplementedError, match=r"actor\.sp_size"):
        rl2_cpu._one_device(torch.tensor([0, 3]), True, 0, 2)


def serve(server, talk):
    async def run():
        app = web.Application(client_max_size=1 << 30)
        for name in ("generate", "update_weights_from_tensor", "get_weights_by_name"):
            app.router.add_post(f"/{name}", getattr(server, name))
        serving = asyncio.ensure_future(server.serve())
        async with TestClient(TestServer(app)) as client:

            async def ask(path, **message):
                response = await client.post(f"/{path}", json=message)
                return response.status, await response.json()

            await talk(ask)
        serving.cancel()

    asyncio.run(run())


def test_the_server_samples_what_the_model_says(small_model):
    server = sglang_server.Server(str(small_model))
    prompts = [[1, 5, 9], [7] * 20, [3]]

    async def talk(ask):
        params = {"temperature": 0.7, "max_new_tokens": 9, "stop": None, "no_stop_trim": True}
        answers = await asyncio.gather(
            *(ask("generate", input_ids=ids, sampling_params=params, return_logprob=True) for ids in prompts)
        )
        for prompt, (status, answer) in zip(prompts, answers, strict=True):
            assert status == 200
            meta = answer["meta_info"]
            logprobs, ids, _ = zip(*meta["output_token_logprobs"], strict=True)
            with torch.no_grad():
                logits = server.model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1] / 0.7
            expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(logprobs), expected, atol=1e-5, rtol=0)
            assert meta["completion_tokens"] == len(ids)
            ended = ids[-1] == server.tokenizer.eos_token_id
            assert meta["finish_reason"]["type"] == ("stop" if ended else "length")
            assert answer["text"] == server.tokenizer.decode(ids, skip_special_tokens=True)
        for wrong in ({"top_p": 0.5}, {"stop": ["x"]}, {"max_new_tokens": 10**6}):
            status, answer = await ask("generate", input_ids=[1], sampling_params={**params, **wrong})
            assert status == 400
            assert answer["error"]["message"]

    serve(server, talk)


def test_weights_that_are_pushed_are_the_servers(small_model):
    server = sglang_server.Server(str(small_model))
    name = "model.layers.0.self_attn.q_proj.weight"
    new = torch.randn_like(server.model.state_dict()[name])

    def payload(name):
        tensor = rl2_cpu.local_serialized_tensor(values=[rl2_cpu.MultiprocessingSerializer.serialize(new)])
        named = rl2_cpu.MultiprocessingSerializer.serialize([(name, tensor)])
        return {"serialized_named_tensors": [base64.b64encode(named).decode()], "flush_cache": True}

    async def talk(ask):
        assert (await ask("update_weights_from_tensor", **payload(name)))[1]["success"]
        _, got = await ask("get_weights_by_name", name=name, truncate_size=10**6)
        torch.testing.assert_close(torch.tensor(got), new, atol=0, rtol=0)
        assert torch.equal(server.model.get_parameter(name), new)
        status, answer = await ask("update_weights_from_tensor", **payload("no.such.weight"))
        assert (status, answer["success"]) == (400, False)

    serve(server, talk)
    assert pickle.loads(rl2_cpu.MultiprocessingSerializer.serialize(new)).equal(new)
