"""Structures of arrays: an array, or a tuple, list or dict of structures (a *tree*, as in JAX, without a registry)."""

from collections.abc import Iterable, Iterator
from typing import Any

Tree = Any  # an array, or a tuple, list or dict of trees; None is a leaf


def leaves(tree: Tree, path: str = "") -> dict[str, Any]:
    """The leaves by their path in the tree, such as ``[0]`` or ``['gate'][1]``; the path of a lone array is empty."""
    if not isinstance(tree, (dict, list, tuple)):
        return {path: tree}
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {inner: leaf for key, part in parts for inner, leaf in leaves(part, f"{path}[{key!r}]").items()}


def named_arrays(who: str, name: str, tree: Tree) -> dict[str, Any]:
    """The arrays by `name` and path; TypeError if there are none, or None or a number is where an array belongs."""
    named = {name + path: leaf for path, leaf in leaves(tree).items()}
    if not named or any(x is None or type(x) in (bool, int, float, complex) for x in named.values()):
        got = ", ".join(f"{key}: {type(x).__name__}" for key, x in named.items()) or "none"
        raise TypeError(f"{who}: {name} must be an array, or a tuple, list or dict of arrays; got {got}")
    return named


def rebuild(like: Tree, values: Iterable[Any]) -> Tree:
    """A tree like `like` with other leaves, given in the order of `leaves`."""
    return _built(like, iter(values))


def _built(node: Tree, rest: Iterator[Any]) -> Tree:  # no closure that knows itself: it would keep the leaves alive
    if isinstance(node, dict):
        return {key: _built(part, rest) for key, part in node.items()}
    if isinstance(node, (list, tuple)):
        parts = [_built(part, rest) for part in node]
        return type(node)(*parts) if hasattr(node, "_fields") else type(node)(parts)
    return next(rest)


def matched(who: str, name: str, tree: Tree, like_name: str, like: Tree) -> list[Any]:
    """The leaves of `tree` in the order of those of `like`, or a ValueError that shows both structures."""
    needed, got = leaves(like), leaves(tree)
    if needed.keys() != got.keys():
        wanted, came = (
            ", ".join(label + path for path in t) or "nothing" for label, t in ((like_name, needed), (name, got))
        )
        raise ValueError(f"{who}: {name} must have the structure of {like_name}, {wanted}; got {came}")
    return [got[path] for path in needed]
