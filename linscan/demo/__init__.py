"""``python -m linscan demo``: filter a recording, remember it, and run a state-space model over it in three ways."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def main(argv: list[str]) -> int:
    """Run the demo with these arguments: exit code 0 (done), 2 (refused, one line on stderr) or 130 (interrupted)."""
    with _interrupts() as seen:
        try:
            return _run(argv)
        except BaseException as error:
            if not seen and not isinstance(error, KeyboardInterrupt):
                raise
            return _fail("interrupted; files already named as written are complete", 130)


def _run(argv: list[str]) -> int:
    from linscan.demo import cli  # here: SciPy's import takes long enough to be interrupted
    from linscan.demo.read import BadFile

    try:
        cli.run(argv)
    except BadFile as error:
        return _fail(str(error), 2)
    except OSError as error:
        return _fail(f"cannot write: {error}", 2)
    return 0


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """The interrupts seen so far: Numba, interrupted while it compiles, may raise something else instead."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return

    def note(number: int, frame: Any) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


def _fail(message: str, code: int) -> int:
    sys.stderr.write("linscan demo: " + " ".join(message.split()) + "\n")
    return code
