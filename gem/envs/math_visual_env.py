"""Maths with pictures: the question is text, and its pictures are in the info of ``reset``.

Reward and grading are those of :mod:`gem.envs.math_env`.
"""

from __future__ import annotations

import base64
import io
from typing import Any

from gem.core import Info
from gem.envs.math_env import MathEnv


class MathVisualEnv(MathEnv):
    """A question with pictures, which ``reset`` gives in ``info["images"]``, as base64 of PNG files.

    Args:
        image_key: column of the pictures.
        question_key: as for :class:`MathEnv`, as are the others.
    """

    image_key = property(lambda env: env._image_key, doc="Column of the pictures.")

    def __init__(
        self,
        dataset_name: str | None = "",
        split: str | None = None,
        dataset: Any = None,
        image_key: str = "images",
        question_key: str = "problem",
        answer_key: str = "answer",
        seed: int | None = None,
        use_mp: bool = True,
        eval: bool = False,
        **published: Any,
    ) -> None:
        super().__init__(dataset_name, split, dataset, question_key, answer_key, seed, use_mp, eval, **published)
        self._image_key = image_key
        if image_key not in self._rows[0]:
            raise ValueError(f"the data set has no column {image_key!r}; it has {', '.join(map(repr, self._rows[0]))}")

    def reset(self, seed: int | None = None, idx: int | None = None) -> tuple[str, Info]:
        """Ask a question, and give its pictures."""
        observation, info = super().reset(seed, idx)
        return observation, {**info, "images": [_png(image) for image in self.row[self._image_key]]}


def _png(image: Any) -> str:
    """Return a picture (of PIL, as bytes of a PNG file, or as a mapping with such bytes) as base64."""
    if isinstance(image, dict):
        image = image["bytes"]
    if not isinstance(image, bytes):
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        image = buffer.getvalue()
    return base64.b64encode(image).decode("ascii")
