"""Resources of launchpad's nodes; in one process there are none to give."""

from typing import Any


class PythonProcess:
    def __init__(self, **_: Any) -> None:
        return None
