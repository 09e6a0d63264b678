// Where things lie: any strides, any number of batch axes (folded to at most six by layout.py), in 64 bits.
#pragma once
#include "numbers.cuh"

enum { DECAY, INPUT, BEFORE, OUT, SLOPE, RESET, FIRST };  // of the affine scans; other kernels have their own
#ifndef OPERANDS
#define OPERANDS 7
#endif
enum { CONSTANT, VECTOR, STAGED };  // how a time-last operand is read and written; see tiles.cuh

struct Operand { i64 start, time, mode, batch[6]; };  // in elements; time < 0 where the scan runs backwards
struct Layout {
  i64 length, rows, tiles, ndim, size[6];
  Operand operand[OPERANDS];
};
struct Place { i64 at[OPERANDS]; };  // first element, in the scan's direction, of one row of every operand

__device__ __forceinline__ Place locate(const Layout& layout, i64 row) {
  Place place;
#pragma unroll
  for (int n = 0; n < OPERANDS; n++) place.at[n] = layout.operand[n].start;
#pragma unroll 1
  for (int d = static_cast<int>(layout.ndim) - 1; d >= 0; d--) {
    i64 rest = d ? row / layout.size[d] : 0, index = row - rest * layout.size[d];
#pragma unroll
    for (int n = 0; n < OPERANDS; n++) place.at[n] += index * layout.operand[n].batch[d];
    row = rest;
  }
  return place;
}
