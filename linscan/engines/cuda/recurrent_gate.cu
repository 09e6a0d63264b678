// The gradient of the log decay of a matrix state from gradients there already are.
//
//   dg[t] = flow + q dq - k dk - b db,   flow = dg[t] + a da,   from the last step of a chunk of EVERY back to its first,
//
// with flow = <S, dS> behind the chunk, which comes in `parts`: over longer stretches dg would be small differences of
// large numbers. Where a decay is zero, so is dg. A block does one chunk of one head; with one decay a step, warps first
// sum over keys. Each array is read once.
#ifndef STORAGE  // the launcher's macros, as the tests compile them
#define STORAGE float
#define PAIRS 4
#define VECTOR 0
#endif
#include "heads.cuh"

typedef STORAGE C;
typedef Real<C>::type R;
constexpr int EVERY = 64, THREADS = 128, WARPS = THREADS / 32;

struct Problem {
  i64 length, heads, keys, chunks, parts, ndim, size[6];
  Operand g, x[4];  // x: q, k, a, b
  C* dx[4];         // (head, time, key)
  const R* dots;    // (part, head, chunk, key)
  R* dg;            // (head, time, key or 1)
};

struct Rows {
  const C* x[PAIRS];
  const C* dx[PAIRS];

  __device__ __forceinline__ Rows(const Problem& p, i64 head) {
#pragma unroll
    for (int n = 0; n < PAIRS; n++) x[n] = locate<const C>(p.x[n], p, head), dx[n] = p.dx[n] + head * p.length * p.keys;
  }
  __device__ __forceinline__ R pair(const Problem& p, int n, i64 t, i64 key) const {
    return real_of_product(x[n][t * p.x[n].time + key], dx[n][t * p.keys + key]);
  }
  // What a step's vectors add before the step's own decay, and what `a` adds behind it.
  __device__ __forceinline__ R own(const Problem& p, i64 t, i64 key) const {
    const R read = pair(p, 0, t, key) - pair(p, 1, t, key);
    return PAIRS == 4 ? read - pair(p, PAIRS - 1, t, key) : read;
  }
  __device__ __forceinline__ R erased(const Problem& p, i64 t, i64 key) const {
    return PAIRS > 2 ? pair(p, PAIRS > 2 ? 2 : 0, t, key) : R(0);
  }
};

__device__ __forceinline__ R behind(const Problem& p, i64 head, i64 chunk, i64 key) {
  R sum = 0;
  for (i64 n = 0; n < p.parts; n++) sum += p.dots[((n * p.heads + head) * p.chunks + chunk) * p.keys + key];
  return sum;
}
__device__ __forceinline__ R warp_sum(R x) {
#pragma unroll
  for (int by = 16; by > 0; by /= 2) x += shuffle_xor(x, by);
  return x;
}

extern "C" __global__ void __launch_bounds__(THREADS) gate(const __grid_constant__ Problem p) {
  const i64 head = blockIdx.x / p.chunks, chunk = blockIdx.x % p.chunks;
  const i64 lo = chunk * EVERY, hi = lo + EVERY < p.length ? lo + EVERY : p.length;
  const R* const g = locate<const R>(p.g, p, head);
  const Rows rows(p, head);
  if (VECTOR) {
    for (i64 key = threadIdx.x; key < p.keys; key += THREADS) {
      R flow = behind(p, head, chunk, key);
      for (i64 t = hi - 1; t >= lo; t--) {
        flow = exponential(g[t * p.g.time + key]) == 0 ? R(0) : flow + rows.own(p, t, key);
        p.dg[(head * p.length + t) * p.keys + key] = flow;
        flow += rows.erased(p, t, key);
      }
    }
    return;
  }
  __shared__ R own[EVERY + 1], erased[EVERY + 1];  // the last one holds `behind`
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int n = warp; n <= EVERY; n += WARPS) {
    R read = 0, passed = 0;
    if (n == EVERY || lo + n < hi) {
      for (i64 key = lane; key < p.keys; key += 32) {
        read += n < EVERY ? rows.own(p, lo + n, key) : behind(p, head, chunk, key);
        passed += n < EVERY ? rows.erased(p, lo + n, key) : R(0);
      }
    }
    read = warp_sum(read), passed = warp_sum(passed);
    if (!lane) own[n] = read, erased[n] = passed;
  }
  __syncthreads();
  if (threadIdx.x) return;
  R flow = own[EVERY];
  for (i64 t = hi - 1; t >= lo; t--) {
    flow = exponential(g[t * p.g.time]) == 0 ? R(0) : flow + own[t - lo];
    p.dg[head * p.length + t] = flow;
    flow += erased[t - lo];
  }
}
