// From chunk to chunk of a row: z -> P z + f, where P = M^L is the chunk's matrix and f what it leaves from rest (chunks.py).
//
// Powers of M have large entries that cancel where poles lie close together near the unit circle, so that edges need more
// digits than the signal: double for float, and Long, twice the digits of double, for double. P comes from M by squaring,
// in Long.
//
// Where P is not tame (an entry above 1024, or not finite) the row is one chunk: it would be the small difference of large
// numbers, or overflow, although the plain loop may do well. Where a state at an edge is not finite, the chunk before
// that edge goes on to the end of its row, in the plain loop.
#pragma once
#include "numbers.cuh"

// The sum of two doubles that do not overlap.
struct Long { double high, low; };

__device__ __forceinline__ Long operator-(Long x) { return {-x.high, -x.low}; }
__device__ __forceinline__ Long mul_add(Long x, Long y, Long z) {
  const double p = x.high * y.high, p_low = __fma_rn(x.high, y.high, -p) + (x.high * y.low + x.low * y.high);
  const double sum = p + z.high, rest = sum - p, low = (p - (sum - rest)) + (z.high - rest) + p_low + z.low;
  const double high = sum + low;
  return {high, low - (high - sum)};
}
__device__ __forceinline__ Long mul(Long x, Long y) { return mul_add(x, y, Long{0.0, 0.0}); }
__device__ __forceinline__ Long operator*(Long x, Long y) { return mul(x, y); }
__device__ __forceinline__ Long negative(Long x) { return -x; }
__device__ __forceinline__ bool at_most(Long x, double limit) { return fabs(x.high) <= limit; }
__device__ __forceinline__ Long shuffle(Long x, int lane) { return {shuffle(x.high, lane), shuffle(x.low, lane)}; }

// Double precision for a number, and the precision of its edges.
template <class C> struct Wide { typedef double type; };
template <class R> struct Wide<complex<R>> { typedef complex<double> type; };
template <class C> struct Edge { typedef double type; };
template <> struct Edge<double> { typedef Long type; };
template <class R> struct Edge<complex<R>> { typedef complex<typename Edge<R>::type> type; };
template <class C> struct Longest { typedef Long type; };
template <class R> struct Longest<complex<R>> { typedef complex<Long> type; };

// From any of these precisions to another.
__device__ __forceinline__ double leading(float x) { return x; }
__device__ __forceinline__ double leading(double x) { return x; }
__device__ __forceinline__ double leading(Long x) { return x.high; }
template <class To> struct Cast {
  template <class R> static __device__ __forceinline__ To of(R x) { return static_cast<To>(leading(x)); }
};
template <> struct Cast<Long> {
  template <class R> static __device__ __forceinline__ Long of(R x) { return {leading(x), 0.0}; }
  static __device__ __forceinline__ Long of(Long x) { return x; }
};
template <class To> struct Cast<complex<To>> {
  template <class R> static __device__ __forceinline__ complex<To> of(R x) { return {Cast<To>::of(x), Cast<To>::of(0.0)}; }
  template <class R> static __device__ __forceinline__ complex<To> of(complex<R> x) {
    return {Cast<To>::of(x.re), Cast<To>::of(x.im)};
  }
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
    line[j] = live ? from[j] : Cast<M>::of(0.0);
    tame = tame && at_most(line[j], 1024.0);
  }
  return tame;
}

// M^(2^first) and M^(2^(first + more)) of one filter, by one block; `matrix` holds M on entry.
template <int N, class E, class M> __device__ __forceinline__ void powers(E (&matrix)[2][N * N], int first, int more, M* out) {
  int now = 0;
  for (int n = 0; n <= first + more; n++) {
    __syncthreads();
    for (int e = threadIdx.x; e < N * N; e += blockDim.x) {
      if (n == first) out[e] = Cast<M>::of(matrix[now][e]);
      if (n == first + more) out[N * N + e] = Cast<M>::of(matrix[now][e]);
      E total = Cast<E>::of(0.0);
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

  W z = Cast<W>::of(0.0);
#pragma unroll 4
  for (int n = 0; n < span; n++) {
    const bool there = begin + n < chunks;
    const W next = over_chunk(line, z, Cast<W>::of(there && live ? states[(begin + n) * N] : none));
    z = there ? next : z;
  }
  entering[me] = z;
  __syncthreads();
  if (me < 32) {  // every group of this warp does the same
    z = first && live ? Cast<W>::of(first[part]) : Cast<W>::of(0.0);
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
          z = over_chunk(line, z, Cast<W>::of(live ? states[c * N] : none));
      }
    }
  }
  __syncthreads();
  z = entering[me];
  C next = live && begin < chunks ? states[begin * N] : none;
#pragma unroll 1
  for (i64 c = begin; c < begin + span; c++) {
    const C f = next, edge = Cast<C>::of(z);
    next = live && c + 1 < begin + span && c + 1 < chunks ? states[(c + 1) * N] : none;
    if (live && c < chunks) {
      states[c * N] = edge;
      if (!is_finite(edge)) atomicMin(&bad, static_cast<u64>(c > 0 ? c - 1 : 0));
    }
    z = over_chunk(line, z, Cast<W>::of(f));
  }
  __syncthreads();
  if (me == 0) *stop = wild ? 0 : static_cast<i64>(bad);
  __syncthreads();
}
