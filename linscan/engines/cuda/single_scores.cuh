// The scores of a chunk of float32 matrix states: queries with keys, and, for the delta rule, keys with keys. See
// single_attention.cu and single_delta.cu.
#pragma once
#include "single_chunk.cuh"

// The inverse of 1 + a diagonal block by substitution; a lane owns a column. The block, below its diagonal, is where its inverse
// will be.
__device__ __forceinline__ float* below(Shared& shared, int block) { return reinterpret_cast<float*>(shared.inverse.most[16 * block]); }
__device__ __forceinline__ bool invert(Shared& shared, int block, int lane) {
  const float* from = below(shared, block);
  float x[16];
  u32 most = 0;
  __syncwarp();
#pragma unroll
  for (int r = 0; r < 16; r++) x[r] = r == lane % 16 ? 1.0f : 0.0f;
#pragma unroll
  for (int s = 0; s < 15; s++)
#pragma unroll
    for (int r = s + 1; r < 16; r++) x[r] = __fmaf_rn(-from[r * (r - 1) / 2 + s], x[s], x[r]);
#pragma unroll
  for (int r = 0; r < 16; r++) most = larger(most, size(x[r]));
  most = over_lanes(most);
#pragma unroll
  for (int by = 4; by < 16; by *= 2) most = larger(most, shuffle_xor(most, by));
  const float one = unit(most), factor = over(one);
  __syncwarp();
  if (lane < 16)
#pragma unroll
    for (int r = 0; r < 16; r += 2) {
      u32 most, rest;
      split(most, rest, x[r] * factor, x[r + 1] * factor);
#pragma unroll
      for (int half = 0; half < 2; half++) {
        shared.inverse.most[16 * block + r + half][lane] = static_cast<u16>(most >> 16 * half);
        shared.inverse.rest[16 * block + r + half][lane] = static_cast<u16>(rest >> 16 * half);
      }
    }
  if (!lane) shared.unit_v[block] = one * BACK;
  return !(one < LARGE);
}

// The scores under their decays, 16 x 16 at a time; returns whether one is not finite. Those of queries lie below the diagonal,
// those of keys with keys, for the delta rule, above, block (j, i) for block (i, j), or are inverted.
__device__ __forceinline__ bool scores(Shared& shared, const Gates& gates, int lane) {
  constexpr int COUNT = BLOCKS_OF_STEPS * (BLOCKS_OF_STEPS + 1) / 2;
  const int g = lane / 4, t = lane % 4 * 2;
  bool wild = false;
#pragma unroll 1
  for (int b = threadIdx.x / 32; b < (DELTA ? 2 : 1) * COUNT; b += WARPS) {
    const bool erases = DELTA && b < COUNT;
    const int m = DELTA ? erases ? b - BLOCKS_OF_STEPS : b - COUNT : b;
    int i = erases ? 1 + (m >= 1) + (m >= 3) : (m >= 1) + (m >= 3) + (m >= 6), j = m - (erases ? i * (i - 1) : i * (i + 1)) / 2;
    if (m < 0) i = j = b;
    const bool inverted = erases && m < 0;
    const Rows<KEYS>& rows = erases ? shared.keys : shared.queries;
    float p[2][4] = {};
#pragma unroll 2
    for (int key = 0; key < KEYS; key += 16) {
      Parts x, y;
      float most[2][4] = {}, rest[2][4] = {};
      load_a<false>(x.most, rows.most, 16 * i, key, lane), load_b<false>(y.most, shared.keys.most, key, 16 * j, lane);
      if (PRODUCTS == 3) load_a<false>(x.rest, rows.rest, 16 * i, key, lane), load_b<false>(y.rest, shared.keys.rest, key, 16 * j, lane);
      multiply_rest<2>(rest, x, &y), multiply_most<2>(most, x, &y);
#pragma unroll
      for (int n = 0; n < 8; n++) p[n / 4][n % 4] += most[n / 4][n % 4] + rest[n / 4][n % 4];
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int step = 16 * i + g + 8 * half, place = erases ? 16 * j + g + 8 * half : step, first = erases ? 16 * i : 16 * j;
      float x[4];
      u32 most = 0;
#pragma unroll
      for (int n = 0; n < 4; n++) {
        const int s = 16 * j + 8 * (n / 2) + t + n % 2;
        float raw = p[n / 2][2 * half + n % 2] * BACK;
        if (erases) raw *= shared.unit_k[step];
        x[n] = s < step || (s == step && !erases) ? raw * (shared.weight[s] * (DECAYS ? between(gates, step, s) : 1.0f)) : 0.0f;
        most = larger(most, size(x[n]));
        if (inverted && s < step) below(shared, i)[(step - 16 * i) * (step - 16 * i - 1) / 2 + s - 16 * i] = x[n];
      }
      if (inverted) continue;
      const float one = unit(over_lanes(most)), factor = over(one);
      wild |= !(one < LARGE);
#pragma unroll
      for (int n = 0; n < 2; n++) {
        u32 most, rest;
        split(most, rest, x[2 * n] * factor, x[2 * n + 1] * factor);
        *reinterpret_cast<u32*>(&shared.scores.most[place][first + 8 * n + t]) = most;
        *reinterpret_cast<u32*>(&shared.scores.rest[place][first + 8 * n + t]) = rest;
      }
      if (!t) shared.unit_p[first / 16][place] = one * BACK;
    }
    if (inverted) wild |= invert(shared, i, lane);
  }
  return wild;
}
