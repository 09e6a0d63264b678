"""``python -m linscan demo``: filter a recording, remember it, and run a state-space model over it in three ways."""

from linscan.demo.cli import main

__all__ = ["main"]
