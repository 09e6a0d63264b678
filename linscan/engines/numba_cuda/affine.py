"""The maps ``h -> a h + b`` of the scan as three numbers, a, b, and whether the past is cut off; steps of its tree."""

from numba import cuda

_TAME = 1024.0  # composites with a larger decay are not used


@cuda.jit(device=True)
def compose(a2, b2, cut2, a1, b1, cut1):
    """First (a1, b1), then (a2, b2): ``h -> a2 (a1 h + b1) + b2``. After a cut the past does not count."""
    if cut2:
        return a2, b2, cut2
    return a2 * a1, a2 * b1 + b2, cut1


@cuda.jit(device=True)
def apply(a, b, cut, h):
    """What the map makes of a state."""
    return b if cut else a * h + b


@cuda.jit(device=True)
def is_finite(x):
    """Whether `x` is neither NaN nor infinite."""
    return abs(x - x) == 0


@cuda.jit(device=True)
def is_tame(a, b, cut):
    """Whether the map may stand for its steps."""
    return is_finite(b) and (cut or abs(a) <= _TAME)


@cuda.jit(device=True)
def join(tree_a, tree_b, tree_cut, i, j):
    """A step of the up-sweep: node i becomes the composite of node j and then itself."""
    tree_a[i], tree_b[i], tree_cut[i] = compose(
        tree_a[i], tree_b[i], tree_cut[i] != 0, tree_a[j], tree_b[j], tree_cut[j] != 0
    )


@cuda.jit(device=True)
def hand_down(tree_a, tree_b, tree_cut, i, j):
    """A step of the down-sweep: before the left half j comes what comes before i; before the right, that and then j."""
    la, lb, lcut = tree_a[j], tree_b[j], tree_cut[j] != 0
    ba, bb, bcut = tree_a[i], tree_b[i], tree_cut[i] != 0
    tree_a[j], tree_b[j], tree_cut[j] = ba, bb, bcut
    tree_a[i], tree_b[i], tree_cut[i] = compose(la, lb, lcut, ba, bb, bcut)
