// Sums over the heads, or batches, that share an array: y[a, b] = sum over n of x[a, n, b], in float32, in the order of n.
//
// A thread owns PACK neighbouring numbers and has four heads' on the way at a time. Bytes moved: x and y once.
#ifndef STORAGE  // the launcher's macros, as the tests compile them
#define STORAGE bfloat16
#define PACK 8
#endif
#include "numbers.cuh"

typedef STORAGE S;
constexpr int AHEAD = 4;

struct alignas(PACK * sizeof(S)) Pack { S item[PACK]; };

extern "C" __global__ void sums(const S* x, S* y, i64 outer, i64 count, i64 inner) {
  const i64 packs = inner / PACK, index = blockIdx.x * i64(blockDim.x) + threadIdx.x;
  if (index >= outer * packs) return;
  const Pack* from = reinterpret_cast<const Pack*>(x) + index / packs * count * packs + index % packs;
  float sum[PACK] = {};
  for (i64 n = 0; n < count; n += AHEAD) {
    Pack heads[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
      if (n + i < count) heads[i] = from[(n + i) * packs];
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
      if (n + i < count)
#pragma unroll
        for (int j = 0; j < PACK; j++) sum[j] += widen(heads[i].item[j]);
  }
  Pack out;
#pragma unroll
  for (int j = 0; j < PACK; j++) out.item[j] = Narrow<S>::of(sum[j]);
  reinterpret_cast<Pack*>(y)[index] = out;
}
