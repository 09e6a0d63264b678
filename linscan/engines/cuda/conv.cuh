// Windows of long convolutions: task (b, row) is y[row, b step + t] = sum_j k[j] u[b step + start + t - j], t < step.
//
// Its transform sees x[i] = u[shift + i], shift = b step + start - skip, and gives the outputs at i = skip + t.
// NaN and inf do not enter transforms, which would spread them: zero stands for them and the row is marked.
#pragma once
#include "layout.cuh"

typedef STORAGE S;
typedef Compute<S>::type C;

enum { INPUT_ROW, KERNEL_ROW, OUTPUT_ROW, INPUT_MARK, KERNEL_MARK, SPECTRUM };  // the order of operands

struct Window { i64 samples, taps, start, step, skip, blocks, n, begin, count, circular; };  // tasks begin to begin + count

__device__ __forceinline__ i64 shift(const Window& w, i64 block) { return block * w.step + w.start - w.skip; }

__device__ __forceinline__ i64 outputs(const Window& w, const Layout& layout, i64 block) {  // of one task
  const i64 left = layout.length - block * w.step;
  return left < w.step ? left : w.step;
}

template <class C> __device__ __forceinline__ C clean(C x, bool& bad) {
  const bool fine = is_finite(x);
  bad = bad || !fine;
  return fine ? x : Number<C>::make(0);
}
