// What the steps of a chunk share: scores under their decays, and the inverses of the system's diagonal blocks.
#pragma once
#include "delta_chunk.cuh"

struct Scores {
  S reads[STEPS][WIDTH];       // scale q[t] k[s] e^(W[t] - W[s]) for s <= t
  S erases[STEPS][WIDTH];      // -k[t] k[s] e^(W[t] - W[s]) for s < t; in block (j, i) what rounding left of block (i, j)
  S inverse[2][STEPS][16 + PAD];  // of the diagonal blocks, and what is left of it when rounded
  float work[BLOCKS][16][20];
};

// The inverse of 1 + the strictly lower triangle in `work` [column][row], by substitution: a lane owns a column.
__device__ __forceinline__ void invert(Scores& to, int block, int lane) {
  float x[16];
  if (lane < 16) {
#pragma unroll
    for (int r = 0; r < 16; r++) x[r] = r == lane ? 1.0f : 0.0f;
#pragma unroll
    for (int s = 0; s < 15; s++)
#pragma unroll
      for (int r = s + 1; r < 16; r++) x[r] = __fmaf_rn(-to.work[block][s][r], x[s], x[r]);
#pragma unroll
    for (int r = 0; r < 16; r += 2) {
      const u32 whole = pair<S>(x[r], x[r + 1]), rest = pair<S>(x[r] - low(whole, S()), x[r + 1] - high(whole, S()));
#pragma unroll
      for (int half = 0; half < 2; half++) {
        to.inverse[0][16 * block + r + half][lane].bits = static_cast<u16>(whole >> 16 * half);
        to.inverse[1][16 * block + r + half][lane].bits = static_cast<u16>(rest >> 16 * half);
      }
    }
  }
}

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

// x (a block of the system's left side) less what the known steps `u` of block j have in it. The scores come in two parts:
// where keys resemble each other what is erased is far larger than what is left, and so would be what rounding left out.
template <bool BACK>
__device__ __forceinline__ void erase(float (&left)[4], float (&right)[4], const u32 (&u)[4], const Scores& scores, int i, int j, int lane) {
  u32 b[4];
  load_b<BACK>(b, scores.erases, 16 * i, 16 * j, lane);
  mma_pair(left, right, u, b);
  load_b<BACK>(b, scores.erases, 16 * j, 16 * i, lane);
  mma_pair(left, right, u, b);
}

// x times a diagonal block's inverse, or, TURNED, its transpose; both in two parts, so that little is rounded away.
template <bool TURNED>
__device__ __forceinline__ void solve_block(float (&left)[4], float (&right)[4], const Scores& scores, int block, int lane) {
  u32 whole[4], rest[4], b[4];
  round_block(whole, left, right);
  float less[2][4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const u32 l = whole[i / 2], r = whole[2 + i / 2];
    less[0][i] = left[i] - (i % 2 ? high(l, S()) : low(l, S())), less[1][i] = right[i] - (i % 2 ? high(r, S()) : low(r, S()));
  }
  round_block(rest, less[0], less[1]);
#pragma unroll
  for (int i = 0; i < 4; i++) left[i] = right[i] = 0.0f;
  load_b<TURNED>(b, scores.inverse[1], TURNED ? 16 * block : 0, TURNED ? 0 : 16 * block, lane);
  mma_pair(left, right, whole, b);
  load_b<TURNED>(b, scores.inverse[0], TURNED ? 16 * block : 0, TURNED ? 0 : 16 * block, lane);
  mma_pair(left, right, rest, b);
  mma_pair(left, right, whole, b);
}
