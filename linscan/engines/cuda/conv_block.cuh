// Transforms of one block over real numbers taken in pairs (fft.cuh), EACH complex ones to a thread, and what they meet.
// A block has LINES transforms side by side, in neighbouring threads: where rows are neighbours in memory, and time is not.
//
// The last pass of the transform, of radix R, is over the points j + r M / R of butterfly j and gives bins j + r M / R, of
// which a product of real numbers' spectra needs those of butterfly M / R - j too; and the same numbers are the points of
// the way back's first pass. So a thread takes EACH / R butterflies in such pairs, a and b, and does all three in registers:
// a[r] and b[R - 1 - r] are bins f and M - f. Thread 0 has butterflies 0 and M / (2 R), each its own partner, whose bins it
// swaps so that this is so for them too, except a[0] and b[R - 1], bins 0 and M / 2.
//
// `table`, W = exp(-2 pi i / n): W^j, j <= M / (2 R); then the roots of fft.cuh for the passes forward (radices 16, and last R)
// and back (R, then 16). EACH is at least 2 R.
#pragma once
#include "conv.cuh"
#include "fft.cuh"

__device__ __forceinline__ int line() { return LINES > 1 ? threadIdx.x % LINES : 0; }
__device__ __forceinline__ int thread() { return LINES > 1 ? threadIdx.x / LINES : threadIdx.x; }  // of its line's THREADS

constexpr int last_radix(int m) { return m > 16 ? last_radix(m / 16) : m; }
constexpr int M = EACH * THREADS, R = last_radix(M), J = M / R, HALF_WAY = J / 2, ROOTS = HALF_WAY + 1;

struct alignas(2 * sizeof(S)) Pair { S x, y; };

struct Meeting {  // of butterfly j and its partner
  int j, partner;
  bool own;  // each is its own partner

  __device__ __forceinline__ explicit Meeting(int q)
      : j(thread() + q * THREADS), partner(j == 0 ? HALF_WAY : J - j), own(j == 0) {}
  __device__ __forceinline__ int base(int r) const { return own && r >= R / 2 ? HALF_WAY : j; }  // bin f is r J after it
  __device__ __forceinline__ Z root(const Z* table, int r) const { return turned(table[base(r)], r * (16 / R)); }  // W^f
};

// NaN and inf in v, of which only the first READ may be any, become zero.
template <int READ> __device__ __forceinline__ void clean(Z (&v)[EACH], bool& bad) {
  Z none = {0.0f, 0.0f};  // stays so unless there are any: one instruction a number
#pragma unroll
  for (int e = 0; e < READ; e++) none = {mul_add(0.0f, v[e].re, none.re), mul_add(0.0f, v[e].im, none.im)};
  if (is_finite(none)) return;
#pragma unroll
  for (int e = 0; e < READ; e++) v[e].re = clean(v[e].re, bad), v[e].im = clean(v[e].im, bad);
}

// IN_HALF: what is read lies in the first half of the points.
template <bool CLEAN> __device__ __forceinline__ void load(Z (&v)[EACH], const S* from, i64 time, i64 samples, i64 p0, bool& bad) {
  constexpr int READ = IN_HALF ? EACH / 2 : EACH;
  const int low = p0 < 0 ? static_cast<int>(-p0) : 0;
  const int high = samples - p0 > 2 * M ? 2 * M : samples - p0 < 0 ? 0 : static_cast<int>(samples - p0);
  const int t = thread();
  const bool whole = IN_PAIRS && low == 0 && high >= 2 * READ * THREADS;  // nothing to ask at each number
  from += (p0 + 2 * t) * (IN_PAIRS ? 1 : time);
#pragma unroll
  for (int e = 0; e < EACH; e++) v[e] = {0.0f, 0.0f};
  if (whole) {
#pragma unroll
    for (int e = 0; e < READ; e++) {
      const Pair pair = reinterpret_cast<const Pair*>(from)[e * THREADS];
      v[e] = {widen(pair.x), widen(pair.y)};
    }
  } else {
#pragma unroll
    for (int e = 0; e < READ; e++) {
      const int d = 2 * e * THREADS, i = 2 * t + d;
      if (i >= low && i < high) v[e].re = widen(from[d * time]);
      if (i + 1 >= low && i + 1 < high) v[e].im = widen(from[(d + 1) * time]);
    }
  }
  if constexpr (CLEAN) clean<READ>(v, bad);
}

// All passes forward but the last.
template <int NS = 1> __device__ __forceinline__ const Z* lead(Z (&v)[EACH], Z* shared, const Z* roots) {
  const int t = thread();
  pass<M, EACH, 16, NS, NS == 1 && IN_HALF>(v, roots, t);
  if (NS > 1) __syncthreads();
  put<M, EACH, LINES, 16, NS>(v, shared, t);
  __syncthreads();
  if (NS > 1) roots += NS;
  if constexpr (NS * 16 < J) {
    get<M, EACH, LINES>(v, shared, t);
    return lead<NS * 16>(v, shared, roots);
  }
  return roots;
}

// The last pass forward of two butterflies.
__device__ __forceinline__ void arrive(Z (&a)[R], Z (&b)[R], const Meeting& at, const Z* shared, const Z* roots) {
#pragma unroll
  for (int r = 0; r < R; r++) {
    a[r] = shared[LINES * (padded(at.j) + padded(r * J))];
    b[r] = shared[LINES * (padded(at.partner) + padded(r * J))];
  }
  dft<R, true>(a, roots[at.j]), dft<R, true>(b, roots[at.partner]);
  if (!at.own) return;
  const Z middle = a[R / 2];
#pragma unroll
  for (int r = R / 2; r < R; r++) {
    const Z next = r + 1 < R ? a[r + 1 < R ? r + 1 : r] : middle;
    a[r] = b[r], b[r] = next;
  }
}

// The first pass back.
__device__ __forceinline__ void leave(Z (&a)[R], Z (&b)[R], const Meeting& at) {
  if (at.own) {
    Z before = b[R - 1];
#pragma unroll
    for (int r = R / 2; r < R; r++) {
      const Z own = b[r];
      b[r] = a[r], a[r] = before, before = own;
    }
  }
  dft<R>(a), dft<R>(b);
}

// After it, to where its results belong; then the other passes back.
__device__ __forceinline__ void go_back(Z (&v)[EACH], Z* shared, const Z* roots) {
  __syncthreads();
#pragma unroll
  for (int q = 0; q < EACH / R / 2; q++) {
    const Meeting at(q);
#pragma unroll
    for (int r = 0; r < R; r++) {
      shared[LINES * (padded(at.j * R) + r)] = v[2 * q * R + r];
      shared[LINES * (padded(at.partner * R) + r)] = v[(2 * q + 1) * R + r];
    }
  }
  __syncthreads();
  get<M, EACH, LINES>(v, shared, thread());
  fft<M, EACH, LINES, R>(v, shared, roots, thread());
}
