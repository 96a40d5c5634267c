"""verl's critic with torch's own attention.

verl loads a critic with ``attn_implementation="flash_attention_2"``, whatever the configuration says, and flash
attention needs a GPU. Here its loader is replaced by one that differs in nothing but that.
"""

from __future__ import annotations

from typing import Any

import verl.utils.model
from transformers import AutoModelForTokenClassification


def load_valuehead_model(local_path: str, torch_dtype: Any, model_config: Any, trust_remote_code: bool) -> Any:
    return AutoModelForTokenClassification.from_pretrained(
        local_path,
        dtype=torch_dtype,
        config=model_config,
        attn_implementation="sdpa",
        trust_remote_code=trust_remote_code,
    )


if not hasattr(verl.utils.model, "load_valuehead_model"):
    raise ImportError("verl.utils.model has no load_valuehead_model: this CPU shim was made for verl 0.9.1")
verl.utils.model.load_valuehead_model = load_valuehead_model
