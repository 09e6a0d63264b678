"""Parameters in a few long arrays: an optimiser's step then costs a few launches, however many parameters there are."""

import math
from collections.abc import Callable, Hashable

from linscan import _arrays
from linscan._arrays import Array

_ALIGNED = 64  # numbers: every parameter starts where any kernel may read at its widest


class Packed:
    """Arrays by name, moved into one array of real numbers for every kind of them and precision.

    Parameters
    ----------
    arrays : dict of str to array
    kind : callable
        Of a name; arrays of one kind are treated alike.

    Attributes
    ----------
    arrays : dict of str to array
        The same, as views.
    rows : dict of str to array, one axis
        What they are views of, under the name of the first of each.
    wide : dict of str to array
        The rows as they are trained: themselves, or for 16 bits copies in float32, where small steps add up. What is
        not trained has no copy.
    """

    def __init__(self, arrays: dict[str, Array], kind: Callable[[str], Hashable]) -> None:
        groups: dict[Hashable, list[str]] = {}
        for name, x in arrays.items():
            groups.setdefault((kind(name), _arrays.real_dtype(x.dtype)), []).append(name)
        self._names = {names[0]: names for names in groups.values()}
        self._like = {name: (x.shape, x.dtype) for name, x in arrays.items()}
        self.rows = self.gather(arrays)
        self.arrays = self.split(self.rows)
        trained = {first: x for first, x in self.rows.items() if kind(first) is not None}
        self.wide = self.rows | {n: x.astype(_arrays.accum_dtype(x.dtype), copy=False) for n, x in trained.items()}

    def load(self, wide: dict[str, Array]) -> None:
        """Take other numbers into the wide rows, and from them."""
        for first, x in self.gather(wide, wide=True).items():
            self.wide[first][...] = x
        self.narrow()

    def narrow(self) -> None:
        """Let what is 16 bits wide follow what is trained."""
        for first, x in self.rows.items():
            if x is not self.wide[first]:
                x[...] = self.wide[first]

    def gather(self, arrays: dict[str, Array], *, wide: bool = False) -> dict[str, Array]:
        """Copies of other arrays of the same names and shapes, in rows like these, with zeros between them."""
        # Not by CuPy's `concatenate`, which hands their addresses over from the host, as a captured graph cannot.
        xp = _arrays.namespace(*arrays.values())
        rows = {}
        for first, names in self._names.items():
            dtype = self.wide[first].dtype if wide else _arrays.real_dtype(self._like[first][1])
            rows[first] = xp.zeros(sum(map(self._space, names)), dtype)
        places = self.split(rows)
        _arrays.copy_all([*places.values()], [arrays[name] for name in places])
        return rows

    def split(self, rows: dict[str, Array]) -> dict[str, Array]:
        """Views of rows, of these or the wide ones, by name and in the order the arrays had."""
        found, at = {}, dict.fromkeys(self._names, 0)
        place = {name: first for first, names in self._names.items() for name in names}
        for name, (shape, dtype) in self._like.items():
            first = place[name]
            size = math.prod(shape) * (2 if dtype.kind == "c" else 1)
            row = rows[first][at[first] : at[first] + size]
            found[name] = (row.view(dtype) if dtype.kind == "c" else row).reshape(shape)
            at[first] += self._space(name)
        return found

    def _space(self, name: str) -> int:
        """Numbers of a row that an array takes."""
        shape, dtype = self._like[name]
        return -(-math.prod(shape) * (2 if dtype.kind == "c" else 1) // _ALIGNED) * _ALIGNED
