// What the kernels share that see the arguments of dplr_attention as they came: where they lie, and what is not finite.
#pragma once
#include "gated_chunk.cuh"
#include "delta_solve.cuh"
#include "dplr_slab.cuh"

enum { A = K, KEY = V, VALUE = STATE, B, BETA };  // operands of the layout, besides Q and G
constexpr int KINDS = 2 + 2 * KEYED;

// Numbers that are not finite become zeros, and their steps are marked.
template <int WIDE, class Row> __device__ __forceinline__ void clean(Row* x, int* odd) {
  constexpr int PACK = 8;
  for (int i = threadIdx.x; i < STEPS * (WIDE / PACK); i += THREADS) {
    const int t = i / (WIDE / PACK), c = i % (WIDE / PACK) * PACK;
    const u32* at = reinterpret_cast<const u32*>(&x[t][c]);
    if (!((full(at[0], S()) | full(at[1], S()) | full(at[2], S()) | full(at[3], S())) & 0x80008000u)) continue;
    odd[t] = 1;
    for (int j = 0; j < PACK; j++)
      if (not_finite<S>(x[t][c + j].bits)) x[t][c + j].bits = 0;
  }
}
