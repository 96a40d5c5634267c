"""What tests share."""

import importlib.util
import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # what tests share is imported from here
EXAMPLES = Path(__file__).parents[1] / "examples"

collect_ignore = ["adapters/verl_plugin.py"]  # verl's processes import it

settings.register_profile("gem", deadline=None, max_examples=60)  # a busy machine is no failure
settings.load_profile("gem")


@pytest.fixture(scope="session")
def tokenizer():
    """A real byte-level BPE tokenizer with ChatML, trained on the text of a few games."""
    pytest.importorskip("transformers")
    from gem.models.demonstrations import CURRICULUM, conversations
    from gem.models.tokenizer import train_tokenizer

    corpus = [message["content"] for play in conversations(CURRICULUM[-1], 60, seed=0) for message in play]
    return train_tokenizer([*corpus, "system", "user", "assistant"] * 2, vocab_size=600)


@pytest.fixture
def registered():
    """Return ``register``; what it registers is forgotten after the test."""
    from gem.registry import ENV_REGISTRY, register

    before = dict(ENV_REGISTRY)
    yield register
    ENV_REGISTRY.clear()
    ENV_REGISTRY.update(before)


@pytest.fixture(scope="session")
def load_example():
    """Return a function that imports an example by its name."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def assert_trained():
    """Return a function that asserts that a folder has a model and a tokenizer, and other weights than another."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def check(folder, before):
        ends = {AutoTokenizer.from_pretrained(path).eos_token_id for path in (folder, before)}
        assert len(ends) == 1
        new, old = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (folder, before))
        assert new.keys() == old.keys()
        assert any((new[name].float() != old[name].float()).any() for name in new)

    return check


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """Return the folder of a model of a few thousand weights that speaks the games' format."""
    pytest.importorskip("transformers")
    import torch

    from gem.models.build import Recipe, build

    torch.set_num_threads(1)  # far faster than two for models of this size, where anything else runs
    folder = tmp_path_factory.mktemp("model")
    build(folder, Recipe(hidden_size=32, episodes=600, steps=150))  # wins three games in ten
    return folder
