"""Does code written for gem-llm 0.1.0 run here? Hold every public name of that package, and every id, against this one.

    python ci/dropin.py            # in the environment of the tests; makes .venvs/gem-llm
    python ci/dropin.py --games    # also play the games of both packages, and run tests/dropin in both

Each name that is absent, each that refuses to work, and each function whose parameters differ must be in a table of
docs/differences.md, and nothing else may be there. At most 5% of the names may be absent.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TABLES = ROOT / "docs" / "differences.md"
MOST_ABSENT = 0.05
HEADINGS = {
    "absent": "Names that are absent",
    "refused": "Names that refuse",
    "parameters": "Parameters that differ",
}
_ENTRY = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / ".venvs" / "gem-llm", help="the environment of gem-llm")
    parser.add_argument("--games", action="store_true", help="also play the games, and run tests/dropin in both")
    args = parser.parse_args()
    subprocess.run([sys.executable, ROOT / "ci" / "venv.py", "gem-llm", "--folder", args.folder], check=True)
    python = args.folder / "bin" / "python"
    (package,) = args.folder.glob("lib/python*/site-packages/gem")
    surface = json.loads(_output(sys.executable, ROOT / "ci" / "dropin_surface.py", package))
    ids = json.loads(_output(python, "-I", "-W", "ignore", "-c", _IDS))
    print(f"gem-llm 0.1.0 has {len(surface)} public names and {len(ids)} ids")
    failures = [*_compare(surface), *_unknown_ids(ids)]
    for failure in failures:
        print(f"✗ {failure}")
    if args.games:
        for command in (
            [sys.executable, ROOT / "ci" / "dropin_games.py", python],
            [sys.executable, "-m", "pytest", "-q", "tests/dropin"],
            [python, "-I", "-m", "pytest", "-q", "-c", "/dev/null", "--noconftest", "tests/dropin"],
        ):
            print("\n$", *command, flush=True)
            if subprocess.run(list(map(str, command)), cwd=ROOT, check=False).returncode != 0:
                failures.append(f"{command[1]} failed")
    if failures:
        sys.exit(f"{len(failures)} differences are not as docs/differences.md has them")
    print("every difference is in docs/differences.md")


_IDS = "import json, gem; from gem.envs.registration import ENV_REGISTRY; print(json.dumps(sorted(ENV_REGISTRY)))"


def _output(*command: Any) -> str:
    return subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True).stdout


def _unknown_ids(ids: list[str]) -> Iterator[str]:
    from gem.registry import all_specs

    for env_id in ids:
        if env_id not in all_specs():
            yield f"the id {env_id} is unknown"


def _compare(surface: dict[str, list[str] | None]) -> Iterator[str]:
    """Yield what is not as the tables have it."""
    found: dict[str, set[str]] = {kind: set() for kind in HEADINGS}
    for name, parameters in surface.items():
        try:
            value = _look_up(name)
        except (ImportError, AttributeError):
            found["absent"].add(name)
            continue
        if getattr(value, "is_refused", False):
            module, _, path = name.partition(":")
            found["refused"].add(f"{module}:{path.partition('.')[0]}")
        elif parameters is not None and not _takes(value, parameters):
            found["parameters"].add(name)
    listed = _tables()
    for kind, heading in HEADINGS.items():
        print(f"{heading}: {len(found[kind])} ({len(found[kind]) / len(surface):.1%})")
        yield from (f"{name} is not under '{heading}'" for name in sorted(found[kind] - listed[kind]))
        yield from (f"{name} is under '{heading}', and should not be" for name in sorted(listed[kind] - found[kind]))
    if len(found["absent"]) > MOST_ABSENT * len(surface):
        yield f"more than {MOST_ABSENT:.0%} of the names are absent"


def _tables() -> dict[str, set[str]]:
    text = TABLES.read_text(encoding="utf-8")
    sections = {heading: text.partition(f"## {heading}\n")[2].partition("\n## ")[0] for heading in HEADINGS.values()}
    return {kind: set(_ENTRY.findall(sections[heading])) for kind, heading in HEADINGS.items()}


def _look_up(name: str) -> Any:
    """Return what a name stands for here; of an attribute of instances, what an instance has."""
    module_name, _, path = name.partition(":")
    module = importlib.import_module(module_name)
    if not path:
        return module
    first, _, attribute = path.partition(".")
    value = getattr(module, first)
    if not attribute:
        return value
    if getattr(value, "is_refused", False):
        return value
    with suppress(AttributeError):
        return getattr(value, attribute)
    return getattr(_instance(f"{module_name}:{first}", value), attribute)


def _takes(value: Any, parameters: list[str]) -> bool:
    """Return whether a function takes some parameters, by name and in their order."""
    names = list(inspect.signature(value).parameters)
    if inspect.isfunction(value) and names[:1] == ["self"]:  # looked up in its class
        names = names[1:]
    if names[: len(parameters)] == parameters:
        return True
    kinds = [each.kind for each in inspect.signature(value).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds and names[0] not in parameters and not set(parameters) - set(names)


_instances: dict[str, Any] = {}


def _instance(name: str, cls: Any) -> Any:
    """Return an instance of a class; an environment is reset."""
    if name not in _instances:
        build = _BUILDS.get(name.partition(":")[2], cls)
        instance = _instances[name] = build()
        if hasattr(instance, "reset") and hasattr(instance, "step"):
            instance.reset(seed=0)
    return _instances[name]


def _game(**kwargs: Any) -> Any:
    import gem

    return gem.make("game:GuessTheNumber-v0-easy", **kwargs)


def _question(module: str, name: str, **row: Any) -> Callable[[], Any]:
    return lambda: getattr(importlib.import_module(f"gem.envs.{module}"), name)(dataset=[row])


def _with(module: str, name: str, *args: Any, **kwargs: Any) -> Callable[[], Any]:
    return lambda: getattr(importlib.import_module(f"gem.{module}"), name)(*args, **kwargs)


def _wrapped(module: str, name: str, *args: Any) -> Callable[[], Any]:
    return lambda: getattr(importlib.import_module(f"gem.{module}"), name)(_game(), *args)


def _vector(backend: str) -> Callable[[], Any]:
    import gem

    return lambda: gem.make_vec(["game:GuessTheNumber-v0-easy"], backend=backend)


def _of_agents() -> Any:
    from gem.multiagent import MultiAgentEnv

    class Nobody(MultiAgentEnv):
        def observe(self, agent: str) -> str:
            return ""

        def _process_actions(self, actions: dict[str, str]) -> Any:
            return {}, {}, {}, {}, {}

    return Nobody()


_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="

_BUILDS: dict[str, Callable[[], Any]] = {
    "Env": _game,
    "EnvWrapper": _wrapped("core", "EnvWrapper"),
    "EnvSpec": _with("core", "EnvSpec", "x:X-v0", "x:X"),
    "MathEnv": _question("math_env", "MathEnv", problem="1+1", answer="2"),
    "MathVisualEnv": _question(
        "math_visual_env", "MathVisualEnv", problem="1+1", answer="2", images=[{"bytes": _PIXEL.encode()}]
    ),
    "QaEnv": _question("qa_env", "QaEnv", question="?", answer="yes"),
    "CodeEnv": _question("code_env", "CodeEnv", problem="Add.", tests={"inputs": ["1"], "outputs": ["1"]}),
    "ReasoningGymEnv": _with("envs.reasoning_gym", "ReasoningGymEnv", "leg_counting"),
    "MCPTool": _with("tools.mcp_tool", "MCPTool", "http://127.0.0.1:1/mcp", validate_on_init=False),
    "ToolEnvWrapper": _wrapped("tools.tool_env_wrapper", "ToolEnvWrapper", []),
    "EpisodeTrackingWrapper": _wrapped("wrappers.episode_tracking_wrapper", "EpisodeTrackingWrapper"),
    "ObservationWrapper": _wrapped("wrappers.observation_wrapper", "ObservationWrapper", True, False),
    "VectorEnv": _vector("sync"),
    "SyncVectorEnv": _vector("sync"),
    "AsyncVectorEnv": _vector("thread"),
    "MultiAgentEnv": _of_agents,
    "AgentSelector": _with("multiagent", "AgentSelector", ["a"]),
    "BaseRetriever": _with(
        "tools.search_engine.retrieval_server",
        "BaseRetriever",
        importlib.import_module("gem.tools.search_engine.retrieval_server").Config(),
    ),
    "BM25Retriever": lambda: _bm25(),
    "QueryRequest": _with("tools.search_engine.retrieval_server", "QueryRequest", "?"),
    "RetrievalResponse": _with("tools.search_engine.retrieval_server", "RetrievalResponse", []),
    "TaskConfig": _with("envs.terminal.docker_env", "TaskConfig", "t", "/t", {}),
}


def _bm25() -> Any:
    from gem.tools.corpus import SHIPPED
    from gem.tools.search_engine.retrieval_server import BM25Retriever, Config

    return BM25Retriever(Config(corpus_path=str(SHIPPED)))


if __name__ == "__main__":
    main()
