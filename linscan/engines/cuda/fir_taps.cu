// dw[j] = sum_t dy[t] conj(x[first + t - step j]) and dbias = sum_t dy[t], for each row and chunk of its steps apart.
//
// A block owns one chunk of one row (TIME: lanes along time) or of 32 neighbouring rows, and eight taps. A thread adds up
// to BATCH products in the dtype of the arithmetic, then in double precision; warps and lanes are added in a fixed order.
// The sums over chunks, and over rows that share weights, are left to array code. parts: (rows, chunks, taps + 1).
//
// Bytes moved: dy and x once for every eight taps. Limits: rows and lengths below 2^63; up to 6 batch axes after folding.
#ifndef STORAGE  // one variant, for a compiler that is only asked whether this compiles
#define STORAGE float
#define TIME 1
#define RESETS 1
#define STRICT 0
#endif
#include "fir.cuh"

constexpr int WARPS = 8, THREADS = 32 * WARPS, GROUP = 8, BATCH = 8;

template <class R> struct Wide { typedef double type; };
template <class R> struct Wide<complex<R>> { typedef complex128 type; };
typedef Wide<C>::type D;

__device__ __forceinline__ double to_double(float x) { return x; }
__device__ __forceinline__ double to_double(double x) { return x; }
template <class R> __device__ __forceinline__ complex128 to_double(complex<R> x) { return {to_double(x.re), to_double(x.im)}; }

__device__ __forceinline__ void accumulate(C (&sum)[GROUP + 1], const Seen& x, const Span& span, C dy, i64 p, i64 tap, int count) {
  bool own = true;
  if (RESETS)
    for (i64 j = 0; j < tap && own; j++) own = joined(x, span, p - span.step * j);
#pragma unroll
  for (int j = 0; j < GROUP; j++) {
    if (j >= count) break;
    const i64 q = p - span.step * (tap + j);
    if (RESETS && j) own = own && joined(x, span, q + span.step);
    if (STRICT && !inside(span, q)) continue;
    const C value = !RESETS || own ? fetch(x, span, q) : Number<C>::make(0);
    sum[j] = mul_add(dy, conj(value), sum[j]);
  }
  sum[GROUP] = add(sum[GROUP], dy);
}

extern "C" __global__ void __launch_bounds__(THREADS)
fir_taps(const __grid_constant__ Layout layout, const __grid_constant__ Span span, const S* u, const S* past, const S* dy,
         const u8* reset, D* parts) {
  __shared__ D shared[WARPS][TIME ? 1 : 32];
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  const i64 lines = TIME ? layout.rows : (layout.rows + 31) / 32, groups = (span.taps + GROUP - 1) / GROUP;
  const i64 steps = span.run * BATCH;  // of a thread
  for (i64 block = blockIdx.x; block < lines * layout.tiles * groups; block += gridDim.x) {
    const i64 tile = block / groups % layout.tiles, line = block / groups / layout.tiles, tap = block % groups * GROUP;
    const bool mine = TIME || line * 32 + lane < layout.rows;
    const i64 row = TIME ? line : mine ? line * 32 + lane : layout.rows - 1;
    const int count = span.taps - tap < GROUP ? static_cast<int>(span.taps - tap) : GROUP;
    const Place place = locate(layout, row);
    const Seen x = seen(layout, place, u, past, reset);
    const S* from = dy + place.at[RESULT];
    const i64 time = layout.operand[RESULT].time, apart = TIME ? THREADS : 1;
    const i64 begin = TIME ? tile * THREADS * steps + threadIdx.x : (tile * WARPS + warp) * steps;
    D total[GROUP + 1];
#pragma unroll
    for (int j = 0; j <= GROUP; j++) total[j] = Number<D>::make(0);
    for (i64 r = 0; r < span.run; r++) {
      C sum[GROUP + 1];
#pragma unroll
      for (int j = 0; j <= GROUP; j++) sum[j] = Number<C>::make(0);
#pragma unroll 4
      for (int i = 0; i < BATCH; i++) {
        const i64 t = begin + (r * BATCH + i) * apart;
        if (mine && t < layout.length) accumulate(sum, x, span, widen(from[t * time]), span.first + t, tap, count);
      }
#pragma unroll
      for (int j = 0; j <= GROUP; j++) total[j] = add(total[j], to_double(sum[j]));
    }
#pragma unroll
    for (int j = 0; j <= GROUP; j++) {
      D sum = total[j];
      if (TIME)
        for (int by = 16; by; by /= 2) sum = add(sum, shuffle_down(sum, by));
      if (!TIME || lane == 0) shared[warp][TIME ? 0 : lane] = sum;
      __syncthreads();
      if (TIME ? threadIdx.x == 0 : warp == 0 && mine) {
        for (int w = 1; w < WARPS; w++) sum = add(sum, shared[w][TIME ? 0 : lane]);
        D* to = parts + (row * layout.tiles + tile) * (span.taps + 1);
        if (j < count) to[tap + j] = sum;
        if (j == GROUP && tap == 0) to[span.taps] = sum;
      }
      __syncthreads();
    }
  }
}
