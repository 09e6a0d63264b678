// Long convolutions whose transform fits no block: three passes over a batch of tasks (conv.cuh), in place between them.
//
// The n = 2 M real numbers of a task are taken in pairs as M = N1 N2 complex ones, point i = i1 N2 + i2, bin f = f1 + N1 f2:
//   columns_in    for every i2, transforms over i1, and times exp(-2 pi i f1 i2 / M); padding is never read
//   rows          for every f1, transforms over i2; the product with the kernel's spectrum, as in conv_fft.cu, of which f
//                 needs M - f: bin N2 - 1 - f2 of row N1 - f1; and transforms back. Rows 0 and N1 / 2 are their own partners.
//   columns_out   times the factor again, back over f1; what lies outside the window is never written
// The inverse is the forward transform with real and imaginary parts swapped before and after, as in fft.cuh. A block owns
// COLUMNS neighbouring columns, or PAIRS neighbouring rows and their partners; a thread 16 points. `roots`, W = exp(-2 pi i / n):
// W^i, i < 1024; W^(1024 i), i < M / 1024; then those of fft.cuh for N1 points, and for N2.
//
// Bytes moved: the signal and the result once, the M complex numbers four times (less what the cache keeps), the spectrum once.
// Limits: real numbers computed in float32; N1 a power of two from 256 to 4096, N2 = N1 or N1 / 2.
#ifndef STORAGE  // one variant, for a compiler that is only asked whether this compiles
#define STORAGE float
#define N1 1024
#define N2 1024
#define COLUMNS 8
#define PAIRS 4
#define IN_PAIRS 1
#define OUT_PAIRS 1
#endif
#include "conv.cuh"
#include "fft.cuh"

constexpr int EACH = 16, M = N1 * N2, STEP1 = N1 / EACH, STEP2 = N2 / EACH;
constexpr int COLUMN_THREADS = COLUMNS * STEP1, ROW_THREADS = 2 * PAIRS * STEP2;
constexpr int PITCH = N2 + N2 / 16 + 16 / PAIRS;  // of rows in shared memory: so that PAIRS of them do not meet in one bank
constexpr int FINE = 1024;

struct alignas(2 * sizeof(S)) Pair { S x, y; };

__device__ __forceinline__ Z root(const Z* roots, int p) { return mul(roots[p % FINE], roots[FINE + p / FINE]); }

// v[r] *= W^(2 i2 (f1 + r STEP1)), f1 < STEP1.
__device__ __forceinline__ void turn_column(Z (&v)[EACH], const Z* roots, int f1, int i2) {
  const Z w = root(roots, 2 * i2 * STEP1), w2 = mul(w, w), w3 = mul(w2, w), w4 = mul(w2, w2);
  Z base = root(roots, 2 * i2 * f1);
#pragma unroll
  for (int r = 0; r < EACH; r += 4) {
    v[r] = mul(v[r], base), v[r + 1] = mul(v[r + 1], mul(base, w));
    v[r + 2] = mul(v[r + 2], mul(base, w2)), v[r + 3] = mul(v[r + 3], mul(base, w3));
    base = mul(base, w4);
  }
}

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS, 1024 / COLUMN_THREADS)
columns_in(const __grid_constant__ Layout layout, const __grid_constant__ Window w, const S* u, Z* work, const Z* roots, u8* mark) {
  extern __shared__ Z shared[];
  constexpr int TILES = N2 / COLUMNS;
  const i64 line = blockIdx.x / TILES, task = w.begin + line, block = task / layout.rows;
  const Place place = locate(layout, task - block * layout.rows);
  const int column = threadIdx.x % COLUMNS, t = threadIdx.x / COLUMNS, i2 = blockIdx.x % TILES * COLUMNS + column;
  const i64 p0 = shift(w, block), time = layout.operand[INPUT_ROW].time;
  const int low = p0 < 0 ? static_cast<int>(-p0) : 0;
  const int high = w.samples - p0 > 2 * M ? 2 * M : w.samples - p0 < 0 ? 0 : static_cast<int>(w.samples - p0);
  const S* from = u + place.at[INPUT_ROW] + p0 * time;
  Z v[EACH];
  bool bad = false;
#pragma unroll
  for (int e = 0; e < EACH; e++) {
    const int i = 2 * ((t + e * STEP1) * N2 + i2);
    v[e] = {0.0f, 0.0f};
    if (IN_PAIRS && i >= low && i + 1 < high) {
      const Pair pair = *reinterpret_cast<const Pair*>(from + i);
      v[e] = {widen(pair.x), widen(pair.y)};
    } else {
      if (i >= low && i < high) v[e].re = widen(from[i * time]);
      if (i + 1 >= low && i + 1 < high) v[e].im = widen(from[(i + 1) * time]);
    }
  }
#pragma unroll
  for (int e = 0; e < EACH; e++) v[e].re = clean(v[e].re, bad), v[e].im = clean(v[e].im, bad);
  if (bad) mark[place.at[INPUT_MARK]] = 1;
  fft<N1, EACH, COLUMNS>(v, shared + column, roots + FINE + M / FINE, t);
  turn_column(v, roots, t, i2);
  Z* to = work + line * M + t * N2 + i2;
#pragma unroll
  for (int e = 0; e < EACH; e++) to[e * STEP1 * N2] = v[e];
}

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS, 1024 / COLUMN_THREADS)
columns_out(const __grid_constant__ Layout layout, const __grid_constant__ Window w, const Z* work, S* y, const Z* roots) {
  extern __shared__ Z shared[];
  constexpr int TILES = N2 / COLUMNS;
  const i64 line = blockIdx.x / TILES, task = w.begin + line, block = task / layout.rows;
  const Place place = locate(layout, task - block * layout.rows);
  const int column = threadIdx.x % COLUMNS, t = threadIdx.x / COLUMNS, i2 = blockIdx.x % TILES * COLUMNS + column;
  const Z* from = work + line * M + t * N2 + i2;
  Z v[EACH];
#pragma unroll
  for (int e = 0; e < EACH; e++) v[e] = from[e * STEP1 * N2];
  turn_column(v, roots, t, i2);
  fft<N1, EACH, COLUMNS>(v, shared + column, roots + FINE + M / FINE, t);
  const i64 time = layout.operand[OUTPUT_ROW].time;
  const int count = static_cast<int>(outputs(w, layout, block)), skip = static_cast<int>(w.skip);
  S* to = y + place.at[OUTPUT_ROW] + (block * w.step - skip) * time;
#pragma unroll
  for (int e = 0; e < EACH; e++) {
    const int i = 2 * ((t + e * STEP1) * N2 + i2), at = i - skip;
    const S x = Narrow<S>::of(0.25f / M * v[e].im), x2 = Narrow<S>::of(0.25f / M * v[e].re);
    if (OUT_PAIRS && at >= 0 && at + 1 < count) {
      *reinterpret_cast<Pair*>(to + i) = {x, x2};
    } else {
      if (at >= 0 && at < count) to[i * time] = x;
      if (at + 1 >= 0 && at + 1 < count) to[(i + 1) * time] = x2;
    }
  }
}

// Bins f and M - f, which lie at `a` and `b`.
__device__ __forceinline__ void meet(Z* a, Z* b, const Z* spectrum, const Z* roots, int f) {
  Z x = *a, y = *b, h = spectrum[f], g = spectrum[M - f];
  if (f == 0) h.im = g.im = 0.0f;  // of a real kernel, they are
  multiply(x, y, root(roots, f), h, g);
  *b = y, *a = x;
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 1024 / ROW_THREADS)
rows(const __grid_constant__ Layout layout, const __grid_constant__ Window w, Z* work, const Z* spectrum, const Z* roots) {
  extern __shared__ Z shared[];
  constexpr int TILES = N1 / 2 / PAIRS;
  const i64 line = blockIdx.x / TILES;
  const int first = blockIdx.x % TILES * PAIRS, slot = threadIdx.x / STEP2, t = threadIdx.x % STEP2;
  const int f1 = slot < PAIRS ? first + slot : first + slot == PAIRS ? N1 / 2 : N1 - (first + slot - PAIRS);
  spectrum += locate(layout, (w.begin + line) % layout.rows).at[SPECTRUM];
  Z *own = work + line * M + f1 * N2 + t, *row = shared + slot * PITCH;
  const Z* row_roots = roots + FINE + M / FINE + (N1 > 256 ? 16 + 256 : 16);
  Z v[EACH];
#pragma unroll
  for (int e = 0; e < EACH; e++) v[e] = own[e * STEP2];
  fft<N2, EACH>(v, row, row_roots, t);
  __syncthreads();
#pragma unroll
  for (int e = 0; e < EACH; e++) row[padded(t) + padded(e * STEP2)] = v[e];
  __syncthreads();
#pragma unroll 2
  for (int i = threadIdx.x; i < PAIRS * N2; i += ROW_THREADS) {
    const int pair = i % PAIRS, f2 = i / PAIRS;
    Z *upper = shared + pair * PITCH, *lower = upper + PAIRS * PITCH;
    if (first + pair > 0) {
      meet(upper + padded(f2), lower + padded(N2 - 1 - f2), spectrum, roots, first + pair + N1 * f2);
    } else if (f2 >= N2 / 2) {
      meet(lower + padded(f2), lower + padded(N2 - 1 - f2), spectrum, roots, N1 / 2 + N1 * f2);
    } else {
      meet(upper + padded(f2), upper + padded((N2 - f2) % N2), spectrum, roots, N1 * f2);
      if (f2 == 0) meet(upper + padded(N2 / 2), upper + padded(N2 / 2), spectrum, roots, M / 2);
    }
  }
  __syncthreads();
  get<N2, EACH, 1>(v, row, t);
  fft<N2, EACH>(v, row, row_roots, t);
#pragma unroll
  for (int e = 0; e < EACH; e++) own[e * STEP2] = v[e];
}
