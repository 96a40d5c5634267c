"""The comparison with gem-llm sees what is missing, and what takes other parameters."""

import ast
import importlib.util
from pathlib import Path

import pytest

CI = Path(__file__).parents[2] / "ci"


def load(name):
    spec = importlib.util.spec_from_file_location(name, CI / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def dropin():
    return load("dropin")


def test_the_surface_is_read_from_the_source():
    source = """
import json
from typing import TypeVar
logger = json
T = TypeVar("T")
LIMIT: int = 3
count = 0

def play(env, *args, steps=1, **kwargs):
    global count

def _hidden(): ...

class Env(json):
    size = 2

    def __init__(self, a, b=1):
        self.a, self._b = a, b
        self.c: int = 2

    @property
    def seen(self): ...

    @staticmethod
    def check(answer): ...

    async def step(self, action): ...
"""
    assert load("dropin_surface")._of_module(ast.parse(source)) == {
        "LIMIT": None,
        "play": ["env", "steps"],
        "Env": ["a", "b"],
        "Env.a": None,
        "Env.c": None,
        "Env.size": None,
        "Env.seen": None,
        "Env.check": ["answer"],
        "Env.step": ["action"],
    }


@pytest.mark.parametrize(
    ("function", "parameters", "taken"),
    [
        (lambda a, b, c=1: None, ["a", "b"], True),
        (lambda b, a: None, ["a", "b"], False),
        (lambda a: None, ["a", "b"], False),
        (lambda a, **kwargs: None, ["a"], True),
        (lambda **kwargs: None, ["a"], False),
    ],
)
def test_parameters_are_compared_by_name_and_order(dropin, function, parameters, taken):
    assert dropin._takes(function, parameters) is taken


def test_what_is_missing_or_listed_in_vain_is_found(dropin, monkeypatch):
    tables = {"absent": {"gem.core:Env.listed"}, "refused": set(), "parameters": {"gem.core:Env"}}
    monkeypatch.setattr(dropin, "_tables", lambda: tables)
    surface = {
        "gem.core": None,
        "gem.core:Env": [],
        "gem.core:Env.listed": None,
        "gem.core:Env.reset": ["seed"],
        "gem.core:Env.spawn": ["other"],
        "gem.core:Env.no_such": None,
        "gem.no_such": None,
        "gem.envs.mcpmark:MCPMarkEnv.reset": ["seed"],
        "gem.envs.code_env:CodeEnv.tests": None,
    }
    assert sorted(dropin._compare(surface)) == [
        "gem.core:Env is under 'Parameters that differ', and should not be",
        "gem.core:Env.no_such is not under 'Names that are absent'",
        "gem.core:Env.spawn is not under 'Parameters that differ'",
        "gem.envs.mcpmark:MCPMarkEnv is not under 'Names that refuse'",
        "gem.no_such is not under 'Names that are absent'",
        "more than 5% of the names are absent",
    ]


def test_an_unknown_id_is_found(dropin):
    assert list(dropin._unknown_ids(["game:Wordle-v0", "game:Chess-v0"])) == ["the id game:Chess-v0 is unknown"]
