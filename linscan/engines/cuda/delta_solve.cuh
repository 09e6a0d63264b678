// The unit triangular system of a chunk's steps, by blocks of 16 of them: its diagonal blocks are inverted in float32, and
// what known steps have in later ones is taken off by tensor cores. `Scores` is any struct with the arrays named here:
// `work`, float [block][column][row], the diagonal blocks below their diagonals; `inverse`, S [2][step][column in block], its
// numbers rounded, and what rounding left of them; `erases`, S [step][step], for what is off these blocks, negated, which in
// block (j, i) of those above the diagonal has what rounding left of block (i, j).
#pragma once
#include "finite.cuh"
#include "mma_tiles.cuh"

typedef STORAGE S;

// Two neighbouring tiles of a product.
__device__ __forceinline__ void mma_pair(float (&left)[4], float (&right)[4], const u32 (&a)[4], const u32 (&b)[4]) {
  mma(left, a, b[0], b[1], S());
  mma(right, a, b[2], b[3], S());
}

// A 16 x 16 block of numbers held as results is the left side of the next product, rounded.
__device__ __forceinline__ void round_block(u32 (&a)[4], const float (&left)[4], const float (&right)[4]) {
  a[0] = pair<S>(left[0], left[1]), a[1] = pair<S>(left[2], left[3]);
  a[2] = pair<S>(right[0], right[1]), a[3] = pair<S>(right[2], right[3]);
}

// The inverse of 1 + a diagonal block, by substitution: a lane owns a column.
template <class Scores> __device__ __forceinline__ void invert(Scores& to, int block, int lane) {
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

// x (a block of the system's left side) less what the known steps `u` of block j have in it. The scores come in two parts:
// where keys resemble each other what is erased is far larger than what is left, and so would be what rounding left out.
template <bool BACK, class Scores>
__device__ __forceinline__ void erase(float (&left)[4], float (&right)[4], const u32 (&u)[4], const Scores& scores, int i, int j, int lane) {
  u32 b[4];
  load_b<BACK>(b, scores.erases, 16 * i, 16 * j, lane);
  mma_pair(left, right, u, b);
  load_b<BACK>(b, scores.erases, 16 * j, 16 * i, lane);
  mma_pair(left, right, u, b);
}

// x times a diagonal block's inverse, or, TURNED, its transpose; both in two parts, so that little is rounded away.
template <bool TURNED, class Scores>
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
