// Zero-order hold of diagonal systems, ā = e^z and w = h φ₁(z) with z = h a, and the pullback; in double precision.
//
// φ₁(z) = (e^z - 1) / z and its derivative are taken without cancellation (linscan/engines/reference/phi.py). A thread
// owns one eigenvalue.
#ifndef STORAGE  // the launcher's macro, as the tests compile it
#define STORAGE complex64
#endif
#include "numbers.cuh"

typedef STORAGE S;
constexpr int TERMS = 20;  // the first term left out is below 1e-19 for |z| <= 1

template <class T> struct Double {
  typedef double type;
  static __device__ __forceinline__ complex128 of(T x) { return {static_cast<double>(widen(x)), 0}; }
  static __device__ __forceinline__ double wide(complex128 x) { return x.re; }
  static __device__ __forceinline__ T narrow(complex128 x) {
    return Narrow<T>::of(static_cast<typename Compute<T>::type>(x.re));
  }
};
template <class R> struct Double<complex<R>> {
  typedef complex128 type;
  static __device__ __forceinline__ complex128 of(complex<R> x) { return {x.re, x.im}; }
  static __device__ __forceinline__ complex128 wide(complex128 x) { return x; }
  static __device__ __forceinline__ complex<R> narrow(complex128 x) { return {static_cast<R>(x.re), static_cast<R>(x.im)}; }
};

__device__ __forceinline__ complex128 minus(complex128 x, complex128 y) { return {x.re - y.re, x.im - y.im}; }
__device__ __forceinline__ complex128 over(complex128 x, complex128 y) {
  const double size = y.re * y.re + y.im * y.im;
  return {(x.re * y.re + x.im * y.im) / size, (x.im * y.re - x.re * y.im) / size};
}

struct Hold {
  complex128 z, power, phi;

  __device__ __forceinline__ Hold(complex128 a, double h) : z{h * a.re, h * a.im} {
    const double size = exp(z.re), half = sin(z.im / 2);
    power = {size * cos(z.im), size * sin(z.im)};
    const complex128 less = {expm1(z.re) * cos(z.im) - 2 * half * half, power.im};  // e^z - 1
    phi = z.re == 0 && z.im == 0 ? complex128{1, 0} : over(less, z);
  }
  __device__ __forceinline__ complex128 phi_slope() const {
    if (z.re * z.re + z.im * z.im > 1) return over(minus(power, phi), z);
    complex128 sum = {1, 0};  // the sum of (n + 1) / (n + 2)! z^n, term after term from its ratio to the one before
#pragma unroll
    for (int n = TERMS - 1; n; n--) {
      sum = mul((n + 1) / (n * (n + 2.0)), mul(sum, z));
      sum.re += 1;
    }
    return {sum.re / 2, sum.im / 2};
  }
};

extern "C" __global__ void hold(const S* a, const double* h, S* a_bar, S* w, i64 size) {
  const i64 i = blockIdx.x * i64(blockDim.x) + threadIdx.x;
  if (i >= size) return;
  const Hold hold(Double<S>::of(a[i]), h[i]);
  a_bar[i] = Double<S>::narrow(hold.power), w[i] = Double<S>::narrow(mul(h[i], hold.phi));
}

extern "C" __global__ void hold_pullback(const S* a, const double* h, const S* da_bar, const S* dw, typename Double<S>::type* da,
                                    double* dh, i64 size) {
  const i64 i = blockIdx.x * i64(blockDim.x) + threadIdx.x;
  if (i >= size) return;
  const complex128 value = Double<S>::of(a[i]), dy = Double<S>::of(da_bar[i]), dv = Double<S>::of(dw[i]);
  const Hold hold(value, h[i]);
  // dz = conj(e^z) dā + conj(φ₁'(z)) h dw;   da = h dz;   dh = Re(conj(a) dz + conj(φ₁(z)) dw).
  const complex128 dz = add(mul(conj(hold.power), dy), mul(h[i], mul(conj(hold.phi_slope()), dv)));
  da[i] = Double<S>::wide(mul(h[i], dz));
  dh[i] = add(mul(conj(value), dz), mul(conj(hold.phi), dv)).re;
}
