// From chunk to chunk of a row: z -> P z + f, where P = M^L is the chunk's matrix and f what it leaves from rest (chunks.py).
//
// Edges are computed in double whatever the signal. P comes from M by squaring, in twice the digits of double: powers of M
// have large entries that cancel where poles lie close together near the unit circle.
//
// Where P is not tame (an entry above 1024, or not finite) the row is one chunk: it would be the small difference of large
// numbers, or overflow, although the plain loop may do well. Where a state at an edge is not finite, the chunk before
// that edge goes on to the end of its row, in the plain loop.
#pragma once
#include "numbers.cuh"

template <class C> struct Wide { typedef double type; };
template <class R> struct Wide<complex<R>> { typedef complex<double> type; };

__device__ __forceinline__ double in_double(float x) { return x; }
__device__ __forceinline__ double in_double(double x) { return x; }
template <class R> __device__ __forceinline__ complex<double> in_double(complex<R> x) { return {x.re, x.im}; }

template <class C> struct Rounded {
  static __device__ __forceinline__ C of(double x) { return static_cast<C>(x); }
};
template <class R> struct Rounded<complex<R>> {
  static __device__ __forceinline__ complex<R> of(complex<double> x) { return {static_cast<R>(x.re), static_cast<R>(x.im)}; }
};

constexpr int CARRY_THREADS = 512;

template <int N> struct Width { enum { value = 2 * Width<(N + 1) / 2>::value }; };  // lanes that share a state of N numbers
template <> struct Width<1> { enum { value = 1 }; };

// z <- P z + f, of which this lane holds one number and its line of P.
template <int N, class M, class W> __device__ __forceinline__ W over_chunk(const M (&line)[N], W z, W f) {
  const int group = threadIdx.x & 31 & ~(Width<N>::value - 1);
#pragma unroll
  for (int j = 0; j < N; j++) f = mul_add(line[j], shuffle(z, group + j), f);
  return f;
}

// Reads a line of P; whether it is tame.
template <int N, class M> __device__ __forceinline__ bool read_line(M (&line)[N], const M* from, bool live) {
  bool tame = true;
#pragma unroll
  for (int j = 0; j < N; j++) {
    line[j] = live ? from[j] : Number<M>::make(0);
    tame = tame && at_most(line[j], 1024.0);
  }
  return tame;
}

// The sum of two doubles that do not overlap.
struct Long { double high, low; };
__device__ __forceinline__ Long operator-(Long x) { return {-x.high, -x.low}; }
__device__ __forceinline__ Long mul_add(Long x, Long y, Long z) {
  const double p = x.high * y.high, p_low = __fma_rn(x.high, y.high, -p) + (x.high * y.low + x.low * y.high);
  const double sum = p + z.high, rest = sum - p, low = (p - (sum - rest)) + (z.high - rest) + p_low + z.low;
  const double high = sum + low;
  return {high, low - (high - sum)};
}
template <class M> struct Longer { typedef Long type; };
template <> struct Longer<complex<double>> { typedef complex<Long> type; };
__device__ __forceinline__ Long lengthen(double x) { return {x, 0.0}; }
__device__ __forceinline__ complex<Long> lengthen(complex<double> x) { return {lengthen(x.re), lengthen(x.im)}; }
__device__ __forceinline__ double shorten(Long x) { return x.high; }
__device__ __forceinline__ complex<double> shorten(complex<Long> x) { return {x.re.high, x.im.high}; }

// M^(2^first) and M^(2^(first + more)) of one filter, by one block; `matrix` holds M on entry.
template <int N, class E, class M> __device__ __forceinline__ void powers(E (&matrix)[2][N * N], int first, int more, M* out) {
  int now = 0;
  for (int n = 0; n <= first + more; n++) {
    __syncthreads();
    for (int e = threadIdx.x; e < N * N; e += blockDim.x) {
      if (n == first) out[e] = shorten(matrix[now][e]);
      if (n == first + more) out[N * N + e] = shorten(matrix[now][e]);
      E total = lengthen(Number<M>::make(0));
      for (int k = 0; k < N; k++) total = mul_add(matrix[now][e / N * N + k], matrix[now][k * N + e % N], total);
      matrix[1 - now][e] = total;
    }
    now = 1 - now;
  }
}

// The states at the edges of one row's chunks take the place of the chunks' f; returns the chunk that goes on to the end of
// the row, `chunks` if none does. One block; every Width<N> lanes own `span` neighbouring chunks.
template <int N, class C, class M, class W>
__device__ __forceinline__ void carry_row(const M* matrices, C* states, const C* first, i64 chunks, int span, i64* stop) {
  constexpr int WIDTH = Width<N>::value;
  __shared__ W entering[CARRY_THREADS];
  __shared__ u64 bad;
  const int me = threadIdx.x, part = me % WIDTH, owner = me / WIDTH, owners = blockDim.x / WIDTH;
  const bool live = part < N;
  const i64 begin = static_cast<i64>(owner) * span;
  const C none = Number<C>::make(0);
  states += part;
  M line[N];
  const bool long_wild = __syncthreads_or(!read_line(line, matrices + N * N + part * N, live));
  const bool wild = __syncthreads_or(!read_line(line, matrices + part * N, live));
  if (me == 0) bad = static_cast<u64>(chunks);

  W z = Number<W>::make(0);
#pragma unroll 4
  for (int n = 0; n < span; n++) {
    const bool there = begin + n < chunks;
    const W next = over_chunk(line, z, in_double(there && live ? states[(begin + n) * N] : none));
    z = there ? next : z;
  }
  entering[me] = z;
  __syncthreads();
  if (me < 32) {  // every group of this warp does the same
    z = first && live ? in_double(first[part]) : Number<W>::make(0);
    M long_line[N];
    read_line(long_line, matrices + N * N + part * N, live);
#pragma unroll 1
    for (int n = 0; n < owners; n++) {
      const W given = entering[n * WIDTH + part];
      __syncwarp();
      if (me < WIDTH) entering[n * WIDTH + part] = z;
      if (!long_wild) {
        z = over_chunk(long_line, z, given);
      } else {
        for (i64 c = static_cast<i64>(n) * span; c < (n + 1ll) * span && c < chunks; c++)
          z = over_chunk(line, z, in_double(live ? states[c * N] : none));
      }
    }
  }
  __syncthreads();
  z = entering[me];
  C next = live && begin < chunks ? states[begin * N] : none;
#pragma unroll 1
  for (i64 c = begin; c < begin + span; c++) {
    const C f = next, edge = Rounded<C>::of(z);
    next = live && c + 1 < begin + span && c + 1 < chunks ? states[(c + 1) * N] : none;
    if (live && c < chunks) {
      states[c * N] = edge;
      if (!is_finite(edge)) atomicMin(&bad, static_cast<u64>(c > 0 ? c - 1 : 0));
    }
    z = over_chunk(line, z, in_double(f));
  }
  __syncthreads();
  if (me == 0) *stop = wild ? 0 : static_cast<i64>(bad);
  __syncthreads();
}
