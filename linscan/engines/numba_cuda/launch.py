"""How a kernel is started: on CuPy's arrays, device and stream, or on NumPy arrays under Numba's CUDA simulator.

Arrays come as (before, time, after): the axes around the time axis folded, which is a view where they are contiguous.
"""

import warnings
from math import prod
from typing import Any

from numba import cuda

from linscan._arrays import Array, namespace
from linscan.engines.probe import simulated

_SIMULATED = simulated()
THREADS = 4 if _SIMULATED else 128  # of a block; simulated ones are threads of the host
GROUP = 3 if _SIMULATED else 32  # tiles of a row that look back together; at most THREADS


def folded(x: Array, axis: int) -> Array:
    """`x` as (before, time, after)."""
    shape = x.shape
    return x.reshape(prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :]))


def launch(kernel: Any, blocks: int, inputs: tuple[Array, ...], outputs: tuple[Array, ...], *numbers: Any) -> None:
    """Run `kernel` on as many blocks; the outputs are written in place."""
    with warnings.catch_warnings():
        # Small arrays make small grids. By its text: numba-cuda's warning is no longer of Numba's own class.
        warnings.filterwarnings("ignore", message=".*will likely result in GPU under-utilization")
        if _SIMULATED:
            _simulate(kernel, blocks, inputs, outputs, numbers)
            return
        xp = namespace(*outputs)
        with xp.cuda.Device(outputs[0].data.device_id):
            stream = cuda.external_stream(xp.cuda.get_current_stream().ptr)
            arrays = [cuda.as_cuda_array(x, sync=False) for x in (*inputs, *outputs)]
            kernel[blocks, THREADS, stream](*arrays, *numbers)


def _simulate(kernel: Any, blocks: int, inputs: Any, outputs: Any, numbers: Any) -> None:
    lent = [cuda.to_device(x.copy()) for x in outputs]
    # Blocks run one after the other, and starting one is slow: two, for kernels loop over all there is to do.
    kernel[min(blocks, 2), THREADS](*(cuda.to_device(x.copy()) for x in inputs), *lent, *numbers)
    for x, y in zip(outputs, lent, strict=True):
        x[...] = y.copy_to_host()
