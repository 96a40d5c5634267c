"""What a trainer calls a tokenizer: a tokenizer or a processor, with a chat template or several."""

from __future__ import annotations

from typing import Any


def tokenizer_and_template(tokenizer: Any, wanted: str | None = None) -> tuple[Any, str]:
    """Return the tokenizer that puts text into tokens, and the chat template.

    Args:
        tokenizer: a tokenizer or a processor.
        wanted: another template, or the name of one of several; None for the default.

    Raises:
        TypeError: conversations cannot be rendered as text.
        ValueError: there is no chat template.
    """
    name = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
    if callable(getattr(tokenizer, "added_tokens_decoder", None)):  # transformers' MistralCommonBackend
        raise TypeError(
            f"{type(tokenizer).__name__} renders conversations without a chat template, so the ids between two answers "
            "cannot be taken from it. Load the model's tokenizer.json instead, with "
            "transformers.PreTrainedTokenizerFast.from_pretrained, and set its chat_template."
        )
    template = getattr(tokenizer, "chat_template", None)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor's
    template = template or getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict) and wanted in template:
        return tokenizer, template[wanted]
    if wanted is not None:
        return tokenizer, wanted
    if isinstance(template, dict):
        if "default" not in template:
            raise ValueError(
                f"{name} has the chat templates {', '.join(sorted(template))}, and none is the default: set "
                "tokenizer.chat_template to one of them."
            )
        template = template["default"]
    if not template:
        raise ValueError(
            f"{name} has no chat template, so a conversation cannot be put into tokens. Use an instruction-tuned "
            "model, or set tokenizer.chat_template."
        )
    return tokenizer, template
