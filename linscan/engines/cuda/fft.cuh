// Complex FFTs of M points by M / E threads of a block, after Stockham: E numbers a thread, M in shared memory in between.
//
// A pass of radix R takes, for each j < M / R, the points j + r M / R; twiddles; transforms; and puts result r where
// (j / NS) NS R + j % NS + r NS says, NS the product of the radices before. So slot e of thread t always holds point
// t + e M / E, before and after a whole transform, whose result is in natural order. Radices are 16 and a last, smaller
// one. Only forward transforms: the inverse is the forward one with real and imaginary parts swapped before and after.
// Shared memory has a number of padding after every 16, so that the strides of passes do not meet in one bank.
#pragma once
#include "numbers.cuh"

typedef complex<float> Z;

__device__ __forceinline__ int padded(int i) { return i + (i >> 4); }
__device__ __forceinline__ Z sub(Z x, Z y) { return {x.re - y.re, x.im - y.im}; }
__device__ __forceinline__ Z turn(Z x) { return {x.im, -x.re}; }  // times -i

// cos and -sin of 2 pi k / 16.
__device__ __forceinline__ Z sixteenth(int k) {
  constexpr float c = 0.92387953251128676f, s = 0.38268343236508977f, h = 0.70710678118654752f;
  return k == 0 ? Z{1.0f, 0.0f} : k == 1 ? Z{c, -s} : k == 2 ? Z{h, -h} : Z{s, -c};
}

// w exp(-2 pi i k / 32), k < 16.
__device__ __forceinline__ Z turned(Z w, int k) {
  constexpr float c = 0.98078528040323043f, s = 0.19509032201612825f, c3 = 0.83146961230254524f, s3 = 0.55557023301960218f;
  const int part = k % 8;
  const Z odd = part == 1 ? Z{c, -s} : part == 3 ? Z{c3, -s3} : part == 5 ? Z{s3, -c3} : Z{s, -c};
  const Z x = part == 0 ? w : mul(w, part % 2 ? odd : sixteenth(part / 2));
  return k < 8 ? x : turn(x);
}

// (a, b) becomes (a + f b, a - f b): six multiply-adds, as a - f b = 2 a - (a + f b).
__device__ __forceinline__ void butterfly(Z& a, Z& b, Z f) {
  const Z sum = mul_add(f, b, a);
  b = {__fmaf_rn(2.0f, a.re, -sum.re), __fmaf_rn(2.0f, a.im, -sum.im)};
  a = sum;
}
__device__ __forceinline__ void butterfly(Z& a, Z& b) {
  const Z sum = add(a, b);
  b = sub(a, b), a = sum;
}

// Transforms R points, in registers and in natural order; with TURNED, of x[r] w^r; with HALF, the second half of them is 0.
// Even and odd points apart, and then X[k], X[k + R / 2] = E[k] +- w exp(-2 pi i k / R) O[k].
template <int R, bool TURNED = false, bool HALF = false> __device__ __forceinline__ void dft(Z (&x)[R], Z w = {1.0f, 0.0f}) {
  if constexpr (R == 2) {
    if (TURNED) butterfly(x[0], x[1], w);
    else if (HALF) x[1] = x[0];
    else butterfly(x[0], x[1]);
  } else if constexpr (R > 2) {
    Z even[R / 2], odd[R / 2];
#pragma unroll
    for (int r = 0; r < R / 2; r++) even[r] = x[2 * r], odd[r] = x[2 * r + 1];
    const Z w2 = TURNED ? mul(w, w) : w;
    dft<R / 2, TURNED, HALF>(even, w2), dft<R / 2, TURNED, HALF>(odd, w2);
#pragma unroll
    for (int k = 0; k < R / 2; k++) {
      const int turns = k / (R / 4), part = k % (R / 4) * (16 / R);  // exp(-2 pi i k / R), a power of -i apart
      Z a = even[k], b = turns ? turn(odd[k]) : odd[k];
      if (TURNED) {
        butterfly(a, b, part ? mul(w, sixteenth(part)) : w);
      } else if (part == 2) {
        constexpr float h = 0.70710678118654752f;
        const Z c = a, d = {b.re + b.im, b.im - b.re};
        a = mul_add(h, d, c), b = mul_add(-h, d, c);
      } else if (part) {
        butterfly(a, b, sixteenth(part));
      } else {
        butterfly(a, b);
      }
      x[k] = a, x[k + R / 2] = b;
    }
  }
}

// One pass over the numbers of thread t; neighbours in it are E / R slots apart. `roots`: exp(-2 pi i p / (NS R)), p < NS.
template <int M, int E, int R, int NS, bool HALF = false> __device__ __forceinline__ void pass(Z (&v)[E], const Z* roots, int t) {
#pragma unroll
  for (int q = 0; q < E / R; q++) {
    Z x[R];
#pragma unroll
    for (int r = 0; r < R; r++) x[r] = v[q + r * (E / R)];
    if constexpr (NS > 1) dft<R, true>(x, roots[(t + q * (M / E)) % NS]);
    else dft<R, false, HALF>(x);
#pragma unroll
    for (int r = 0; r < R; r++) v[q + r * (E / R)] = x[r];
  }
}

// After a pass: to where its results belong in shared memory, in which neighbouring points lie APART apart; and from there.
template <int M, int E, int APART, int R, int NS> __device__ __forceinline__ void put(const Z (&v)[E], Z* shared, int t) {
#pragma unroll
  for (int q = 0; q < E / R; q++) {
    const int j = t + q * (M / E), to = padded(j / NS * (NS * R) + j % NS);
#pragma unroll
    for (int r = 0; r < R; r++) shared[APART * (to + padded(r * NS))] = v[q + r * (E / R)];  // as j % NS + r * NS % 16 < 16
  }
}
template <int M, int E, int APART> __device__ __forceinline__ void get(Z (&v)[E], const Z* shared, int t) {
#pragma unroll
  for (int e = 0; e < E; e++) v[e] = shared[APART * (padded(t) + padded(e * (M / E)))];
}

// The passes from NS on; `roots` holds those of one pass after the other, the first (NS = 1) left out.
template <int M, int E, int APART = 1, int NS = 1> __device__ __forceinline__ void fft(Z (&v)[E], Z* shared, const Z* roots, int t) {
  constexpr int R = M / NS < 16 ? M / NS : 16;
  pass<M, E, R, NS>(v, roots, t);
  if constexpr (NS * R < M) {
    __syncthreads();
    put<M, E, APART, R, NS>(v, shared, t);
    __syncthreads();
    get<M, E, APART>(v, shared, t);
    fft<M, E, APART, NS * R>(v, shared, roots + (NS > 1 ? NS : 0), t);
  }
}

// Packed real transforms: Z of the pairs (x[2 i], x[2 i + 1]) of n = 2 M real numbers; with w = exp(-2 pi i f / n),
//   2 X[f] = S + w O,  2 conj(X[M - f]) = S - w O,  S = Z[f] + conj(Z[M - f]),  O = (Z[f] - conj(Z[M - f])) / i.
// From bins f and M - f of Z to p = 2 X[f] and q = 2 conj(X[M - f]),
__device__ __forceinline__ void split(Z a, Z b, Z w, Z& p, Z& q) {
  b = conj(b);
  p = add(a, b), q = turn(sub(a, b));
  butterfly(p, q, w);
}

// and back, times 4 M, with real and imaginary parts swapped.
__device__ __forceinline__ void join(Z p, Z q, Z w, Z& a, Z& b) {
  Z x = add(p, q), y = sub(p, q);
  butterfly(x, y, {w.im, w.re});  // i conj(w)
  a = {x.im, x.re}, b = {-y.im, y.re};
}

// Times a kernel's spectrum, h at f and g at M - f; and times 4 M, which is undone where results are written.
__device__ __forceinline__ void multiply(Z& a, Z& b, Z w, Z h, Z g) {
  Z p, q;
  split(a, b, w, p, q);
  join(mul(p, h), mul(q, conj(g)), w, a, b);
}
