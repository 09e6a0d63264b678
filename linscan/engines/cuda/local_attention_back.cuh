// What both pullbacks of sliding-window attention share.
#pragma once
#include "local_attention.cuh"

// What the pullback has besides the arrays: (row, time, value), and (row, time).
template <class C> struct Given {
  const S* cotangent;
  const C *total, *mean;
};

// What a block visits, if its rows are keys: the queries that see them.
__device__ __forceinline__ Span span_of_keys(const Layout& layout, const Sizes& sizes) {
  const i64 all = sizes.past + layout.length, tiles = (all + QUERIES - 1) / QUERIES;
  Span x;
  x.row = blockIdx.x / tiles, x.first = blockIdx.x % tiles * QUERIES;
  x.last = (x.first + QUERIES < all ? x.first + QUERIES : all) - 1;
  x.low = sizes.causal ? x.first : x.first - sizes.window + 1, x.high = x.last + sizes.window - 1;
  x.low = x.low < sizes.past ? sizes.past : x.low, x.high = x.high < all ? x.high : all - 1;
  return x;
}

#define ARGUMENTS                                                                                                        \
  const __grid_constant__ Layout layout, const __grid_constant__ Sizes sizes, const S *q, const S *k, const S *v, const S *g, \
      const int *own, const int *seen, const S *cotangent, const C *total, const C *mean
