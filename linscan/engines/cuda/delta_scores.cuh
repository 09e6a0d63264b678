// What the steps of a chunk share: scores under their decays, and the inverses of the system's diagonal blocks.
#pragma once
#include "delta_chunk.cuh"

struct Scores {
  S reads[STEPS][WIDTH];       // scale q[t] k[s] e^(W[t] - W[s]) for s <= t
  S erases[STEPS][WIDTH];      // -k[t] k[s] e^(W[t] - W[s]) for s < t; in block (j, i) what rounding left of block (i, j)
  S inverse[2][STEPS][16 + PAD];  // of the diagonal blocks, and what is left of it when rounded
  float work[BLOCKS][16][20];
};

// The scores of a chunk, 16 x 16 tile by tile. BACK decides on which side of the system beta stands: forwards
// 1 + L beta, whose unknowns are v less what is read, backwards 1 + beta L.
template <bool BACK, class Row>
__device__ __forceinline__ void score(Scores& to, const Row* q, const Row* k, const Gates& gates, float scale, int warp, int lane) {
  // Of twenty tiles, 0 to 3 are the diagonal blocks of L, which are inverted too, 4 to 9 the others of L, the rest of P.
  const bool few = WARPS == 8 && warp < BLOCKS;
  const int last = few || WARPS < 8 ? READ ? 20 : 10 : READ ? 16 : 10;
#pragma unroll 1
  for (int n = warp; n < last; n += few ? 16 : 4) {
    const bool reading = n >= 10;
    const int m = reading ? n - 10 : n - 4;  // (0, 0), (1, 0), (1, 1), (2, 0), …; of L from (1, 0) on
    int i = reading ? (m > 0) + (m > 2) + (m > 5) : 1 + (m > 0) + (m > 2), j = reading ? m - i * (i + 1) / 2 : m - i * (i - 1) / 2;
    if (n < BLOCKS) i = j = n;
    float p[4][4];
    clear(p);
    const Row* rows = reading ? q : k;
#pragma unroll
    for (int key = 0; key < KEYS; key += 16) {
      u32 a[4], b[4];
      load_a<false>(a, rows, 16 * i, key, lane);
      load_b<false>(b, k, key, 16 * j, lane);
      mma_pair(p[key / 16 % 2 * 2], p[key / 16 % 2 * 2 + 1], a, b);
    }
    float sum[4];  // W at this lane's columns
#pragma unroll
    for (int c = 0; c < 4; c++) sum[c] = gates.sum[16 * j + c / 2 * 8 + lane % 4 * 2 + c % 2];
#pragma unroll
    for (int row = 0; row < 2; row++) {
      const int t = 16 * i + lane / 4 + 8 * row, cut = gates.cut[t];
      const float now = gates.sum[t], weight = gates.beta[t];
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int s = 16 * j + 8 * half + lane % 4 * 2;
        float x[2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const float y = p[half][2 * row + e] + p[half + 2][2 * row + e];
          const bool seen = s + e < t + reading && (!DECAYS || s + e >= cut);
          x[e] = seen ? DECAYS ? y * power(now - sum[2 * half + e]) : y : 0.0f;
          if (n < BLOCKS) to.work[n][s + e - 16 * n][t - 16 * n] = x[e] * (BACK ? weight : gates.beta[s + e]);
          x[e] *= reading ? scale : -1.0f;
        }
        const u32 whole = pair<S>(x[0], x[1]);
        *reinterpret_cast<u32*>(reading ? &to.reads[t][s] : &to.erases[t][s]) = whole;
        if (n >= BLOCKS && !reading)
          *reinterpret_cast<u32*>(&to.erases[t - 16 * i + 16 * j][s - 16 * j + 16 * i]) =
              pair<S>(x[0] - low(whole, S()), x[1] - high(whole, S()));
      }
    }
    if (n < BLOCKS) {
      __syncwarp();
      invert(to, n, lane);
    }
  }
}
