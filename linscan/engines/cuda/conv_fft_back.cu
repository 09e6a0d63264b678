// The gradient of a long kernel, dk[j] = sum of dy[t] u[start + t - j] over t and the rows that share it, where a transform
// fits one block:
//   correlate   a block takes some rows of LINES kernels, one after the other: the spectra of u and of dy (conv_block.cuh) meet in
//               registers, and dy's times the conjugate of u's is added up there
//   gather_up   adds up what the blocks of one kernel have, in order, and transforms back
// What is kept is, in a thread's own order, p and q of fft.cuh; in place of those of bins 0 and M / 2 it is the real p and q
// of bin 0, as one complex number, and p of bin M / 2.
//
// Bytes moved: the signal and the cotangent once, the result once; the sums of each block once each way.
// Limits: real numbers computed in float32, n a power of two from 1024 to 16384.
#ifndef STORAGE  // one variant, for a compiler that is only asked whether this compiles
#define STORAGE float
#define EACH 16
#define THREADS 64
#define LINES 1
#define IN_PAIRS 1
#define IN_HALF 1
#endif
#include "conv_block.cuh"

enum { SIGNAL_ROW, FLOW_ROW };

constexpr int roots_before(int ns) { return ns < J ? ns + roots_before(ns * 16) : J; }
constexpr int BACK = ROOTS + roots_before(16);  // where the roots of the way back begin

__device__ __forceinline__ void spectrum_of(Z (&v)[EACH], Z* shared, const Z* table) {
  __syncthreads();
  const Z* roots = lead(v, shared, table + ROOTS);
#pragma unroll
  for (int n = 0; n < EACH / R / 2; n++) {
    const Meeting at(n);
    Z a[R], b[R];
    arrive(a, b, at, shared, roots);
#pragma unroll
    for (int r = 0; r < R; r++) {
      Z p, q;
      if (r == 0 && at.own) {
        split(a[0], a[0], {1.0f, 0.0f}, p, q);
        const Z zero = {p.re, q.re};
        split(b[R - 1], b[R - 1], {0.0f, -1.0f}, p, q);
        q = p, p = zero;
      } else {
        split(a[r], b[R - 1 - r], at.root(table, r), p, q);
      }
      v[2 * n * R + r] = p, v[(2 * n + 1) * R + r] = q;
    }
  }
}

extern "C" __global__ void __launch_bounds__(LINES * THREADS, LINES * THREADS < 512 ? (EACH == 16 ? 512 : 256) / (LINES * THREADS) : 1)
correlate(const __grid_constant__ Layout layout, const S* u, const S* dy, Z* sums, const Z* table, i64 samples, i64 length,
          i64 start, i64 share, i64 parts, i64 kernels) {
  extern __shared__ Z memory[];
  Z* const shared = memory + line();
  const i64 part = blockIdx.x % parts, each = (share + parts - 1) / parts, mine = blockIdx.x / parts * LINES + line();
  const i64 kernel = mine < kernels ? mine : kernels - 1;  // lines left over do the last one's, for nothing
  const i64 end = kernel * share + ((part + 1) * each < share ? (part + 1) * each : share);
  Z sum[EACH];
#pragma unroll
  for (int e = 0; e < EACH; e++) sum[e] = {0.0f, 0.0f};
#pragma unroll 1
  for (i64 row = kernel * share + part * each; row < end; row++) {
    const Place place = locate(layout, row);
    Z x[EACH], g[EACH];
    bool bad = false;
    load<false>(x, u + place.at[SIGNAL_ROW], layout.operand[SIGNAL_ROW].time, samples, 0, bad);
    spectrum_of(x, shared, table);
    load<false>(g, dy + place.at[FLOW_ROW], layout.operand[FLOW_ROW].time, length, -start, bad);
    spectrum_of(g, shared, table);
#pragma unroll
    for (int e = 0; e < EACH; e++) {
      if (e == 0 && thread() == 0) sum[0] = {mul_add(g[0].re, x[0].re, sum[0].re), mul_add(g[0].im, x[0].im, sum[0].im)};
      else sum[e] = mul_add(g[e], conj(x[e]), sum[e]);
    }
  }
  if (mine >= kernels) return;
  sums += (kernel * parts + part) * M + thread();
#pragma unroll
  for (int e = 0; e < EACH; e++) sums[e * THREADS] = sum[e];
}

extern "C" __global__ void __launch_bounds__(THREADS)
gather_up(const Z* sums, float* dk, const Z* table, i64 taps, i64 parts) {
  extern __shared__ Z shared[];
  sums += static_cast<i64>(blockIdx.x) * parts * M + threadIdx.x;
  dk += static_cast<i64>(blockIdx.x) * taps;
  Z v[EACH];
#pragma unroll
  for (int e = 0; e < EACH; e++) v[e] = {0.0f, 0.0f};
#pragma unroll 1
  for (i64 part = 0; part < parts; part++, sums += M) {
#pragma unroll
    for (int e = 0; e < EACH; e++) v[e] = add(v[e], sums[e * THREADS]);
  }
#pragma unroll
  for (int e = 0; e < EACH; e++) v[e] = mul(0.125f / M, v[e]);  // both spectra are twice what they say
#pragma unroll
  for (int n = 0; n < EACH / R / 2; n++) {
    const Meeting at(n);
    Z a[R], b[R];
#pragma unroll
    for (int r = 0; r < R; r++) {
      const Z p = v[2 * n * R + r], q = v[(2 * n + 1) * R + r];
      if (r == 0 && at.own) {
        Z other;
        join({p.re, 0.0f}, {p.im, 0.0f}, {1.0f, 0.0f}, a[0], other);
        join(q, conj(q), {0.0f, -1.0f}, b[R - 1], other);
      } else {
        join(p, q, at.root(table, r), a[r], b[R - 1 - r]);
      }
    }
    leave(a, b, at);
#pragma unroll
    for (int r = 0; r < R; r++) v[2 * n * R + r] = a[r], v[(2 * n + 1) * R + r] = b[r];
  }
  go_back(v, shared, table + BACK);
#pragma unroll
  for (int e = 0; e < EACH; e++) {
    const i64 i = 2 * (threadIdx.x + e * THREADS);
    if (i < taps) dk[i] = v[e].im;
    if (i + 1 < taps) dk[i + 1] = v[e].re;
  }
}
