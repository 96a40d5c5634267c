"""Evaluate the embedded model behind a real vLLM server, and hold it against the same model in this process.

    python ci/check_vllm.py --python .venvs/openrlhf/bin/python      # an environment with vLLM (its CPU build will do)

At several temperatures: prompts arrive as they were sent, log-probabilities are those of transformers in float32 within
1e-4, and one request at a time gives the same tokens as 64. A server with vLLM's default log-probabilities is refused
at a temperature other than 1. Takes some minutes; CI does not run it.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gem.evaluation import Evaluation, evaluate
from gem.evaluation.client import Server
from gem.evaluation.server import server_agent
from gem.models.resolve import embedded_model
from gem.rollout import Limits
from gem.tasks import make_tasks

MODEL = str(embedded_model())
START_SECONDS = 420
TASKS = make_tasks("game:GuessTheNumber-v1-easy", range(32), split="eval")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, required=True, help="of an environment with vLLM")
    args = parser.parse_args()
    failed = False
    with _server(args.python, "processed_logprobs") as url, tempfile.TemporaryDirectory() as folder:
        for temperature in (0.5, 1.0, 2.0):
            one, many = (_played(url, temperature, n, Path(folder, f"{temperature}-{n}")) for n in (1, 64))
            same = _tokens(one) == _tokens(many)
            largest, count = _largest_difference(many, temperature)
            print(
                f"temperature {temperature}: {count} tokens, log-probabilities within {largest:.1e} of transformers; "
                f"1 and 64 at a time give {'the same' if same else 'OTHER'} tokens",
                flush=True,
            )
            failed |= largest > 1e-4 or not same
    with _server(args.python, "raw_logprobs") as url:
        try:
            _agent(url, 2.0)
        except ValueError as error:
            print(f"raw log-probabilities are refused: {error}")
        else:
            failed = True
            print("raw log-probabilities were not refused")
    sys.exit(failed)


def _agent(url: str, temperature: float):  # type: ignore[no-untyped-def]
    limits = Limits(max_new_tokens=24, max_context=1024)
    return server_agent(Server(url), AutoTokenizer.from_pretrained(MODEL), limits, temperature=temperature)[0]


def _played(url: str, temperature: float, concurrency: int, folder: Path) -> Evaluation:
    evaluation = evaluate(TASKS, _agent(url, temperature), folder, concurrency=concurrency)
    assert not evaluation.missing, next(iter(evaluation.failures.values()))[-1].error
    return evaluation


def _tokens(evaluation: Evaluation) -> list[list[list[int]]]:
    return [[list(turn.response_ids) for turn in evaluation.episodes[unit].turns] for unit in evaluation.units]


def _largest_difference(evaluation: Evaluation, temperature: float) -> tuple[float, int]:
    """Return by how much a log-probability differs from that of transformers, and of how many."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    largest, count = 0.0, 0
    for episode in evaluation.episodes.values():
        for turn in episode.turns:
            ids, sampled = [*turn.prompt_ids, *turn.response_ids], torch.tensor([list(turn.response_ids)]).T
            with torch.inference_mode():
                logits = model(torch.tensor([ids])).logits[0, len(turn.prompt_ids) - 1 : -1]
            expected = torch.log_softmax(logits / temperature, -1).gather(1, sampled)[:, 0]
            found = torch.tensor(list(turn.logprobs or []))
            assert len(found) == len(expected), "the server returned no log-probabilities"
            largest, count = max(largest, float((found - expected).abs().max())), count + len(found)
    return largest, count


@contextmanager
def _server(python: Path, mode: str) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(python.absolute()), "-m", "vllm.entrypoints.openai.api_server", "--model", MODEL]
    command += ["--served-model-name", "embedded", "--dtype", "float32", "--max-model-len", "1024", "--enforce-eager"]
    # A prompt of a seeded request that vLLM's CPU build cuts into two batches ends the server ("CPU Generator does not
    # use offset"), so a batch takes all of them.
    command += ["--max-num-batched-tokens", "32768"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--logprobs-mode", mode]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    sys.exit(f"vLLM did not start:\n{log.read().decode(errors='replace')[-3000:]}")
                time.sleep(1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as one:
        one.settimeout(1)
        return one.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    main()
