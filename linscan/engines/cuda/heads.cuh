// Vectors of many heads that broadcast: where those of one head lie, and the real numbers that belong to a dtype.
#pragma once
#include "numbers.cuh"

template <class T> struct Real { typedef T type; };
template <class T> struct Real<complex<T>> { typedef T type; };

struct Operand { u64 at; i64 time, batch[6]; };  // strides in elements, those of features being 1

template <class T, class Problem> __device__ __forceinline__ T* locate(const Operand& x, const Problem& p, i64 head) {
  i64 at = 0;
#pragma unroll 1
  for (int d = static_cast<int>(p.ndim) - 1; d >= 0; d--) {
    const i64 rest = d ? head / p.size[d] : 0;
    at += (head - rest * p.size[d]) * x.batch[d];
    head = rest;
  }
  return reinterpret_cast<T*>(x.at) + at;
}

// e^x. A state that decays slowly is multiplied with thousands of them: near 0, what is always wrong the same way in expf,
// a tenth of a rounding, would add up.
__device__ __forceinline__ float exponential(float x) {
  float y = 1.0f / 120;
  y = mul_add(y, x, 1.0f / 24), y = mul_add(y, x, 1.0f / 6), y = mul_add(y, x, 0.5f), y = mul_add(y, x, 1.0f);
  return fabsf(x) <= 0.0625f ? mul_add(y, x, 1.0f) : expf(x);
}
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ bool is_zero(float x) { return x == 0; }
__device__ __forceinline__ bool is_zero(double x) { return x == 0; }
template <class T> __device__ __forceinline__ bool is_zero(complex<T> x) { return x.re == 0 && x.im == 0; }
__device__ __forceinline__ float real_of_product(float x, float y) { return x * y; }
__device__ __forceinline__ double real_of_product(double x, double y) { return x * y; }
template <class T> __device__ __forceinline__ T real_of_product(complex<T> x, complex<T> y) { return x.re * y.re - x.im * y.im; }

// N numbers that are read and written at once.
template <class T, int N> struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack { T item[N]; };

template <int N, class T> __device__ __forceinline__ void take(T (&to)[N], const T* from) {
  const Pack<T, N> x = *reinterpret_cast<const Pack<T, N>*>(from);
#pragma unroll
  for (int i = 0; i < N; i++) to[i] = x.item[i];
}
