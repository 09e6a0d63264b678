// What tensor cores take out of arrays in shared memory, 16 x 16 numbers at a time; see mma.cuh.
#pragma once
#include "numbers.cuh"
#include "mma.cuh"

// Of 16-bit numbers, 16 x 16 from rows of an array [row][column]: the A of a product, or, TURNED, its transpose.
template <bool TURNED, class Row> __device__ __forceinline__ void load_a(u32 (&a)[4], const Row* x, int row, int column, int lane) {
  const int i = lane / 8, r = lane % 8;
  load_tiles<TURNED>(a, TURNED ? &x[row + i / 2 * 8 + r][column + i % 2 * 8] : &x[row + i % 2 * 8 + r][column + i / 2 * 8]);
}
// Two neighbouring 16 x 8 tiles as the B of a product: from [inner][column], or, TURNED == false, from [column][inner].
template <bool TURNED, class Row> __device__ __forceinline__ void load_b(u32 (&b)[4], const Row* x, int inner, int column, int lane) {
  const int i = lane / 8, r = lane % 8;
  load_tiles<TURNED>(b, TURNED ? &x[inner + i % 2 * 8 + r][column + i / 2 * 8] : &x[column + i / 2 * 8 + r][inner + i % 2 * 8]);
}
