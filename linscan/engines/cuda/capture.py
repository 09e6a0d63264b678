"""Memory that a captured graph goes on using: it runs again, with these addresses, for as long as its owner likes."""

from typing import Any

import cupy

_captured: list[Any] = []


def held(memory: Any) -> Any:
    """`memory`, kept for good if the current stream is being captured: it must not be handed out again."""
    if cupy.cuda.runtime.streamIsCapturing(cupy.cuda.get_current_stream().ptr):
        _captured.append(memory)
    return memory
