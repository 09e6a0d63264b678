// Many small arrays in one launch, a block to a part of each: to := from (copy), or to := to + share (from - to) (move).
//
// Bytes moved: every array once.
#ifndef STORAGE  // the launcher's macro, as the tests compile it
#define STORAGE float
#endif
#include "numbers.cuh"

constexpr int MOST = 64, PARTS = 8, THREADS = 256;

struct Pairs {
  struct { const STORAGE* from; STORAGE* to; i64 size; } pair[MOST];
};

template <class Body> __device__ __forceinline__ void each(const Pairs& pairs, Body body) {
  const auto& pair = pairs.pair[blockIdx.x / PARTS];
#pragma unroll 8
  for (i64 i = blockIdx.x % PARTS * THREADS + threadIdx.x; i < pair.size; i += PARTS * THREADS) body(pair.to[i], pair.from[i]);
}

extern "C" __global__ void __launch_bounds__(THREADS) copy(const __grid_constant__ Pairs pairs) {
  each(pairs, [](STORAGE& to, const STORAGE& from) { to = from; });
}

extern "C" __global__ void __launch_bounds__(THREADS) move(const __grid_constant__ Pairs pairs, double share) {
  each(pairs, [&](STORAGE& to, const STORAGE& from) { to = to + static_cast<STORAGE>(share) * (from - to); });
}
