// Complex FFTs of M = E THREADS points in one block, after Stockham: E numbers a thread, M in shared memory in between.
//
// A pass of radix R takes, for each j < M / R, the points j + r M / R; twiddles; transforms; and puts result r where
// (j / NS) NS R + j % NS + r NS says, NS the product of the radices before. So slot e of thread t always holds point
// t + e THREADS, before and after a whole transform, whose result is in natural order. Radices are 16 and a last, smaller
// one. Only forward transforms: the inverse is the forward one with real and imaginary parts swapped before and after.
// Shared memory has a number of padding after every 16, so that the strides of passes do not meet in one bank.
#pragma once
#include "numbers.cuh"

typedef complex<float> Z;
constexpr int M = E * THREADS;

__device__ __forceinline__ int padded(int i) { return i + (i >> 4); }
__device__ __forceinline__ Z sub(Z x, Z y) { return {x.re - y.re, x.im - y.im}; }
__device__ __forceinline__ Z turn(Z x) { return {x.im, -x.re}; }  // times -i

template <int R> struct Dft;
template <> struct Dft<1> {
  static __device__ __forceinline__ void run(Z (&)[1]) {}
};
template <> struct Dft<2> {
  static __device__ __forceinline__ void run(Z (&x)[2]) {
    const Z a = x[0], b = x[1];
    x[0] = add(a, b), x[1] = sub(a, b);
  }
};
template <> struct Dft<4> {
  static __device__ __forceinline__ void run(Z (&x)[4]) {
    const Z a = add(x[0], x[2]), b = sub(x[0], x[2]), c = add(x[1], x[3]), d = turn(sub(x[1], x[3]));
    x[0] = add(a, c), x[1] = add(b, d), x[2] = sub(a, c), x[3] = sub(b, d);
  }
};
template <> struct Dft<8> {
  static __device__ __forceinline__ void run(Z (&x)[8]) {
    constexpr float h = 0.70710678118654752f;
    Z a[4] = {x[0], x[2], x[4], x[6]}, b[4] = {x[1], x[3], x[5], x[7]};
    Dft<4>::run(a), Dft<4>::run(b);
    const Z c = b[1], d = b[3];
    b[1] = {h * (c.re + c.im), h * (c.im - c.re)};
    b[2] = turn(b[2]);
    b[3] = {h * (d.im - d.re), -h * (d.re + d.im)};
#pragma unroll
    for (int i = 0; i < 4; i++) x[i] = add(a[i], b[i]), x[i + 4] = sub(a[i], b[i]);
  }
};
template <> struct Dft<16> {
  static __device__ __forceinline__ void run(Z (&x)[16]) {
    constexpr float c = 0.92387953251128676f, s = 0.38268343236508977f, h = 0.70710678118654752f;
    Z y[4][4];  // y[i][k]: the transform of x[i], x[i + 4], x[i + 8], x[i + 12]
#pragma unroll
    for (int i = 0; i < 4; i++) {
      Z a[4] = {x[i], x[i + 4], x[i + 8], x[i + 12]};
      Dft<4>::run(a);
#pragma unroll
      for (int k = 0; k < 4; k++) y[i][k] = a[k];
    }
    const Z w1 = {c, -s}, w3 = {s, -c};
    auto eighth = [&](Z z) { return Z{h * (z.re + z.im), h * (z.im - z.re)}; };
    y[1][1] = mul(y[1][1], w1), y[1][2] = eighth(y[1][2]), y[1][3] = mul(y[1][3], w3);
    y[2][1] = eighth(y[2][1]), y[2][2] = turn(y[2][2]), y[2][3] = turn(eighth(y[2][3]));
    y[3][1] = mul(y[3][1], w3), y[3][2] = turn(eighth(y[3][2])), y[3][3] = mul(y[3][3], Z{-c, s});
#pragma unroll
    for (int k = 0; k < 4; k++) {
      Z a[4] = {y[0][k], y[1][k], y[2][k], y[3][k]};
      Dft<4>::run(a);
#pragma unroll
      for (int i = 0; i < 4; i++) x[k + 4 * i] = a[i];
    }
  }
};

// x[r] *= w^r, in fours, because all powers at once would need too many registers.
template <int R> __device__ __forceinline__ void twiddle(Z (&x)[R], Z w) {
  const Z w2 = mul(w, w), w3 = mul(w2, w), w4 = mul(w2, w2);
  Z base = w4;
  x[1] = mul(x[1], w);
  if constexpr (R > 2) x[2] = mul(x[2], w2), x[3] = mul(x[3], w3);
#pragma unroll
  for (int r = 4; r < R; r += 4) {
    x[r] = mul(x[r], base), x[r + 1] = mul(x[r + 1], mul(base, w));
    x[r + 2] = mul(x[r + 2], mul(base, w2)), x[r + 3] = mul(x[r + 3], mul(base, w3));
    base = mul(base, w4);
  }
}

// `roots` holds exp(-2 pi i p / (NS R)), p < NS, for one pass after the other, the first (NS = 1) left out.
template <int NS = 1> __device__ __forceinline__ void fft(Z (&v)[E], Z* shared, const Z* roots) {
  constexpr int R = M / NS < 16 ? M / NS : 16;
  const int t = threadIdx.x;
#pragma unroll
  for (int q = 0; q < E / R; q++) {
    Z x[R];
#pragma unroll
    for (int r = 0; r < R; r++) x[r] = v[q + r * (E / R)];
    if (NS > 1) twiddle<R>(x, roots[(t + q * THREADS) % NS]);
    Dft<R>::run(x);
#pragma unroll
    for (int r = 0; r < R; r++) v[q + r * (E / R)] = x[r];
  }
  if constexpr (NS * R < M) {
    __syncthreads();
#pragma unroll
    for (int q = 0; q < E / R; q++) {
      const int j = t + q * THREADS, to = j / NS * (NS * R) + j % NS;
#pragma unroll
      for (int r = 0; r < R; r++) shared[padded(to) + r * padded(NS)] = v[q + r * (E / R)];  // NS is 1 or has a factor 16
    }
    __syncthreads();
#pragma unroll
    for (int e = 0; e < E; e++) v[e] = shared[padded(t) + e * padded(THREADS)];
    fft<NS * R>(v, shared, roots + (NS > 1 ? NS : 0));
  }
}
