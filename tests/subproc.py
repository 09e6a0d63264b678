"""Run a piece of Python in a fresh process: what a test must not do to its own (fork, block imports, compile anew)."""

import os
import subprocess
import sys
import textwrap


def run(code, *, timeout=100, **env):
    """What `code` prints; it must end by itself, with status 0 and nothing on stderr. `env` adds to the environment."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(code)],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 0, f"exit status {result.returncode}:\n{result.stdout}\n{result.stderr}"
    assert result.stderr == "", result.stderr
    return result.stdout
