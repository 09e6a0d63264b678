// Long convolutions whose transform fits one block: read, transform, multiply, transform back and write, in one pass.
//
// A block owns LINES tasks (conv.cuh), of n = 2 M real numbers each (conv_block.cuh).
//
// Bytes moved: the signal once, the result once, the spectra of the kernels once if they stay in the second-level cache.
// Limits: real numbers computed in float32, n a power of two from 1024 to 32768.
#ifndef STORAGE  // one variant, for a compiler that is only asked whether this compiles
#define STORAGE float
#define EACH 16
#define THREADS 64
#define LINES 1
#define BLOCKS 14
#define IN_PAIRS 1
#define OUT_PAIRS 1
#define IN_HALF 1
#define OUT_HALF 1
#endif
#include "conv_block.cuh"

__device__ __forceinline__ void store(const Z (&v)[EACH], S* to, i64 time, int count, int skip) {
  constexpr int WRITTEN = OUT_HALF ? EACH / 2 : EACH;
  constexpr float scale = 0.25f / M;
  const int first = 2 * thread() - skip;
  const bool whole = OUT_PAIRS && skip == 0 && count >= 2 * WRITTEN * THREADS;
  to += first * time;
  Pair pair[WRITTEN];
#pragma unroll
  for (int e = 0; e < WRITTEN; e++) pair[e] = {Narrow<S>::of(scale * v[e].im), Narrow<S>::of(scale * v[e].re)};
  if (whole) {
#pragma unroll
    for (int e = 0; e < WRITTEN; e++) reinterpret_cast<Pair*>(to)[e * THREADS] = pair[e];
  } else {
#pragma unroll
    for (int e = 0; e < WRITTEN; e++) {
      const int d = 2 * e * THREADS, i = first + d;
      if (OUT_PAIRS && i >= 0 && i + 1 < count) {
        *reinterpret_cast<Pair*>(to + d) = pair[e];
      } else {
        if (i >= 0 && i < count) to[d * time] = pair[e].x;
        if (i + 1 >= 0 && i + 1 < count) to[(d + 1) * time] = pair[e].y;
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(LINES * THREADS, BLOCKS)
conv_fft(const __grid_constant__ Layout layout, const __grid_constant__ Window w, const S* u, const Z* spectrum, S* y,
         const Z* table, u8* mark) {
  extern __shared__ Z memory[];
  Z* const shared = memory + line();
  const i64 index = static_cast<i64>(blockIdx.x) * LINES + line();
  const bool live = index < w.count;  // a last block may have fewer tasks than lines: the others do the last one, for nothing
  const i64 task = w.begin + (live ? index : w.count - 1), block = w.blocks == 1 ? 0 : task / layout.rows;
  const i64 row = task - block * layout.rows, out_time = OUT_PAIRS ? 1 : layout.operand[OUTPUT_ROW].time;
  const Place place = locate(layout, row);
  S* to = y + place.at[OUTPUT_ROW] + block * w.step * out_time;
  const int count = static_cast<int>(outputs(w, layout, block));
  spectrum += place.at[SPECTRUM];
  Z v[EACH];
  bool bad = false;
  load<true>(v, u + place.at[INPUT_ROW], layout.operand[INPUT_ROW].time, w.samples, shift(w, block), bad);
  if (bad && live) mark[locate(layout, row).at[INPUT_MARK]] = 1;
  const Z* roots = lead(v, shared, table + ROOTS);
#pragma unroll
  for (int q = 0; q < EACH / R / 2; q++) {
    const Meeting at(q);
    Z a[R], b[R];
    arrive(a, b, at, shared, roots);
#pragma unroll
    for (int r = 0; r < R; r++) {
      const Z h = (spectrum + at.base(r))[r * J], g = (spectrum - at.base(r))[M - r * J], w = at.root(table, r);
      if (r == 0 && at.own) {
        Z x = a[0], y = b[R - 1];
        multiply(a[0], x, w, {h.re, 0.0f}, {g.re, 0.0f});  // of a real kernel, they are real
        multiply(b[R - 1], y, {0.0f, -1.0f}, spectrum[M / 2], spectrum[M / 2]);
      } else {
        multiply(a[r], b[R - 1 - r], w, h, g);
      }
    }
    leave(a, b, at);
#pragma unroll
    for (int r = 0; r < R; r++) v[2 * q * R + r] = a[r], v[(2 * q + 1) * R + r] = b[r];
  }
  go_back(v, shared, roots + J);
  if (live) store(v, to, out_time, count, static_cast<int>(w.skip));
}
