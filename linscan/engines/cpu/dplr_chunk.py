"""One chunk at a time of a few heads of `dplr_attention`: matrix products by BLAS on buffers that stay in the cache.

The mathematics is in `linscan.engines.reference.dplr_attention`. Products under decay are made by blocks of BLOCK
steps: what a row needs of earlier blocks is one product with keys decayed to the end of the block before, its own block
is `diagonal`.
"""

from typing import Any

import numpy as np

from linscan.engines.cpu import dplr_kernels
from linscan.engines.cpu.blas import product
from linscan.engines.cpu.dplr_kernels import BLOCK
from linscan.engines.cpu.simd import LANES


def _blocks(x: Any) -> Any:
    """`x` with its steps in blocks, a view."""
    return x.reshape(*x.shape[:-2], x.shape[-2] // BLOCK, BLOCK, x.shape[-1])


class Chunk:
    """Buffers for a chunk of `count` heads; `x` holds a and q, `y` the keys written along, `z` the values."""

    def __init__(self, count: int, size: int, K: int, V: int, keys: int, gated: bool, dtype: Any) -> None:
        self.x, self.y = np.zeros((2, count, size, K), dtype), np.zeros((keys, count, size, K), dtype)
        self.z, self.v = np.zeros((keys, count, size, V), dtype), np.zeros((count, size, V), dtype)
        self.products = np.zeros((2, keys, count, size, size), dtype)
        self.right, self.part = np.empty((2, count, size, V), dtype), np.empty((keys, count, size, V), dtype)
        self.moved = np.empty((2, count, K, V), dtype)
        self.far, self.ends, self.gated = self.x, self.y, gated
        self.spaces: dict[str, Any] = {}
        self.triangles = np.stack([np.tri(size, k=-1, dtype=dtype), np.tri(size, dtype=dtype)])[:, None, None]
        if gated:
            self.decay = np.zeros((3, count, size, K), dtype)  # since the block's beginning, until its end, e^g
            self.near, self.far = np.zeros_like(self.x), np.zeros_like(self.x)
            self.key = np.zeros(-(-K // LANES) * LANES, dtype)
            steps = range(0, size + 1, BLOCK)
            self.carried = [np.zeros((keys, count, n, K), dtype) for n in steps]
            self.ends = self.carried[-1]

    def load(self, rows: list[Any], g: Any, scale: float) -> None:
        """Fill the buffers with one chunk of a, q, k, b and v (without b where there is none), zeros after its end."""
        targets = [self.x[0], self.x[1], *self.y, self.v]
        for to, x in zip(targets, rows, strict=True):
            n = x.shape[1]
            to[:, :n] = x
            to[:, n:] = 0
        if scale != 1:
            self.x[1] *= scale
        if g is not None:
            self._decays(g)
        self._products()

    def _decays(self, g: Any) -> None:
        """The three tables; a decay of one number per step is repeated for the channels."""
        count, size = self.decay.shape[1:3]
        tables = self.decay if g.shape[2] == self.decay.shape[3] else np.zeros((3, count, size, g.shape[2]), g.dtype)
        tables[2, :, : g.shape[1]] = g
        tables[2, :, g.shape[1] :] = 0
        dplr_kernels.sums(tables[2], tables[0], tables[1])
        np.exp(tables, out=tables)
        if tables is not self.decay:
            self.decay[...] = tables

    def _products(self) -> None:
        """[a, ·] and [q, ·] with every key: strictly lower, and lower triangular."""
        if not self.gated:
            product(self.x[:, None], self.y.swapaxes(-1, -2), self.products)
            self.products *= self.triangles
            return
        since, until, e = self.decay
        a, near, far, from_start = (_blocks(z) for z in (self.x, self.near, self.far, since))
        np.multiply(self.x[1], since, out=self.near[1])
        np.multiply(a[0, ..., 1:, :], from_start[..., :-1, :], out=near[0, ..., 1:, :])
        near[0, ..., 0, :] = a[0, ..., 0, :]
        np.multiply(near, self._ahead(), out=far)
        whole = map(self._whole, (self.x, self.y, e))
        dplr_kernels.diagonal(*whole, self.products, self.key, np.ones_like(self.key))
        for block, keys in enumerate(self.carried[:-1]):
            at = slice(block * BLOCK, (block + 1) * BLOCK)
            if block:
                product(self.near[:, None, :, at], keys.swapaxes(-1, -2), self.products[..., at, : at.start])
            new = self.carried[block + 1]
            np.multiply(keys, since[:, at.stop - 1 : at.stop], out=new[:, :, : at.start])
            np.multiply(self.y[:, :, at], until[:, at], out=new[:, :, at])

    def _whole(self, x: Any) -> Any:
        """`x` with zeros up to whole LANES of channels."""
        short = len(self.key) - x.shape[-1]
        return np.concatenate([x, np.zeros((*x.shape[:-1], short), x.dtype)], axis=-1) if short else x

    def _space(self, name: str, like: Any) -> Any:
        """A buffer of one's own of this shape, kept from chunk to chunk."""
        if name not in self.spaces:
            self.spaces[name] = np.empty_like(like)
        return self.spaces[name]

    def _ahead(self) -> Any:
        """Decay from the chunk's beginning to each block's, (heads, blocks, 1, K)."""
        totals = self.decay[0, :, None, BLOCK - 1 :: BLOCK].swapaxes(1, 2)
        return np.concatenate([np.ones_like(totals[:, :1]), np.cumprod(totals[:, :-1], axis=1)], axis=1)

    def stay(self) -> Any:
        """e^ of the chunk's sum of g, (heads, K, 1)."""
        return np.prod(self.decay[0, :, BLOCK - 1 :: BLOCK], axis=1)[..., None]

    def values(self, S: Any) -> None:
        """What is written along each key, `z`: V and U, or U alone, and q̃ S in ``right[1]``."""
        product(self.far, S, self.right)
        if len(self.z) == 1:
            np.add(self.v, self.right[0], out=self.z[0])
        else:
            self.z[0] = self.v
            product(self.products[0, 0], self.v, self.z[1])
            self.z[1] += self.right[0]
        dplr_kernels.solve(self.products[0, -1], self.z[-1])

    def forward(self, S: Any) -> Any:
        """The outputs of the chunk; `S` becomes the state after it."""
        self.values(S)
        o = self.right[1]
        for read, z, part in zip(self.products[1], self.z, self.part, strict=True):
            o += product(read, z, part)
        if self.gated:
            S *= self.stay()
        for key, z, moved in zip(self.ends, self.z, self.moved, strict=False):
            S += product(key.swapaxes(-1, -2), z, moved)
        return o

    def backward(self, S: Any, last: Any, do: Any, dS: Any) -> tuple[Any, ...]:
        """Gradients of x, y, v and g; `dS` becomes the one of the state before, `last` is the sum over V of S' dS'."""
        self.values(S)
        keys, T, flows = len(self.z), lambda x: x.swapaxes(-1, -2), self.right  # flows: Λ of U, and do
        for j in range(keys):
            product(T(self.products[1, j]), do, self.part[j])
            self.part[j] += product(self.ends[j], dS, flows[0])
        flows[0], flows[1] = self.part[-1], do
        dplr_kernels.solve_transposed(self.products[0, -1], flows[0])
        dv = flows[0]
        if keys == 2:
            dv = self.part[0] + product(T(self.products[0, 0]), flows[0], self.part[1])
        dproducts = product(flows[:, None], T(self.z), self._space("dproducts", self.products))
        dfar = product(flows, T(S)[None], self._space("dfar", self.x))
        dends = product(self.z, T(dS)[None], self._space("dends", self.y))
        if self.gated:
            dS *= self.stay()
        for i in range(2):
            dS += product(T(self.far[i]), flows[i], self.moved[i])
        return *self._inputs(dproducts, dfar, dends, last), dv

    def _inputs(self, dproducts: Any, dfar: Any, dends: Any, last: Any) -> tuple[Any, ...]:
        """Gradients of x, y and g from those of products, far rows and keys at the chunk's end."""
        T = lambda x: x.swapaxes(-1, -2)  # noqa: E731
        if not self.gated:
            dproducts *= self.triangles
            for j in range(len(self.y)):
                dfar += product(dproducts[:, j], self.y[j], self._space("part", dfar))
                for i in range(2):
                    dends[j] += product(T(dproducts[i, j]), self.x[i], self._space("end", dends[j]))
            return dfar, dends, None
        (since, until, e), flow = self.decay, dends
        dnear, dx, dy = (self._space(n, x) for n, x in (("dnear", self.x), ("dx", self.x), ("dy", self.y)))
        dnear[:, :, :BLOCK] = 0
        for block in range(len(self.carried) - 2, -1, -1):
            at, keys = slice(block * BLOCK, (block + 1) * BLOCK), self.carried[block]
            before = self._space(f"before{block}", keys)
            for j in range(len(self.y) if block else 0):
                square, near = dproducts[:, j, :, at, : at.start], self.near[:, :, at]
                if j:
                    dnear[:, :, at] += np.matmul(square, keys[j])
                else:
                    np.matmul(square, keys[j], out=dnear[:, :, at])
                np.matmul(T(square[0]), near[0], out=before[j])
                before[j] += np.matmul(T(square[1]), near[1])
            if block:
                before += flow[:, :, : at.start] * since[:, at.stop - 1 : at.stop]
            np.multiply(flow[:, :, at], until[:, at], out=dy[:, :, at])
            flow = before
        far = _blocks(dfar)
        far *= self._ahead()
        dnear += dfar
        np.multiply(dnear[1], since, out=dx[1])
        da, near = _blocks(dx[0]), _blocks(dnear[0])
        np.multiply(near[..., 1:, :], _blocks(since)[..., :-1, :], out=da[..., 1:, :])
        da[..., 0, :] = near[..., 0, :]
        more = [self._whole(z) for z in (self.x, self.y, e, dx, dy)]
        dplr_kernels.diagonal_pullback(*more[:3], dproducts, *more[3:], self.key)
        dx, dy = (np.ascontiguousarray(z[..., : e.shape[-1]]) for z in more[3:])
        dg = self._space("dg", self.x[0])
        dplr_kernels.gates(self.x, self.y, dx, dy, e, last, dg)
        return dx, dy, dg
