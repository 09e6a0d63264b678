// A user's operator, compiled into the scan of assoc.cuh: assoc_scan.py names the arrays and puts the operator's code in
// the place marked below. Its Element has one number of every array; of 16-bit floats it is a float.
#ifndef INPUTS
#define INPUTS(X) X(0, float, x0) X(1, short, x1)
#define OUTPUTS(X) X(2, float, x0) X(3, short, x1)
#define FIRSTS(X) X(4, float, x0) X(5, short, x1)
#define OPERANDS 7
#define RESET_OPERAND 6
#define HAS_FIRST 1
#define WIDEST 4
#define LANES 0
#define STEPS 8
#define WARPS 4
#define GROUP 32
#define ROWS 1
#define CHUNK 8
#define RESETS 0
#define REVERSED 1
#define EXAMPLE
#endif
#define SPLIT 0
#include "assoc.cuh"

struct Element { INPUTS(LINSCAN_SINGLE_OF) };

namespace of_the_user {
#ifdef EXAMPLE
__device__ Element combine(Element earlier, Element later) {
  return {earlier.x0 + later.x0, static_cast<short>(earlier.x1 > later.x1 ? earlier.x1 : later.x1)};
}
#endif
// THE OPERATOR
}

__device__ __forceinline__ Element combine(const Element& earlier, const Element& later) {
  return of_the_user::combine(earlier, later);
}

#define LINSCAN_GET(n, S, name) x.name = in.name.get(i);
#define LINSCAN_SET(n, S, name) out.name.set(i, Narrow<S>::of(x.name));
#define LINSCAN_BEGIN(n, S, name) x.name = first.name;
__device__ __forceinline__ Element element(const Inputs& in, int i, bool) {
  Element x;
  INPUTS(LINSCAN_GET)
  return x;
}
__device__ __forceinline__ void result(Outputs& out, int i, const Element& x) { OUTPUTS(LINSCAN_SET) }
__device__ __forceinline__ Element initial(const Firsts& first, const Pointers&) {
  Element x;
  FIRSTS(LINSCAN_BEGIN)
  return x;
}

#include "assoc_kernel.cuh"
