"""Models behind servers: exact tokens, wrong settings refused, and no fault of the server is scored."""

import asyncio
import gzip
import time

import pytest

pytest.importorskip("scipy")
pytest.importorskip("transformers")
pytest.importorskip("aiohttp")

from fake_model_server import FakeServer
from typer.testing import CliRunner

from gem.cli import app
from gem.evaluation import Budget, Prices, evaluate, read_evaluation, summarize
from gem.evaluation import client as module
from gem.evaluation.agents import AgentFailed, Misconfigured
from gem.evaluation.client import Client, Server, ServerFailed
from gem.evaluation.server import ChatAgent, probe, server_agent
from gem.evaluation.summary import outcome
from gem.rollout import Limits
from gem.tasks import make_tasks

EASY = "game:GuessTheNumber-v1-easy"
TASKS = make_tasks(EASY, range(30), split="eval")
FAULTS = {"429": 0.3, "500": 0.05, "hang": 0.02, "torn": 0.05}


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr("gem.evaluation.run.FIRST_PAUSE", 0.0)


def rows(evaluation):
    return {unit: [list(turn.response_ids) for turn in e.turns] for unit, e in evaluation.episodes.items()}


def test_episodes_are_those_of_a_healthy_server_whatever_fails(tmp_path, tokenizer):
    found = []
    for name, faults in (("healthy", {}), ("faulty", FAULTS)):
        with FakeServer(tokenizer, faults=faults, hang=1.0) as fake:
            agent, _ = server_agent(Server(fake.url, timeout=0.3), tokenizer, Limits(max_new_tokens=32))
            found.append(evaluate(TASKS, agent, tmp_path / name, concurrency=8, retries=8))
            assert (fake.failed > 20) is bool(faults)
    assert rows(found[0]) == rows(found[1])
    assert not found[1].missing
    results = [summarize(each)["environments"][EASY] for each in found]
    assert results[0]["success"] == results[1]["success"]
    assert 0.1 < results[0]["success"]["mean"] < 0.9


def test_concurrency_and_seeds(tmp_path, tokenizer):
    with FakeServer(tokenizer) as fake:
        found = [
            rows(
                evaluate(TASKS, server_agent(Server(fake.url), tokenizer, seed=seed)[0], tmp_path / name, concurrency=n)
            )
            for name, n, seed in (("a", 1, 0), ("b", 16, 0), ("c", 16, 1))
        ]
    assert found[0] == found[1] != found[2]


def test_what_a_server_can_do(tokenizer):
    prompt = tokenizer.encode("hello")
    for processed in (True, False):
        with FakeServer(tokenizer, processed=processed) as fake:
            abilities = probe(Server(fake.url), prompt)
            assert (abilities.exact, abilities.processed, abilities.seeded) == (True, processed, True)
            assert (abilities.model, abilities.max_context) == ("fake", 512)
            with pytest.raises(ValueError, match=r"name one of the server's models \(fake\)"):
                probe(Server(fake.url, "other"), prompt)
    with FakeServer(tokenizer, ids=False) as fake:
        assert not probe(Server(fake.url), prompt).exact
        with pytest.raises(ValueError, match="by text"):
            server_agent(Server(fake.url), tokenizer)
    with pytest.raises(AgentFailed, match="did not answer 2 requests"):
        probe(Server("http://127.0.0.1:1/v1"), prompt)


def test_log_probabilities_without_the_temperature_are_refused(tmp_path, tokenizer):
    with FakeServer(tokenizer, processed=False) as fake:
        with pytest.raises(ValueError, match="--logprobs-mode processed_logprobs"):
            server_agent(Server(fake.url), tokenizer, temperature=2.0)
        agent, _ = server_agent(Server(fake.url), tokenizer, temperature=1.0)
        episode = evaluate(TASKS[:1], agent, tmp_path / "one").episodes[0, 0]
        assert next(iter(episode.turns[0].logprobs)) == -0.5
    with FakeServer(tokenizer) as fake:
        agent, _ = server_agent(Server(fake.url), tokenizer, temperature=2.0)
        episode = evaluate(TASKS[:1], agent, tmp_path / "two").episodes[0, 0]
        assert next(iter(episode.turns[0].logprobs)) == -0.25


def test_the_context_is_the_servers(tmp_path, tokenizer):
    with FakeServer(tokenizer, max_model_len=20) as fake:
        agent, _ = server_agent(Server(fake.url), tokenizer)
        evaluation = evaluate(TASKS[:1], agent, tmp_path, retries=0)
        assert outcome(evaluation.failures[0, 0][0]) == "failed (overlong)"


def test_a_server_that_stays_down_is_no_result(tmp_path, tokenizer):
    with FakeServer(tokenizer) as fake:
        agent, _ = server_agent(Server(fake.url, timeout=1), tokenizer)
        fake.faults = {"500": 1.0}
        evaluation = evaluate(TASKS[:2], agent, tmp_path, retries=1)
    assert [outcome(e) for es in evaluation.failures.values() for e in es] == ["failed (abort)"] * 4
    assert "did not answer 6 requests; the last: 500" in evaluation.failures[0, 0][0].error


def test_a_chat_server_by_text(tmp_path, tokenizer):
    with FakeServer(tokenizer, faults={"429": 0.3}) as fake:
        evaluation = evaluate(TASKS[:8], ChatAgent(Server(fake.url, "fake")), tmp_path / "a", concurrency=4)
        assert not evaluation.missing
        assert evaluation.episodes[0, 0].turns[0].action.startswith("\\boxed{")
        with pytest.raises(Misconfigured, match="404"):
            evaluate(TASKS[:2], ChatAgent(Server(fake.url, "other")), tmp_path / "b")
        fake.max_model_len = 1
        evaluation = evaluate(TASKS[:1], ChatAgent(Server(fake.url, "fake")), tmp_path / "c", retries=0)
        assert outcome(evaluation.failures[0, 0][0]) == "failed (overlong)"
    with pytest.raises(ValueError, match="name the server's model"):
        ChatAgent(Server("http://127.0.0.1:1/v1"))


def test_a_chat_server_counts_tokens_for_a_budget_in_money(tmp_path, tokenizer):
    with FakeServer(tokenizer, faults={"429": 0.3}) as fake:
        agent = ChatAgent(Server(fake.url, "fake"), Limits(max_turns=3))
        whole = evaluate(TASKS[:20], agent, tmp_path / "whole")
        turns = [len(episode.turns) for episode in whole.episodes.values()]
        assert whole.sampled_tokens == 10 * sum(turns)
        assert whole.prompt_tokens == sum(100 * sum((1, 3, 5)[:n]) for n in turns)
        budget = Budget(cost=0.3 * whole.prompt_tokens, prices=Prices(1e6, 0))
        agent = ChatAgent(Server(fake.url, "fake"), Limits(max_turns=3))
        part = evaluate(TASKS[:20], agent, tmp_path / "part", concurrency=1, budget=budget)
        assert budget.cost <= part.prompt_tokens < budget.cost + 900
        agent = ChatAgent(Server(fake.url, "fake"), Limits(max_turns=3))
        rest = evaluate(TASKS[:20], agent, tmp_path / "part", resume=True)
        assert (rest.prompt_tokens, rest.sampled_tokens) == (whole.prompt_tokens, whole.sampled_tokens)
        assert read_evaluation(tmp_path / "part").prompt_tokens == whole.prompt_tokens
        fake.ids = False
        with pytest.raises(Misconfigured, match="counts no tokens"):
            evaluate(TASKS[:2], ChatAgent(Server(fake.url, "fake")), tmp_path / "none", budget=budget)


def test_the_command_says_what_the_server_can_do(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with FakeServer(tokenizer) as fake:
        arguments = ["eval", EASY, "--model", fake.url, "--tokenizer", tmp_path / "tokenizer", "--tasks", 5]
        done = CliRunner().invoke(app, [str(each) for each in [*arguments, "--out", tmp_path / "a"]])
        assert done.exit_code == 0, done.output
        assert "token ids exact, log-probabilities processed, seeds honoured, context 512 tokens" in done.output
        chat = ["eval", EASY, "--model", fake.url, "--server-model", "fake", "--chat", "--tasks", 5]
        done = CliRunner().invoke(app, [str(each) for each in [*chat, "--out", tmp_path / "b"]])
        assert "the episodes hold text" in done.output


BAD = {
    "a null id": {"token_ids": [None]},
    "an id beyond the vocabulary": {"token_ids": [10**6]},
    "a negative id": {"token_ids": [-1]},
    "an id that is no integer": {"token_ids": [1.5]},
    "a number that is none": {"token_ids": [float("inf")]},
    "ids of another prompt": {"prompt_token_ids": [1, 2, 3]},
    "log-probabilities as a list": {"logprobs": [-1.0]},
    "a log-probability that is none": {"logprobs": {"token_logprobs": [float("nan")]}},
    "a positive log-probability": {"logprobs": {"token_logprobs": [3.0]}},
    "too few log-probabilities": {"logprobs": {"token_logprobs": []}},
    "a choice that is none": None,
}


@pytest.mark.parametrize("what", BAD)
def test_answers_in_another_form_fail_their_episode_and_are_never_scored(tmp_path, tokenizer, monkeypatch, what):
    with FakeServer(tokenizer) as fake:
        agent, _ = server_agent(Server(fake.url), tokenizer)
        real, asked = Client.ask, []

        async def ask(self, path, body):
            answer = await real(self, path, body)
            asked.append(1)
            if len(asked) == 2:
                answer["choices"] = [{**answer["choices"][0], **BAD[what]}] if BAD[what] else [None]
            return answer

        monkeypatch.setattr(Client, "ask", ask)
        evaluation = evaluate(TASKS[:3], agent, tmp_path, concurrency=1)
    assert not evaluation.missing
    if what == "log-probabilities as a list":
        return  # they are left out
    assert sum(map(len, evaluation.failures.values())) == 1


@pytest.mark.parametrize(("code", "ends"), [("400", False), ("413", False), ("520", False), ("401", True)])
def test_errors_of_one_request_and_errors_of_all(tmp_path, tokenizer, code, ends):
    with FakeServer(tokenizer) as fake:
        agent, _ = server_agent(Server(fake.url), tokenizer)
        fake.faults = {code: 0.2}
        if ends:
            with pytest.raises(Misconfigured, match=r"401 .*busy"):
                evaluate(TASKS, agent, tmp_path, retries=30)
        else:
            assert not evaluate(TASKS, agent, tmp_path, retries=30).missing


def test_an_answer_that_is_all_thoughts_is_the_models(tmp_path, tokenizer, monkeypatch):
    async def ask(self, path, body):
        return {"choices": [{"message": {"content": None}, "finish_reason": "length"}]}

    monkeypatch.setattr(Client, "ask", ask)
    evaluation = evaluate(TASKS[:2], ChatAgent(Server("http://127.0.0.1:1/v1", "m")), tmp_path)
    assert [outcome(episode) for episode in evaluation.episodes.values()] == ["lost"] * 2


def test_a_server_is_bounded_and_its_redirections_and_wishes_are_too(tmp_path, tokenizer, monkeypatch):
    replies = {
        "/long": b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 20_000_000,
        "/drips": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n",
        "/bomb": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(b"0" * 200_000_000),
        "/nested": b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 1_000_000,
        "/elsewhere": b"HTTP/1.1 307 X\r\nContent-Length: 0\r\nLocation: http://127.0.0.1:1/\r\n\r\n",
        "/patience": b"HTTP/1.1 429 X\r\nContent-Length: 0\r\nRetry-After: 1e9\r\n\r\n",
    }
    said = {
        "/long": (ServerFailed, "more than 8388608 bytes"),
        "/drips": (ServerFailed, "no answer within 0.5 s"),
        "/bomb": (ServerFailed, "no JSON"),
        "/nested": (ServerFailed, "no JSON"),
        "/elsewhere": (Misconfigured, "307"),
        "/patience": (ServerFailed, "429"),
    }
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.2)

    async def serve(reader, writer):
        path = (await reader.readline()).split()[1].decode()
        writer.write(replies[path])
        while path == "/drips":
            writer.write(b"x")
            await asyncio.sleep(0.1)
        writer.close()

    async def ask():
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            client = Client(Server(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout=0.5))
            for path, (kind, message) in said.items():
                start = time.monotonic()
                with pytest.raises(kind, match=message):
                    await client.ask(path, {}, tries=2)
                assert time.monotonic() - start < 4
            await client.aclose()

    asyncio.run(ask())


def test_another_temperature_is_another_evaluation(tmp_path, tokenizer):
    with FakeServer(tokenizer) as fake:
        evaluate(TASKS[:1], ChatAgent(Server(fake.url, "fake"), temperature=0.0), tmp_path)
        with pytest.raises(ValueError, match=r"agent\.temperature differ"):
            evaluate(TASKS[:1], ChatAgent(Server(fake.url, "fake"), temperature=1.0), tmp_path, resume=True)
