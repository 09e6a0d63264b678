"""The sizes `scan` is cut into and the macros its kernels are compiled with: no CuPy here, for tests on any machine."""

from typing import NamedTuple

FORWARD, PULLBACK, SUMMED = range(3)  # what a kernel does; the last is a pullback that sums da over tiles
SHORT = 64  # rows shorter than this are scanned by one thread's loop each, also where time is the last axis


class Sizes(NamedTuple):
    """The sizes a kernel is compiled with."""

    macros: tuple[tuple[str, int], ...]
    run: int  # steps of a warp
    warps: int  # of a block, at most
    blocks: int  # a multiprocessor must hold, with a block or bundle to each row
    split: int  # and with many to each


def _tiles(rows: int, chunk: int, warps: int, group: int, blocks: int, split: int) -> Sizes:
    macros = (("ROWS", rows), ("CHUNK", chunk), ("WARPS", warps), ("GROUP", group))
    return Sizes(macros, 32 * rows * chunk, warps, blocks, split)


def _lanes(steps: int, warps: int, group: int, blocks: int, split: int) -> Sizes:
    return Sizes((("STEPS", steps), ("WARPS", warps), ("GROUP", group)), steps, warps, blocks, split)


# By itemsize of the storage type and whether it is the pullback; chosen by measurement on an H100.
_TILES = {
    (2, False): _tiles(4, 8, 8, 32, 2, 2),
    (2, True): _tiles(2, 8, 8, 32, 2, 2),
    (4, False): _tiles(8, 4, 8, 32, 2, 2),
    (4, True): _tiles(4, 4, 8, 32, 2, 2),
    (8, False): _tiles(4, 2, 8, 32, 2, 2),
    (8, True): _tiles(4, 2, 8, 32, 2, 2),
    (16, False): _tiles(4, 1, 4, 32, 3, 3),
    (16, True): _tiles(2, 1, 8, 32, 2, 2),
}
_LANES = {
    (2, False): _lanes(16, 8, 16, 4, 3),
    (2, True): _lanes(16, 8, 16, 2, 2),
    (4, False): _lanes(16, 4, 16, 6, 6),
    (4, True): _lanes(8, 4, 16, 6, 6),
    (8, False): _lanes(8, 4, 16, 5, 5),
    (8, True): _lanes(8, 4, 16, 4, 4),
    (16, False): _lanes(4, 4, 16, 4, 4),
    (16, True): _lanes(4, 4, 16, 4, 4),
}
_LONG = 1 << 15
_LONG_LANES = _lanes(16, 8, 16, 2, 2)


def sizes_of(in_lanes: bool, itemsize: int, pullback: bool, length: int) -> Sizes:
    if in_lanes and pullback and itemsize == 4 and length >= _LONG:
        return _LONG_LANES
    return (_LANES if in_lanes else _TILES)[itemsize, pullback]


def warps_of(sizes: Sizes, in_lanes: bool, length: int) -> int:
    """The warps of a block: no more than a short row needs; a row a little longer than a tile makes two of half."""
    runs = -(-length // sizes.run)
    tiles = -(-runs // sizes.warps)
    return sizes.warps if in_lanes and tiles > 1 else -(-runs // tiles)


def macros(sizes: Sizes, way: int, split: bool, resets: bool, reverse: bool | None) -> list[tuple[str, int]]:
    """What one variant of scan.cu (or scan_lanes.cu, which needs to know only if it is both ways) is compiled with."""
    flags: dict[str, int] = {"PULLBACK": way != FORWARD, "SPLIT": split, "RESETS": resets}
    if "CHUNK" in dict(sizes.macros):
        flags["REVERSED"] = bool(reverse)
    else:
        flags |= {"SUMMED": way == SUMMED, "BOTH": reverse is None}
    flags["BLOCKS"] = sizes.split if split else sizes.blocks
    return [*((name, int(value)) for name, value in flags.items()), *sizes.macros]
