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

// The same of float32 numbers. What a lane holds is what it would of 16-bit ones, a number in the place of half a word; the
// products over 8 take neighbours t and t + 1 as their inner indices t / 2 and t / 2 + 4, in A and in B.
template <bool TURNED, class Row> __device__ __forceinline__ void load_a(float2 (&a)[4], const Row* x, int row, int column, int lane) {
  const int g = lane / 4, t = lane % 4 * 2;
#pragma unroll
  for (int n = 0; n < 4; n++) {
    const int k = (TURNED ? row : column) + t + n / 2 * 8, m = (TURNED ? column : row) + g + n % 2 * 8;
    a[n] = TURNED ? float2{x[k][m], x[k + 1][m]} : *reinterpret_cast<const float2*>(&x[m][k]);
  }
}
template <bool TURNED, class Row> __device__ __forceinline__ void load_b(float2 (&b)[4], const Row* x, int inner, int column, int lane) {
  const int g = lane / 4, t = lane % 4 * 2;
#pragma unroll
  for (int n = 0; n < 4; n++) {
    const int k = inner + t + n % 2 * 8, m = column + g + n / 2 * 8;
    b[n] = TURNED ? float2{x[k][m], x[k + 1][m]} : *reinterpret_cast<const float2*>(&x[m][k]);
  }
}

#ifndef PRODUCTS  // of tensor cores for one of float32 numbers: 1 takes their 11 leading digits alone
#define PRODUCTS 3
#endif

// x rounded to 11 binary digits; what is left has 12, of which tensor cores look at 11. A NaN stays one: a card's own has all
// bits set, and rounding would carry into its sign.
__device__ __forceinline__ float leading(float x) {
  return x == x ? __uint_as_float((__float_as_uint(x) + 0x1000u) & 0xffffe000u) : x;
}

// d += a b. Tensor cores cut sums off instead of rounding them, so each is begun at zero and added to d by a plain addition:
// else the errors of long sums would all point the same way. With three products, only that of what is left of both is
// missing: errors are those of float32 arithmetic.
__device__ __forceinline__ void mma(float (&d)[4], const float2 (&a)[4], float2 b0, float2 b1, float) {
  float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  const float2 b[2] = {b0, b1};
  float most[2][4], rest[2][4], other[2][2];
#pragma unroll
  for (int k = 0; k < 2; k++) {
    const float x[4] = {a[2 * k].x, a[2 * k + 1].x, a[2 * k].y, a[2 * k + 1].y};
#pragma unroll
    for (int i = 0; i < 4; i++) most[k][i] = leading(x[i]), rest[k][i] = x[i] - most[k][i];
    other[k][0] = leading(b[k].x), other[k][1] = leading(b[k].y);
    if (PRODUCTS == 3) {
      mma8(sum, rest[k], other[k][0], other[k][1]);
      mma8(sum, most[k], b[k].x - other[k][0], b[k].y - other[k][1]);
    }
  }
#pragma unroll
  for (int k = 0; k < 2; k++) mma8(sum, most[k], other[k][0], other[k][1]);
#pragma unroll
  for (int i = 0; i < 4; i++) d[i] += sum[i];
}
