"""What tests share."""

import pytest
from hypothesis import settings

collect_ignore = ["adapters/verl_plugin.py"]  # verl's processes import it

settings.register_profile("gem", deadline=None, max_examples=60)  # a busy machine is no failure
settings.load_profile("gem")


@pytest.fixture(scope="session")
def tokenizer():
    """A real byte-level BPE tokenizer with ChatML, trained on the text of a few games."""
    pytest.importorskip("transformers")
    from gem.embedded.crowd import LESSONS, conversations
    from gem.embedded.tokenizer import train_tokenizer

    corpus = [message["content"] for play in conversations(LESSONS[-1], 60, seed=0) for message in play]
    return train_tokenizer([*corpus, "system", "user", "assistant"] * 2, vocab_size=600)
