// Numbers: what is stored (S) and what is computed with (C). float16 and bfloat16 are storage, computed in float32.
//
// Multiply-adds are written as such and the compiler is told not to make its own (-fmad=false): two kernels that share
// a function must give the same bits.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#ifndef INFINITY  // the run-time compiler has no math.h
#define INFINITY __int_as_float(0x7f800000)
#endif

struct float16 { u16 bits; };
struct bfloat16 { u16 bits; };
template <class R> struct alignas(2 * sizeof(R)) complex { R re, im; };
typedef complex<float> complex64;
typedef complex<double> complex128;

template <class S> struct Compute { typedef S type; };
template <> struct Compute<float16> { typedef float type; };
template <> struct Compute<bfloat16> { typedef float type; };

template <class S> __device__ __forceinline__ S widen(S x) { return x; }
__device__ __forceinline__ float widen(float16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
__device__ __forceinline__ float widen(bfloat16 x) { return __uint_as_float(static_cast<u32>(x.bits) << 16); }

template <class S> struct Narrow {
  static __device__ __forceinline__ S of(S x) { return x; }
};
template <> struct Narrow<float16> {
  static __device__ __forceinline__ float16 of(float x) {
    float16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
  }
};
template <> struct Narrow<bfloat16> {  // round to nearest even by hand: cards before sm_80 have no instruction for it
  static __device__ __forceinline__ bfloat16 of(float x) {
    u32 bits = __float_as_uint(x);
    u32 rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    bfloat16 y;
    y.bits = static_cast<u16>(x != x ? 0x7fc0u : rounded >> 16);
    return y;
  }
};

// Two neighbours: 16-bit numbers in one word, the first in the low half.
template <class S> struct Two { typedef u32 type; };
template <> struct Two<float> { typedef float2 type; };
__device__ __forceinline__ float low(u32 word, float16) {
  float y;
  asm("{.reg .b16 lo, hi; mov.b32 {lo, hi}, %1; cvt.f32.f16 %0, lo;}" : "=f"(y) : "r"(word));
  return y;
}
__device__ __forceinline__ float high(u32 word, float16) {
  float y;
  asm("{.reg .b16 lo, hi; mov.b32 {lo, hi}, %1; cvt.f32.f16 %0, hi;}" : "=f"(y) : "r"(word));
  return y;
}
__device__ __forceinline__ float low(u32 word, bfloat16) { return __uint_as_float(word << 16); }
__device__ __forceinline__ float high(u32 word, bfloat16) { return __uint_as_float(word & 0xffff0000u); }
__device__ __forceinline__ float low(float2 x, float) { return x.x; }
__device__ __forceinline__ float high(float2 x, float) { return x.y; }
template <class S> __device__ __forceinline__ typename Two<S>::type pair(float x, float y) {
  return Narrow<S>::of(x).bits | static_cast<u32>(Narrow<S>::of(y).bits) << 16;
}
template <> __device__ __forceinline__ float2 pair<float>(float x, float y) { return {x, y}; }
#if __CUDA_ARCH__ >= 800
template <> __device__ __forceinline__ u32 pair<float16>(float x, float y) {
  u32 word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(y), "f"(x));
  return word;
}
template <> __device__ __forceinline__ u32 pair<bfloat16>(float x, float y) {
  u32 word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(y), "f"(x));
  return word;
}
#endif

template <class C> struct Number {
  static __device__ __forceinline__ C make(double x) { return static_cast<C>(x); }
};
template <class R> struct Number<complex<R>> {
  static __device__ __forceinline__ complex<R> make(double x) { return {static_cast<R>(x), static_cast<R>(0)}; }
};

__device__ __forceinline__ float conj(float x) { return x; }
__device__ __forceinline__ double conj(double x) { return x; }
template <class R> __device__ __forceinline__ complex<R> conj(complex<R> x) { return {x.re, -x.im}; }

__device__ __forceinline__ float add(float x, float y) { return x + y; }
__device__ __forceinline__ double add(double x, double y) { return x + y; }
template <class R> __device__ __forceinline__ complex<R> add(complex<R> x, complex<R> y) {
  return {x.re + y.re, x.im + y.im};
}

__device__ __forceinline__ float mul(float x, float y) { return x * y; }
__device__ __forceinline__ double mul(double x, double y) { return x * y; }
__device__ __forceinline__ float mul_add(float x, float y, float z) { return __fmaf_rn(x, y, z); }
__device__ __forceinline__ double mul_add(double x, double y, double z) { return __fma_rn(x, y, z); }
template <class R> __device__ __forceinline__ complex<R> mul(complex<R> x, complex<R> y) {
  return {mul_add(x.re, y.re, -(x.im * y.im)), mul_add(x.re, y.im, x.im * y.re)};
}
template <class R> __device__ __forceinline__ complex<R> mul_add(complex<R> x, complex<R> y, complex<R> z) {
  return {mul_add(x.re, y.re, mul_add(-x.im, y.im, z.re)), mul_add(x.re, y.im, mul_add(x.im, y.re, z.im))};
}
// A real number times a complex one.
template <class R> __device__ __forceinline__ complex<R> mul(R x, complex<R> y) { return {x * y.re, x * y.im}; }
template <class R> __device__ __forceinline__ complex<R> mul_add(R x, complex<R> y, complex<R> z) {
  return {mul_add(x, y.re, z.re), mul_add(x, y.im, z.im)};
}

__device__ __forceinline__ float negative(float x) { return -x; }
__device__ __forceinline__ double negative(double x) { return -x; }
template <class R> __device__ __forceinline__ complex<R> negative(complex<R> x) { return {-x.re, -x.im}; }

__device__ __forceinline__ bool is_finite(float x) { return x - x == 0.0f; }
__device__ __forceinline__ bool is_finite(double x) { return x - x == 0.0; }
template <class R> __device__ __forceinline__ bool is_finite(complex<R> x) { return is_finite(x.re) && is_finite(x.im); }

__device__ __forceinline__ bool at_most(float x, double limit) { return fabsf(x) <= static_cast<float>(limit); }
__device__ __forceinline__ bool at_most(double x, double limit) { return fabs(x) <= limit; }
template <class R> __device__ __forceinline__ bool at_most(complex<R> x, double limit) {
  return at_most(x.re, limit) && at_most(x.im, limit);
}

template <class R> __device__ __forceinline__ R shuffle_up(R x, int by) { return __shfl_up_sync(~0u, x, by); }
template <class R> __device__ __forceinline__ complex<R> shuffle_up(complex<R> x, int by) {
  return {shuffle_up(x.re, by), shuffle_up(x.im, by)};
}
template <class R> __device__ __forceinline__ R shuffle_down(R x, int by) { return __shfl_down_sync(~0u, x, by); }
template <class R> __device__ __forceinline__ complex<R> shuffle_down(complex<R> x, int by) {
  return {shuffle_down(x.re, by), shuffle_down(x.im, by)};
}
template <class R> __device__ __forceinline__ R shuffle_xor(R x, int by) { return __shfl_xor_sync(~0u, x, by); }
template <class R> __device__ __forceinline__ complex<R> shuffle_xor(complex<R> x, int by) {
  return {shuffle_xor(x.re, by), shuffle_xor(x.im, by)};
}
template <class R> __device__ __forceinline__ R shuffle(R x, int lane) { return __shfl_sync(~0u, x, lane); }
template <class R> __device__ __forceinline__ complex<R> shuffle(complex<R> x, int lane) {
  return {shuffle(x.re, lane), shuffle(x.im, lane)};
}
