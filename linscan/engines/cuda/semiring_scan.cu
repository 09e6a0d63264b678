// Running maxima, logarithms of sums of exponentials, and averages weighted by them:
//
//   MAXIMUM   h <- max(a + h, b)            LOGARITHM   h <- log(exp(a + h) + exp(b))
//   AVERAGE   z <- log(exp(w + z) + exp(s)), y <- (exp(w + z_before) y + exp(s) v) / exp(z)
//
// An element is what some steps do: h -> join(a + h, m + log l), where m is the largest exponent and l a sum of
// exponentials of at most 0; y is the average of their values. Minus infinity is the zero: m of steps that add nothing, a
// of steps that forget, and a of a state. Plus infinity and NaN go where the plain loop has them: where what came before
// has nothing, a + m is not formed, because the state that it would be formed with is not known yet; and after +inf it
// does not matter what comes before. (Averages after a log-decay of +inf, which is none, are not those of the loop.)
#ifndef STORAGE
#define STORAGE float
#define AVERAGE 1
#define LOGARITHM 1
#define LANES 1
#define STEPS 8
#define WARPS 4
#define GROUP 16
#define ROWS 1
#define CHUNK 8
#define RESETS 1
#define REVERSED 0
#endif
#include "numbers.cuh"

typedef STORAGE S;
typedef Compute<S>::type C;
#define HAS_FIRST 1
#define SPLIT 0
#define WIDEST sizeof(S)
#define OPERANDS 8
#define RESET_OPERAND 7
#if AVERAGE
#define INPUTS(X) X(0, S, a) X(1, S, b) X(2, S, v)
#define OUTPUTS(X) X(3, S, h) X(4, S, y)
#define FIRSTS(X) X(5, S, h) X(6, S, y)
#else
#define INPUTS(X) X(0, S, a) X(1, S, b)
#define OUTPUTS(X) X(3, S, h)
#define FIRSTS(X) X(5, S, h)
#endif
#include "assoc.cuh"

struct Element {
  C a, m;
#if LOGARITHM
  C l;
#endif
#if AVERAGE
  C y;
#endif
};

__device__ __forceinline__ C nothing() { return Number<C>::make(-__longlong_as_double(0x7ff0000000000000ll)); }

__device__ __forceinline__ Element element(const Inputs& in, int i, bool fresh) {
  Element x;
  x.a = fresh ? nothing() : in.a.get(i), x.m = in.b.get(i);
#if LOGARITHM
  x.l = 1;
#endif
#if AVERAGE
  x.y = x.m == nothing() ? 0 : x.m != x.m ? x.m : in.v.get(i);
#endif
  return x;
}

__device__ __forceinline__ Element initial(const Firsts& first, const Pointers& pointers) {
  Element x;
  x.a = nothing(), x.m = pointers.at[5] ? first.h : nothing();
#if LOGARITHM
  x.l = 1;
#endif
#if AVERAGE
  x.y = first.y;
#endif
  return x;
}

__device__ __forceinline__ void result(Outputs& out, int i, const Element& x) {
#if LOGARITHM
  out.h.set(i, Narrow<S>::of(is_finite(x.m) ? x.m + log(x.l) : x.m));
#else
  out.h.set(i, Narrow<S>::of(x.m));
#endif
#if AVERAGE
  out.y.set(i, Narrow<S>::of(x.y));
#endif
}

__device__ __forceinline__ Element combine(const Element& earlier, const Element& later) {
  const bool settled = earlier.m > nothing() && (earlier.a == nothing() || later.a == -nothing());
  Element both = later;
  both.a = settled ? earlier.a : earlier.a + later.a;
  if (earlier.m == nothing() && earlier.a > nothing()) return both;
  const C carried = later.a + earlier.m;
  const bool older = carried >= later.m, known = carried == carried && later.m == later.m;
  both.m = !known ? carried + later.m : older ? carried : later.m;
#if LOGARITHM
  const C ratio = exp(older ? later.m - carried : carried - later.m);
  const C p = older ? earlier.l : earlier.l * ratio, q = older ? later.l * ratio : later.l;
  both.l = is_finite(both.m) ? p + q : 1;
#if AVERAGE
  const C all = p + q, x = p / all * earlier.y, y = q / all * later.y;
  both.y = both.m == nothing() ? 0 : !known ? both.m : (p == 0 ? 0 : x) + (q == 0 ? 0 : y);
#endif
#endif
  return both;
}

#include "assoc_kernel.cuh"
