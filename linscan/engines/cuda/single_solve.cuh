// What a chunk of the delta rule writes, float32 arrays. See single_delta.cu.
#pragma once
#include "single_scores.cuh"

constexpr float STEEP = 12.0f;  // e^-12 is about 2^-17

// 16 steps of this warp's columns, two tiles of results, as the A of a product, each column in a unit of its own.
__device__ __forceinline__ void split_block(Parts& a, float (&units)[2], const float (&x)[2][4]) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const float* left = &x[0][2 * half], *right = &x[1][2 * half];
    units[half] = unit(over_lanes(larger(larger(size(left[0]), size(left[1])), larger(size(right[0]), size(right[1])))));
    split(a.most[half], a.rest[half], left[0] * over(units[half]), left[1] * over(units[half]));
    split(a.most[2 + half], a.rest[2 + half], right[0] * over(units[half]), right[1] * over(units[half]));
  }
}

// Whether a block of 16 steps forgets so much that steps which count for little among its first may be all that is left.
__device__ __forceinline__ bool is_steep(const Gates& gates, int block) {
  const int first = 16 * block, last = first + 15;
  return DECAYS && !(gates.cut[last] <= first && gates.sum[last] - gates.sum[first] > -STEEP);
}
// Whether some step's numbers are lost in the units of the block's columns.
__device__ __forceinline__ bool is_lost(const float (&x)[2][4]) {
  u32 each[4], most = 0;
#pragma unroll
  for (int n = 0; n < 4; n++) {
    each[n] = larger(size(x[n / 2][n % 2]), size(x[n / 2][2 + n % 2]));
#pragma unroll
    for (int by = 4; by < 32; by *= 2) each[n] = larger(each[n], shuffle_xor(each[n], by));
    most = larger(most, each[n]);
  }
  most = over_lanes(most);
  bool lost = false;
#pragma unroll
  for (int n = 0; n < 4; n++) lost |= each[n] && __uint_as_float(each[n]) < 0x1p-17f * __uint_as_float(most);
  return lost;
}

// The delta rule's triangular system, by blocks of 16 steps: what is written, u = v less what the state has there, and less what
// earlier steps of the chunk have written. It takes the place of the values. Returns whether digits were lost.
__device__ __forceinline__ bool solve(Parts (&u)[BLOCKS_OF_STEPS], float (&units)[BLOCKS_OF_STEPS][2], Values& v, Shared& shared,
                                      const Gates& gates, int lane) {
  bool lost = false;
#pragma unroll
  for (int i = 0; i < BLOCKS_OF_STEPS; i++) {
    float x[2][4], sum[2][4] = {}, one[2];
    Parts a, b;
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) x[n][e] = v[16 * i + 8 * n + lane % 4 * 2 + e % 2][column(e / 2)];
#pragma unroll
    for (int j = 0; j < i; j++) {
      float sum[2][4] = {};
      load_parts<false>(b, shared.scores, 16 * i, 16 * j, lane);
      multiply_rest<2>(sum, u[j], &b), multiply_most<2>(sum, u[j], &b);
#pragma unroll
      for (int n = 0; n < 2; n++) {
        const float2 back = two_of(shared.unit_p[i], 16 * j + 8 * n, lane);
#pragma unroll
        for (int e = 0; e < 4; e++) x[n][e] = __fmaf_rn(-sum[n][e], (e % 2 ? back.y : back.x) * units[j][e / 2], x[n][e]);
      }
    }
    split_block(a, one, x);
    load_parts<false>(b, shared.inverse, 0, 16 * i, lane);
    multiply_rest<2>(sum, a, &b), multiply_most<2>(sum, a, &b);
    const float back = shared.unit_v[i];
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        x[n][e] = sum[n][e] * back * one[e / 2];
        v[16 * i + 8 * n + lane % 4 * 2 + e % 2][column(e / 2)] = x[n][e];
      }
    split_block(u[i], units[i], x);
    if (is_steep(gates, i)) lost |= is_lost(x);
  }
  __syncwarp();
  return lost;
}
