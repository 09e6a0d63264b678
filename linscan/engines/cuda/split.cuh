// Float32 numbers as sums of two float16 numbers, for tensor cores: x = most + rest has 22 binary digits or more.
//
// x is first brought to less than 2^15 by the unit of its row, a power of two, so that numbers down to 2^-17 of the row's
// largest keep all their digits and smaller ones are off by 2^-40 of it at most. Of the product of two such numbers that of the
// rests is left out, which leaves the errors of float32 arithmetic. (Ootomo and Yokota, doi:10.1177/10943420221090256.)
#pragma once
#include "mma_tiles.cuh"

#ifndef PRODUCTS  // of tensor cores for one of float32 numbers: 1 takes their 11 leading digits alone
#define PRODUCTS 3
#endif

struct Parts { u32 most[4], rest[4]; };  // of the A of a product, or of two neighbouring B

__device__ __forceinline__ u32 size(float x) { return __float_as_uint(x) & 0x7fffffffu; }  // as bits: orders NaN above all
__device__ __forceinline__ u32 larger(u32 x, u32 y) { return x > y ? x : y; }
// The largest of four lanes.
__device__ __forceinline__ u32 over_lanes(u32 x) {
  x = larger(x, shuffle_xor(x, 1));
  return larger(x, shuffle_xor(x, 2));
}

// The power of two below a number of this size, at least 2^-98; inf if it is not finite.
__device__ __forceinline__ float unit(u32 size) { return __uint_as_float(larger(size & 0x7f800000u, 29u << 23)); }
// 2^14 / unit.
__device__ __forceinline__ float over(float unit) { return __uint_as_float((268u << 23) - __float_as_uint(unit)); }

constexpr float BACK = 1.0f / 268435456;  // 2^-28: what a product of two such numbers is times, besides their units

__device__ __forceinline__ void split(u32& most, u32& rest, float x, float y) {
  most = halves(x, y);
  if (PRODUCTS == 1) return;
  const float2 near = both(most);
  rest = halves(x - near.x, y - near.y);
}

template <bool TURNED, class Rows> __device__ __forceinline__ void load_parts(Parts& b, const Rows& x, int inner, int column, int lane) {
  load_b<TURNED>(b.most, x.most, inner, column, lane);
  if (PRODUCTS == 3) load_b<TURNED>(b.rest, x.rest, inner, column, lane);
}

// d += a b for N neighbouring tiles: the small products, and the large one.
template <int N> __device__ __forceinline__ void multiply_rest(float (*d)[4], const Parts& a, const Parts* b) {
  if (PRODUCTS == 1) return;
#pragma unroll
  for (int n = 0; n < N; n++) mma(d[n], a.rest, b[n / 2].most[n % 2 * 2], b[n / 2].most[n % 2 * 2 + 1], float16());
#pragma unroll
  for (int n = 0; n < N; n++) mma(d[n], a.most, b[n / 2].rest[n % 2 * 2], b[n / 2].rest[n % 2 * 2 + 1], float16());
}
template <int N> __device__ __forceinline__ void multiply_most(float (*d)[4], const Parts& a, const Parts* b) {
#pragma unroll
  for (int n = 0; n < N; n++) mma(d[n], a.most, b[n / 2].most[n % 2 * 2], b[n / 2].most[n % 2 * 2 + 1], float16());
}
