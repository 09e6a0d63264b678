// o[t] = Σ_s softmax_s(scale q[t]·k[s] + Σ g) v[s] over the keys of a window, in the arithmetic of the dtype.
//
// See local_attention_exact.cuh: a block has QUERIES queries of one row; tiles of keys and values come through shared memory.
// With `chosen`, only the blocks that it names run: those that the tensor cores' kernel could not do.
// Bytes moved: q and o once, k and v once for every block that sees them (out of the cache but for the first).
// Limits: KEYS and VALUES, the widths rounded up, to 256; below 2^31 blocks.
#ifndef STORAGE  // the launcher's macros, as the tests compile them
#define STORAGE float
#define QUERIES 64
#define KEYS 64
#define VALUES 64
#define GATED 1
#define MARKED 1
#endif
#include "local_attention_exact.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 2)
forward(const __grid_constant__ Layout layout, const __grid_constant__ Sizes sizes, const S* q, const S* k, const S* v,
        const S* g, const int* own, const int* seen, S* out, C* total, const u8* chosen) {
  if (chosen && !chosen[blockIdx.x]) return;
  extern __shared__ __align__(16) u8 memory[];
  __shared__ Marks marks;
  const Span x = span(layout, sizes);
  const Pointers from = pointers(layout, sizes, locate(layout, x.row), q, k, v, g, own, seen);
  attend(*reinterpret_cast<Exact*>(memory), marks, layout, sizes, from, x, out, total);
}
