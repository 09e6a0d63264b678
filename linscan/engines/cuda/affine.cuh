// Affine maps (a, b): h -> a h + b. Scanning a recurrence is composing its steps' maps.
//
// One step of the recurrence, and of its pullback run in the opposite direction (flow is what comes from the future):
//   scan       h    <- a h + b
//   pullback   flow <- conj(a) (flow + dh),  db = flow + dh,  da = conj(h_before) (flow + dh)
// Both are affine in the state, so one composition serves both.
#pragma once
#include "numbers.cuh"

template <class C> struct Affine { C a, b; };

template <class C> __device__ __forceinline__ Affine<C> identity() {
  return {Number<C>::make(1), Number<C>::make(0)};
}

// First `before`, then `after`.
template <class C> __device__ __forceinline__ Affine<C> compose(Affine<C> after, Affine<C> before) {
  return {mul(after.a, before.a), mul_add(after.a, before.b, after.b)};
}

template <class C> __device__ __forceinline__ C apply(Affine<C> map, C h) { return mul_add(map.a, h, map.b); }

// Whether a composite may stand for its steps. Where decays above 1 multiply up it may not: it overflows, or what it gives
// is the small difference of large numbers, although the plain loop may do well.
template <class C> __device__ __forceinline__ bool is_tame(C a) { return at_most(a, 1024.0); }
template <class C> __device__ __forceinline__ bool is_tame(Affine<C> map) { return is_tame(map.a) && is_finite(map.b); }

// The state after one step. A reset forgets the state by selection, not by a = 0: NaN and inf must not survive it.
template <bool PULL, class C> __device__ __forceinline__ C advance(C a, C b, C state, bool reset) {
  if (PULL) return reset ? Number<C>::make(0) : mul(a, add(state, b));
  return reset ? b : mul_add(a, state, b);
}

// Inclusive scan over a warp's lanes, in a fixed order (Kogge-Stone).
template <class C> __device__ __forceinline__ Affine<C> warp_scan(Affine<C> map, int lane) {
#pragma unroll
  for (int by = 1; by < 32; by *= 2) {
    Affine<C> before = {shuffle_up(map.a, by), shuffle_up(map.b, by)};
    if (lane >= by) map = compose(map, before);
  }
  return map;
}
