// Affine maps of small vectors: h -> a h + b with an N x N matrix a, and how they are composed (see affine.cuh for N = 1).
#pragma once
#include "lookback.cuh"

template <class C> struct Vector { C at[N]; };
template <class C> struct Block { C a[N * N], b[N]; };

template <class C> struct Identity<Block<C>> {
  static __device__ __forceinline__ Block<C> make() {
    Block<C> map;
#pragma unroll
    for (int i = 0; i < N * N; i++) map.a[i] = Number<C>::make(i % (N + 1) == 0);
#pragma unroll
    for (int i = 0; i < N; i++) map.b[i] = Number<C>::make(0);
    return map;
  }
};

// a h + b, one row after the other.
template <class C> __device__ __forceinline__ Vector<C> apply(const Block<C>& map, const Vector<C>& h) {
  Vector<C> next;
#pragma unroll
  for (int i = 0; i < N; i++) {
    C sum = map.b[i];
#pragma unroll
    for (int k = 0; k < N; k++) sum = mul_add(map.a[i * N + k], h.at[k], sum);
    next.at[i] = sum;
  }
  return next;
}

// First `before`, then `after`.
template <class C> __device__ __forceinline__ Block<C> compose(const Block<C>& after, const Block<C>& before) {
  Block<C> both;
#pragma unroll
  for (int i = 0; i < N; i++) {
    C sum = after.b[i];
#pragma unroll
    for (int k = 0; k < N; k++) sum = mul_add(after.a[i * N + k], before.b[k], sum);
    both.b[i] = sum;
#pragma unroll
    for (int j = 0; j < N; j++) {
      sum = mul(after.a[i * N], before.a[j]);
#pragma unroll
      for (int k = 1; k < N; k++) sum = mul_add(after.a[i * N + k], before.a[k * N + j], sum);
      both.a[i * N + j] = sum;
    }
  }
  return both;
}

template <class C> __device__ __forceinline__ bool is_good(const Vector<C>& h) {
  bool good = true;
#pragma unroll
  for (int i = 0; i < N; i++) good = good && is_finite(h.at[i]);
  return good;
}
template <class C> __device__ __forceinline__ bool is_good(const Block<C>& map) {
  bool good = true;
#pragma unroll
  for (int i = 0; i < N * N; i++) good = good && at_most(map.a[i], 1024.0);
#pragma unroll
  for (int i = 0; i < N; i++) good = good && is_finite(map.b[i]);
  return good;
}

// First `before`, then `after`, into `both`, all three in shared memory, by all lanes of a warp; whether it is good.
template <class C>
__device__ __forceinline__ bool compose(Block<C>& both, const Block<C>& after, const Block<C>& before, int lane) {
  bool good = true;
#pragma unroll 1
  for (int e = lane; e < N * N + N; e += 32) {
    const bool slope = e < N * N;
    const int i = slope ? e / N : e - N * N;
    const C *x = slope ? before.a + e % N : before.b, *row = after.a + i * N;
    const int apart = slope ? N : 1;
    C sum = slope ? mul(row[0], x[0]) : mul_add(row[0], x[0], after.b[i]);
#pragma unroll
    for (int k = 1; k < N; k++) sum = mul_add(row[k], x[k * apart], sum);
    if (slope) both.a[e] = sum;
    else both.b[i] = sum;
    good = good && (slope ? at_most(sum, 1024.0) : is_finite(sum));
  }
  __syncwarp();
  return __all_sync(~0u, good);
}
