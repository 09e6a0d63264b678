// Long convolutions whose transform fits one block: read, transform, multiply, transform back and write, in one pass.
//
// A block owns a task (conv.cuh). Its n = 2 M real numbers are taken in pairs as M complex ones, Z; with W = exp(-2 pi i / n)
//   2 X[f] = S + W^f O,  2 conj(X[M - f]) = S - W^f O,  S = Z[f] + conj(Z[M - f]),  O = (Z[f] - conj(Z[M - f])) / i,
// is the spectrum, multiplied by the kernel's and packed the same way again. `table`: W^t, t < THREADS; W^(e THREADS),
// e < E; then the roots of fft.cuh.
//
// Bytes moved: the signal once, the result once, the spectra of the kernels once if they stay in the second-level cache.
// Limits: real numbers computed in float32, n a power of two from 1024 to 32768.
#ifndef STORAGE  // one variant, for a compiler that is only asked whether this compiles
#define STORAGE float
#define E 16
#define THREADS 128
#define BLOCKS 5
#define IN_PAIRS 1
#define OUT_PAIRS 1
#endif
#include "conv.cuh"
#include "fft.cuh"

struct alignas(2 * sizeof(S)) Pair { S x, y; };

__device__ __forceinline__ void load(Z (&v)[E], const S* from, i64 time, i64 samples, i64 p0, bool& bad) {
  const int low = p0 < 0 ? static_cast<int>(-p0) : 0;
  const int high = samples - p0 > 2 * M ? 2 * M : samples - p0 < 0 ? 0 : static_cast<int>(samples - p0);
  from += (p0 + 2 * threadIdx.x) * time;
#pragma unroll
  for (int e = 0; e < E; e++) {
    const int d = 2 * e * THREADS, i = 2 * threadIdx.x + d;
    v[e] = {0.0f, 0.0f};
    if (IN_PAIRS && i >= low && i + 1 < high) {
      const Pair pair = *reinterpret_cast<const Pair*>(from + d);
      v[e] = {widen(pair.x), widen(pair.y)};
    } else {
      if (i >= low && i < high) v[e].re = widen(from[d * time]);
      if (i + 1 >= low && i + 1 < high) v[e].im = widen(from[(d + 1) * time]);
    }
  }
#pragma unroll
  for (int e = 0; e < E; e++) v[e].re = clean(v[e].re, bad), v[e].im = clean(v[e].im, bad);
}

__device__ __forceinline__ void store(const Z (&v)[E], S* to, i64 time, int count, int skip) {
  const int first = 2 * static_cast<int>(threadIdx.x) - skip;
  to += first * time;
#pragma unroll
  for (int e = 0; e < E; e++) {
    const int d = 2 * e * THREADS;
    const int i = first + d;
    const S x = Narrow<S>::of(v[e].im), x2 = Narrow<S>::of(v[e].re);
    if (OUT_PAIRS && i >= 0 && i + 1 < count) {
      *reinterpret_cast<Pair*>(to + d) = {x, x2};
    } else {
      if (i >= 0 && i < count) to[d * time] = x;
      if (i + 1 >= 0 && i + 1 < count) to[(d + 1) * time] = x2;
    }
  }
}

// From the packed transform of the signal to the packed transform of the result, its parts swapped.
__device__ __forceinline__ void multiply(Z (&v)[E], Z* shared, const Z* spectrum, const Z* table) {
  const int t = threadIdx.x;
  const Z own = table[t], *h_of = spectrum + t, *g_of = spectrum + (M - t), *mirrored = shared + padded(THREADS - t);
  __syncthreads();
#pragma unroll
  for (int e = 0; e < E; e++) shared[padded(t) + e * padded(THREADS)] = v[e];
  __syncthreads();
#pragma unroll
  for (int e = 0; e < E; e++) {
    const Z a = v[e], b = conj(e == 0 && t == 0 ? shared[0] : mirrored[(E - 1 - e) * padded(THREADS)]);
    const Z w = mul(own, table[THREADS + e]);
    Z h = h_of[e * THREADS], g = g_of[-e * THREADS];
    if (e == 0 && t == 0) h.im = g.im = 0.0f;  // of a real kernel, they are
    const Z sum = add(a, b), wo = mul(w, turn(sub(a, b)));
    const Z x = mul(add(sum, wo), h), y = mul(sub(sum, wo), conj(g));
    const Z even = add(x, y), odd = mul(sub(x, y), conj(w));
    constexpr float scale = 1.0f / (4 * M);
    v[e] = {scale * (even.im + odd.re), scale * (even.re - odd.im)};
    if (e % 4 == 3) asm volatile("" ::: "memory");  // no more loads than these at once: registers are short
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
conv_fft(const __grid_constant__ Layout layout, const __grid_constant__ Window w, const S* u, const Z* spectrum, S* y,
         const Z* table, u8* mark) {
  extern __shared__ Z shared[];
  const i64 task = w.begin + blockIdx.x, block = task / layout.rows;
  const Place place = locate(layout, task - block * layout.rows);
  const i64 out_time = layout.operand[OUTPUT_ROW].time;
  S* to = y + place.at[OUTPUT_ROW] + block * w.step * out_time;
  const int count = static_cast<int>(outputs(w, layout, block));
  Z v[E];
  bool bad = false;
  load(v, u + place.at[INPUT_ROW], layout.operand[INPUT_ROW].time, w.samples, shift(w, block), bad);
  if (bad) mark[place.at[INPUT_MARK]] = 1;
  fft(v, shared, table + THREADS + E);
  multiply(v, shared, spectrum + place.at[SPECTRUM], table);
  fft(v, shared, table + THREADS + E);
  store(v, to, out_time, count, static_cast<int>(w.skip));
}
