// Nonlinear functions f of a real number and their slopes f', by their number.
#pragma once
#include "elementary.cuh"
#include "numbers.cuh"

enum { IDENTITY, RELU, GELU, GELU_TANH, SILU, SIGMOID, TANH, SOFTPLUS };  // the order of linscan.ops.activation.KINDS

__device__ __forceinline__ float error_above(float x) { return erfcf(x); }
__device__ __forceinline__ double error_above(double x) { return erfc(x); }

template <class R> __device__ __forceinline__ R sigmoid(R x) { return reciprocal(1 + exponential(-x)); }
// Φ(x), with all its digits far below 0.
template <class R> __device__ __forceinline__ R below(R x) { return R(0.5) * error_above(x * R(-0.70710678118654752440)); }
// Twice √(2/π) (x + 0.044715 x³): its sigmoid is the usual approximation of Φ, (1 + tanh of half of it) / 2.
template <class R> __device__ __forceinline__ R bent(R x) {
  return R(1.59576912160573071176) * mul_add(R(0.044715) * x, x * x, x);
}

template <int F, class R> __device__ __forceinline__ R value_of(R x) {
  if (F == RELU) return x != x ? x : x > 0 ? x : 0;
  if (F == GELU) return x * below(x);
  if (F == GELU_TANH) return x * sigmoid(bent(x));
  if (F == SILU) return x * sigmoid(x);
  if (F == SIGMOID) return sigmoid(x);
  if (F == TANH) return tangent(x);
  if (F == SOFTPLUS) return (x > 0 ? x : 0) + log_one_plus(exponential(x > 0 ? -x : x));
  return x;
}

template <int F, class R> __device__ __forceinline__ R slope_of(R x) {
  if (F == RELU) return x > 0 ? 1 : 0;
  if (F == GELU) return mul_add(x * R(0.39894228040143267794), exponential(R(-0.5) * x * x), below(x));
  if (F == GELU_TANH) {
    const R e = exponential(-bent(x)), s = reciprocal(1 + e), above = e < 1 ? e * s : 1 - s;
    return mul_add(x * s, above * mul_add(R(3 * 0.044715 * 1.59576912160573071176) * x, x, R(1.59576912160573071176)), s);
  }
  if (F == SILU) {
    const R s = sigmoid(x);
    return s * mul_add(x, 1 - s, R(1));
  }
  if (F == SIGMOID) {
    const R s = sigmoid(x);
    return s * (1 - s);
  }
  if (F == TANH) {
    const R s = tangent(x);
    return 1 - s * s;
  }
  if (F == SOFTPLUS) return sigmoid(x);
  return 1;
}
