// Powers of the eigenvalues of diagonal models, in double precision whatever the dtype: the phase of z^l needs it.
//
// squares.cu leaves z^(2^i) of every state in memory, bit i of all states side by side; a power is a product over the
// bits of its exponent, so that 0^0 is 1 and z^0 looks at no z.
#pragma once
#include "numbers.cuh"

template <class C> struct Real { typedef C type; };
template <class R> struct Real<complex<R>> { typedef R type; };

__device__ __forceinline__ complex128 wide(float x) { return {x, 0.0}; }
__device__ __forceinline__ complex128 wide(double x) { return {x, 0.0}; }
__device__ __forceinline__ complex128 wide(complex64 x) { return {x.re, x.im}; }
__device__ __forceinline__ complex128 wide(complex128 x) { return x; }

constexpr int BITS = 48;  // at most: of the lags of a kernel

// The squares of one state: bit i is at[i * stride].
struct Squares {
  const complex128* at;
  i64 stride;
  int bits;

  __device__ __forceinline__ complex128 operator[](int bit) const { return at[bit * stride]; }
  __device__ __forceinline__ complex128 power(i64 exponent) const {
    complex128 x = {1.0, 0.0};
#pragma unroll 1
    for (u64 left = exponent; left; left &= left - 1) x = mul(x, (*this)[__ffsll(left) - 1]);
    return x;
  }
  // first z^exponent, where z^exponent itself may overflow although the product does not. The largest square that is
  // finite is multiplied in as often as needed; if there is a larger one, a few times are enough to overflow anything.
  __device__ __forceinline__ complex128 grown(complex128 first, i64 exponent) const {
    int top = bits - 1;
    while (top > 0 && !is_finite((*this)[top])) top--;
#pragma unroll 1
    for (i64 times = exponent >> top; times && is_finite(first); times--) first = mul(first, (*this)[top]);
#pragma unroll 1
    for (u64 left = exponent & ((1ll << top) - 1); left; left &= left - 1)
      first = mul(first, (*this)[__ffsll(left) - 1]);
    return first;
  }
  __device__ __forceinline__ bool grows(double limit) const {  // |z|^2 beyond it; NaN does not grow
    const complex128 z = (*this)[0];
    return z.re * z.re + z.im * z.im > limit;
  }
};
