"""Which engine runs which op on which dtypes: one literal table that dispatch, the documentation and the tests read.

Dtype letters: e float16, E bfloat16, f float32, d float64, F complex64, D complex128. The last rows are no loops over
time but passes over whole arrays that array expressions would make several of. An op that is not in the table is a
closed-form array expression and needs no engine. "reference" is plain array code on NumPy or CuPy: correct and
slow, it also serves the dtypes an engine lacks.
"""

from functools import cache

LETTERS = {
    "e": "float16",
    "E": "bfloat16",
    "f": "float32",
    "d": "float64",
    "F": "complex64",
    "D": "complex128",
}

ALL = "eEfdFD"
REAL = "eEfd"

# A row names an engine once the op's tests have passed on it as it stands; those of "cuda" on a card.
SUPPORT: dict[str, dict[str, str]] = {
    "scan": {"reference": ALL, "cpu": ALL, "cuda": ALL, "numba_cuda": "fdFD"},
    "two_way": {"reference": ALL, "cpu": ALL, "cuda": ALL},
    "block_scan": {"reference": ALL, "cpu": ALL, "cuda": ALL},
    "lse_scan": {"reference": REAL, "cpu": REAL, "cuda": REAL},
    "max_scan": {"reference": REAL, "cpu": REAL, "cuda": REAL},
    "softmax_average": {"reference": REAL, "cpu": REAL, "cuda": REAL},
    "selective_scan": {"reference": ALL, "cpu": ALL, "cuda": ALL},
    "ssm_kernel": {"reference": ALL, "cpu": ALL, "cuda": ALL},
    "ssm_kernel_dplr": {"reference": ALL, "cpu": ALL, "cuda": ALL},
    "fft_conv": {"reference": ALL, "cpu": ALL, "cuda": ALL},
    "fft_conv_nd": {"reference": ALL, "cpu": ALL, "cuda": ALL},
    "short_conv": {"reference": ALL, "cpu": ALL, "cuda": ALL, "numba_cuda": "fdFD"},
    "lfilter": {"reference": ALL, "cpu": ALL, "cuda": ALL},
    "sosfilt": {"reference": ALL, "cpu": ALL, "cuda": ALL},
    "allpole": {"reference": ALL, "cpu": ALL, "cuda": ALL},
    "dlsim": {"reference": ALL, "cpu": ALL, "cuda": ALL},
    "linear_attention": {"reference": ALL, "cpu": ALL, "cuda": ALL},
    "delta_rule": {"reference": ALL, "cpu": REAL, "cuda": ALL},
    "dplr_attention": {"reference": ALL, "cpu": REAL, "cuda": ALL},
    "grid_scan": {"reference": ALL, "cpu": REAL, "cuda": ALL},
    "local_attention": {"reference": REAL, "cpu": REAL, "cuda": REAL},
    "rnn_scan": {"reference": "eEfd", "cpu": "eEfd", "cuda": REAL},
    "newton_scan": {"reference": "eEfd", "cpu": "eEfd", "cuda": REAL},
    "discretize_diag": {"reference": ALL, "cpu": ALL, "cuda": ALL},
    "row_norm": {"reference": REAL, "cpu": REAL, "cuda": REAL},
    "batch_norm": {"reference": REAL, "cpu": REAL, "cuda": REAL},
    "activation": {"reference": REAL, "cpu": REAL, "cuda": REAL},
    "gate": {"reference": REAL, "cpu": REAL, "cuda": REAL},
    "half_glu": {"reference": "fd", "cpu": "fd", "cuda": "fd"},
    "ports": {"reference": "fd", "cpu": "fd", "cuda": "fd"},
    "feedthrough": {"reference": REAL, "cpu": REAL, "cuda": REAL},
    "adamw": {"reference": REAL, "cpu": REAL, "cuda": "fd"},
    "dense": {"reference": "fd", "cpu": "fd", "cuda": "fd"},
}

# The file, under each engine's folder, that holds an op's loops, where it is not named after the op.
MODULE: dict[str, str] = {
    "lfilter": "filters",
    "sosfilt": "filters",
    "dlsim": "lti",
    "lse_scan": "semiring_scan",
    "max_scan": "semiring_scan",
    "softmax_average": "semiring_scan",
    "row_norm": "norm",
    "batch_norm": "norm",
    "gate": "activation",
}


def row_of(function: str) -> str:
    """The table row an engine's function belongs to: an op's pullback, and its step, run wherever the op runs."""
    return function.removesuffix("_pullback").removesuffix("_step")


def dtypes(op: str, engine: str) -> tuple[str, ...]:
    """The dtype names `engine` runs `op` on; empty if it has no loop for it."""
    return _names(SUPPORT[op].get(engine, ""))


@cache
def _names(letters: str) -> tuple[str, ...]:
    return tuple(LETTERS[c] for c in letters)


def table() -> str:
    """The support table as Markdown, as the README and the documentation show it."""
    engines = ["reference", "cpu", "cuda", "numba_cuda"]
    lines = ["| op | " + " | ".join(engines) + " |", "|---|" + "---|" * len(engines)]
    for op, row in SUPPORT.items():
        cells = ["all" if row.get(e) == ALL else ", ".join(dtypes(op, e)) or "–" for e in engines]
        lines.append(f"| `{op}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)
