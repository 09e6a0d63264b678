// Products of matrices in float32 by multiply-adds, a block to a tile: what a thread owns, and how tiles come into place.
//
// Warps own 32 x 64 entries, a thread of them 8 x 8: rows 0-3 and 16-19, columns 0-3 and 32-35 from its corner. Factors
// pass through shared memory DEEP terms at a time, sums run over terms in order.
#pragma once
#include "numbers.cuh"

constexpr int DEEP = 8;

struct Corner {
  int row, column;

  __device__ __forceinline__ explicit Corner(int across) {  // `across`: warps of the block side by side
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    // Neighbours, or neighbours but one, read the same four numbers of either factor: then shared memory serves sixteen lanes
    // at a time and not eight.
    row = warp / across * 32 + (lane % 2 + lane / 16 * 2) * 4, column = warp % across * 64 + lane / 2 % 8 * 4;
  }
};

__device__ __forceinline__ void spread(float (&x)[4], float4 from) { x[0] = from.x, x[1] = from.y, x[2] = from.z, x[3] = from.w; }
__device__ __forceinline__ float4 packed(const float* x) { return {x[0], x[1], x[2], x[3]}; }
__device__ __forceinline__ float4 four(const float* from) { return *reinterpret_cast<const float4*>(from); }
__device__ __forceinline__ void four(float* to, float4 x) { *reinterpret_cast<float4*>(to) = x; }

// sum[i][j] += Σ left[k][row i] right[k][column j] over a slice of DEEP terms.
template <int HIGH, int WIDE>
__device__ __forceinline__ void multiply(float (&sum)[8][8], const float (&left)[DEEP][HIGH], const float (&right)[DEEP][WIDE],
                                         Corner corner) {
#pragma unroll
  for (int k = 0; k < DEEP; k++) {
    float x[2][4], y[2][4];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      spread(x[half], four(&left[k][corner.row + 16 * half]));
      spread(y[half], four(&right[k][corner.column + 32 * half]));
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
      for (int j = 0; j < 8; j++) sum[i][j] = mul_add(x[i / 4][i % 4], y[j / 4][j % 4], sum[i][j]);
  }
}

// Four neighbours of a row, as terms: one below the other.
template <int HIGH> __device__ __forceinline__ void turn(float (&to)[DEEP][HIGH], int term, int row, const float (&x)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i++) to[term + i][row] = x[i];
}
