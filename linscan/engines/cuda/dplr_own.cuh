// A chunk's rows in shared memory, and the scores of 16 steps among each other: see dplr_scores.cu.
#pragma once
#include "dplr_terms.cuh"

constexpr float FORGET = -88.0f;  // e^g below the smallest normal number: what was before is no more

struct alignas(16) Shared {
  S q[STEPS][KEYS + PAD], a[STEPS][KEYS + PAD], b[STEPS][KEYS + PAD], rest_a[STEPS][KEYS + PAD], rest_b[STEPS][KEYS + PAD];
  S k[KEYED ? STEPS : 1][KEYS + PAD];
  float work[BLOCKS][16][20], whole[BLOCKS][KEYS];
  int marks[STEPS], odd[2][STEPS];  // of q, of others
};

// A tile rounded, and what is left of it.
struct Split { u32 most[4], rest[4]; };
__device__ __forceinline__ void round_tile(u32 (&to)[4], const Tile& x, const Tile& y) {
#pragma unroll
  for (int n = 0; n < 4; n++) to[n] = pair<S>(x[n][0] * y[n][0], x[n][1] * y[n][1]);
}
__device__ __forceinline__ void split(Split& to, const Tile& x, const Tile& y) {
#pragma unroll
  for (int n = 0; n < 4; n++) {
    const float first = x[n][0] * y[n][0], second = x[n][1] * y[n][1];
    to.most[n] = pair<S>(first, second);
    to.rest[n] = pair<S>(first - low(to.most[n], S()), second - high(to.most[n], S()));
  }
}
template <class Row> __device__ __forceinline__ void put_tile(Row* to, const u32 (&x)[4], int block, int column, int lane) {
#pragma unroll
  for (int n = 0; n < 4; n++)
    *reinterpret_cast<u32*>(&to[16 * block + lane / 4 + n % 2 * 8][column + n / 2 * 8 + lane % 4 * 2]) = x[n];
}

// What delta_solve.cuh inverts, and where the inverses go.
struct Systems { float (*work)[16][20]; S (*inverse)[STEPS][16]; };

// Scores of the halves of blocks of 2, 4, 8 and 16 steps, with b and with k, and those of a step with itself.
struct Own { float part[1 + KEYED][4][4], self[1 + KEYED][2]; };

// Rows of what is read with columns of what is written, where they are in the two halves of blocks of 2 << N steps.
template <int N> __device__ __forceinline__ void product(float (&to)[4], const u32 (&a)[4], const u32 (&b)[4]) {
  if (N == 3) {
    mma(to, {0, a[1], 0, a[3]}, b[0], b[2], S());
  } else {
    mma(to, {a[0], 0, a[2], 0}, b[0], b[2], S());
    mma(to, {0, a[1], 0, a[3]}, b[1], b[3], S());
  }
}
// x is q, or, ERASES, a, which EARLY is under the decays before its step.
template <int N, bool ERASES>
__device__ __forceinline__ void meet(Own& own, const Tile& x, const Tile& b, const Tile& k, Decays& d, Tile& early, int lane) {
  const Tile& from = ERASES && EARLY ? early : d.from;
  u32 key[4];
  if (ERASES) {
    Split erases, writes;
    split(erases, x, from), split(writes, b, d.until);
    product<N>(own.part[0][N], erases.rest, writes.most);
    product<N>(own.part[0][N], erases.most, writes.rest);
    product<N>(own.part[0][N], erases.most, writes.most);
    if (KEYED) round_tile(key, k, d.until), product<N>(own.part[KEYED][N], erases.most, key);
  } else {
    u32 read[4];
    round_tile(read, x, from), round_tile(key, b, d.until);
    product<N>(own.part[0][N], read, key);
    if (KEYED) round_tile(key, k, d.until), product<N>(own.part[KEYED][N], read, key);
  }
  if (!DECAYS) return;
  constexpr int H = 1 << N;
  if (ERASES && EARLY) {
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        if (H < 8) {
          const float other = shuffle_xor(d.from[n][i] * d.until[n][i], 4 * H % 32);
          early[n][i] *= lane / 4 & H ? other : 1.0f;
        } else if (n % 2) {
          early[n][i] *= d.from[n - 1][i] * d.until[n - 1][i];
        }
      }
  }
  join<H>(d, lane);
}

// Logarithms of the decays of 16 steps and 16 channels: 0 in steps beyond the end, and where they are not numbers, which
// makes `odd` of a step, -inf in channels beyond the last. `open` of a step is whether any channel is not forgotten.
__device__ __forceinline__ void gate_tile(Tile& x, const float* g, i64 time, int block, int column, int count, int keys, int lane,
                                          bool (&open)[2], bool (&odd)[2]) {
#pragma unroll
  for (int n = 0; n < 4; n++) {
    const int step = 16 * block + lane / 4 + n % 2 * 8, c = column + n / 2 * 8 + lane % 4 * 2;
    float2 y = {0.0f, 0.0f};
    if (step < count) {
      if (DECAYS == 1) y.x = y.y = g[step * time];
      else if (PACKED) y = c < keys ? *reinterpret_cast<const float2*>(g + step * time + c) : float2{-INFINITY, -INFINITY};
      else y = {c < keys ? g[step * time + c] : -INFINITY, c + 1 < keys ? g[step * time + c + 1] : -INFINITY};
    }
    if (!(y.x <= 3.4e38f)) odd[n % 2] = true, y.x = 0.0f;
    if (!(y.y <= 3.4e38f)) odd[n % 2] = true, y.y = 0.0f;
    open[n % 2] |= y.x >= FORGET || y.y >= FORGET;
    x[n][0] = y.x, x[n][1] = y.y;
  }
}

// One score of a warp's own steps: rows lane / 4 + 8 half, columns 8 side + lane % 4 * 2 + i.
__device__ __forceinline__ float own_score(const float (&part)[4][4], float self, int half, int side, int i, int lane) {
  const int row = lane / 4, column = lane % 4 * 2 + i, at = level(row, column), n = 2 * half + i;
  if (side != half) return half ? part[3][n] : 0.0f;
  return at == 2 ? part[2][n] : at == 1 ? part[1][n] : at == 0 ? part[0][n] : row == column ? self : 0.0f;
}

// Of one block of 16 steps, the scores of q, or, ERASES, of a, into the slab and `work`. All blocks go side by side, those of
// q beside those of a, and rows become those at the block's start and end.
template <bool ERASES>
__device__ __forceinline__ void own_block(Slab& to, Shared& shared, const float* g, i64 step_g, const float (&beta)[2], int count, int keys,
                                          int lane, int block) {
  Own own = {};
  bool open[2] = {false, false}, odd[2] = {false, false};
  Tile ahead = {};
  if (DECAYS) gate_tile(ahead, g, step_g, block, 0, count, keys, lane, open, odd);
  bool nothing[2] = {true, true};  // is read by a
#pragma unroll 1
  for (int j = 0; j < KEYS; j += 16) {
    Decays d;
    Tile x, b, k = {}, early;
    decays(d, ahead);
    if (DECAYS && j + 16 < KEYS) gate_tile(ahead, g, step_g, block, j + 16, count, keys, lane, open, odd);
    take(x, ERASES ? shared.a : shared.q, block, j, lane), take(b, shared.b, block, j, lane);
    if (KEYED) take(k, shared.k, block, j, lane);
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        early[n][i] = 1.0f, b[n][i] *= beta[n % 2], nothing[n % 2] &= x[n][i] == 0.0f;
        if (!ERASES) own.self[0][n % 2] = __fmaf_rn(x[n][i], b[n][i], own.self[0][n % 2]);
        if (!ERASES && KEYED) own.self[KEYED][n % 2] = __fmaf_rn(x[n][i], k[n][i], own.self[KEYED][n % 2]);
      }
    meet<0, ERASES>(own, x, b, k, d, early, lane);
    meet<1, ERASES>(own, x, b, k, d, early, lane);
    meet<2, ERASES>(own, x, b, k, d, early, lane);
    meet<3, ERASES>(own, x, b, k, d, early, lane);
    __syncthreads();  // all have taken their parts of these channels
    if (ERASES) {
      Split parts;
      split(parts, x, EARLY && DECAYS ? early : d.from);
      put_tile(shared.a, parts.most, block, j, lane), put_tile(shared.rest_a, parts.rest, block, j, lane);
      split(parts, b, d.until);
      put_tile(shared.b, parts.most, block, j, lane), put_tile(shared.rest_b, parts.rest, block, j, lane);
    } else {
      u32 rows[4];
      round_tile(rows, x, d.from), put_tile(shared.q, rows, block, j, lane);
      if (KEYED) round_tile(rows, k, d.until), put_tile(shared.k, rows, block, j, lane);
      put_whole(shared.whole[block], d, j, lane);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int row = lane / 4 + 8 * half, t = 16 * block + row;
    float self[2] = {own.self[0][half], own.self[KEYED][half]};
    int all = nothing[half], any = open[half] | odd[half] << 1;
#pragma unroll
    for (int by = 1; by < 4; by *= 2) {
      self[0] += shuffle_xor(self[0], by), self[1] += shuffle_xor(self[1], by);
      all &= shuffle_xor(all, by), any |= shuffle_xor(any, by);
    }
    if (ERASES && lane % 4 == 0) {
      const bool forgets = DECAYS && t < count && !(any & 1) && (!EARLY || all);
      if (any & 2) shared.odd[1][t] = 1;
      shared.marks[t] = forgets ? FORGETS : 0;
    }
#pragma unroll
    for (int side = 0; side < 2; side++)
#pragma unroll
      for (int n = 0; n <= KEYED; n++) {
        const int s = 8 * side + lane % 4 * 2;
        float x[2];
#pragma unroll
        for (int i = 0; i < 2; i++) x[i] = own_score(own.part[n], ERASES ? 0.0f : self[n], half, side, i, lane);
        if (ERASES && !n) shared.work[block][s][row] = -x[0], shared.work[block][s + 1][row] = -x[1];
        else *reinterpret_cast<u32*>(&to.scores[2 * n + ERASES][t][16 * block + s]) = pair<S>(x[0], x[1]);
      }
  }
  __syncwarp();
  Systems systems = {shared.work, to.inverse};
  if (ERASES) invert(systems, block, lane);
}
