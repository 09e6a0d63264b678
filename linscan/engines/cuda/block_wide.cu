// h[t] = A[t] h[t-1] + b[t] with matrices of any size, and its pullback: the plain loop over time, one block to a row.
//
// Forwards a warp owns every WARPS-th line of a matrix, its lanes neighbouring columns, and sums over them in a fixed
// order. Backwards a thread owns every blockDim-th column. The state is in memory, in the arithmetic's precision.
//
// Bytes moved: every input once, every output once. Limits: those of layout.cuh.
#ifndef STORAGE
#define STORAGE complex128
#define PULLBACK 1
#define SLOPES 1
#endif
#include "layout.cuh"

typedef STORAGE S;
typedef Compute<S>::type C;
constexpr bool PULL = PULLBACK, SLOPE_OUT = PULLBACK && SLOPES;

__device__ __forceinline__ C sum_lanes(C x) {
#pragma unroll
  for (int by = 16; by; by /= 2) x = add(x, shuffle_xor(x, by));
  return x;
}

extern "C" __global__ void __launch_bounds__(256)
scan(const __grid_constant__ Layout layout, const S* decay, const S* input, const S* history, S* out, S* slope,
     const u8* reset, const S* first_state, C* last_flow, C* memory, i64 n) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const C zero = Number<C>::make(0);
  for (i64 row = blockIdx.x; row < layout.rows; row += gridDim.x) {
    const Place place = locate(layout, row);
    const Operand* operand = layout.operand;
    C *now = memory + 2 * row * n, *next = now + n;  // the state, or what flows back
    const S* known = first_state ? first_state + place.at[FIRST] : nullptr;
    for (i64 i = threadIdx.x; i < n; i += blockDim.x) now[i] = PULL || !known ? zero : widen(known[i]);
    __syncthreads();
    for (i64 t = 0; t < layout.length; t++) {
      const S *a = decay + place.at[DECAY] + t * operand[DECAY].time, *b = input + place.at[INPUT] + t * operand[INPUT].time;
      S* h = out + place.at[OUT] + t * operand[OUT].time;
      const bool fresh = reset && reset[place.at[RESET] + t * operand[RESET].time];
      if (!PULL) {
        for (i64 i = warp; i < n; i += warps) {
          C sum = zero;
          if (!fresh)
            for (i64 j = lane; j < n; j += 32) sum = mul_add(widen(a[i * n + j]), now[j], sum);
          sum = add(sum_lanes(sum), widen(b[i]));
          if (lane == 0) next[i] = sum, h[i] = Narrow<S>::of(sum);
        }
        C* old = now;
        now = next, next = old;
        __syncthreads();
        continue;
      }
      for (i64 i = threadIdx.x; i < n; i += blockDim.x) {
        const C delta = add(now[i], widen(b[i]));
        next[i] = delta, h[i] = Narrow<S>::of(delta);
      }
      __syncthreads();
      const bool ends = t + 1 == layout.length;
      const S* before = ends ? known : history + place.at[BEFORE] + (t + 1) * operand[BEFORE].time;
      S* d = slope + place.at[SLOPE] + t * operand[SLOPE].time;
      for (i64 j = threadIdx.x; j < n; j += blockDim.x) {
        const C x = before ? conj(widen(before[j])) : zero;
        C sum = zero;
        for (i64 i = 0; i < n; i++) {
          sum = mul_add(conj(widen(a[i * n + j])), next[i], sum);
          if (SLOPE_OUT) d[i * n + j] = Narrow<S>::of(fresh ? zero : mul(next[i], x));
        }
        now[j] = fresh ? zero : sum;
      }
      __syncthreads();
    }
    if (PULL)
      for (i64 i = threadIdx.x; i < n; i += blockDim.x) last_flow[row * n + i] = now[i];
    __syncthreads();
  }
}
