// Sliding-window attention on tensor cores: what its kernels share. A warp has 16 of a block's 64 rows.
#pragma once
#include "mma_tiles.cuh"

constexpr int THREADS = 128, BLOCK = 64, PAD = 8;
#include "local_attention.cuh"

constexpr float LOG2_E = 1.4426950408889634f;

// The tiles a block visits, in order.
struct Visits {
  i64 ahead, count;
  __device__ __forceinline__ Visits(const Span& x) {
    ahead = x.high < x.first ? 0 : (x.high - x.first) / BLOCK + 1;
    count = ahead + (x.low < x.first ? (x.first - x.low + BLOCK - 1) / BLOCK : 0);
  }
  __device__ __forceinline__ i64 first(const Span& x, i64 n) const {
    return n < ahead ? x.first + n * BLOCK : x.first - (n - ahead + 1) * BLOCK;
  }
};

// BLOCK steps of `width` numbers from `first` on, zeros beyond [low, high]: in the background where the arrays allow it, see
// `arrived`.
template <int WIDTH>
__device__ __forceinline__ void fetch_tile(S (*to)[WIDTH + PAD], const S* from, i64 time, i64 first, i64 low, i64 high, i64 width) {
  constexpr int PACK = PACKED ? 8 : 1;
#pragma unroll 4
  for (int i = threadIdx.x; i < BLOCK * (WIDTH / PACK); i += THREADS) {
    const int t = i / (WIDTH / PACK), n = i % (WIDTH / PACK) * PACK;
    const i64 at = first + t;
    const bool inside = at >= low && at <= high && n < width;
    const S* item = from + (inside ? at * time + n : low * time);
    if (PACKED) copy16(&to[t][n], item, inside);
    else to[t][n] = inside ? *item : Narrow<S>::of(0.0f);
  }
}

// Products of a warp's 16 rows with a tile's.
template <int WIDTH>
__device__ __forceinline__ void products(float (&s)[BLOCK / 8][4], const S (*rows)[WIDTH + PAD], const S (*tile)[WIDTH + PAD], int row, int lane) {
#pragma unroll
  for (int n = 0; n < BLOCK / 8; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) s[n][i] = 0.0f;
#pragma unroll
  for (int j = 0; j < WIDTH; j += 16) {
    u32 a[4], b[4];
    load_a<false>(a, rows, row, j, lane);
#pragma unroll
    for (int n = 0; n < BLOCK / 8; n += 2) {
      load_b<false>(b, tile, j, 8 * n, lane);
      mma(s[n], a, b[0], b[1], S());
      mma(s[n + 1], a, b[2], b[3], S());
    }
  }
}

// sum += weight times rows of the tile; weights are rounded to the dtype.
template <int WIDTH>
__device__ __forceinline__ void weighted(float (&sum)[WIDTH / 8][4], const float (&weight)[BLOCK / 8][4], const S (*tile)[WIDTH + PAD], int lane) {
#pragma unroll
  for (int m = 0; m < BLOCK / 8; m += 2) {
    const u32 a[4] = {pair<S>(weight[m][0], weight[m][1]), pair<S>(weight[m][2], weight[m][3]),
                      pair<S>(weight[m + 1][0], weight[m + 1][1]), pair<S>(weight[m + 1][2], weight[m + 1][3])};
    u32 b[4];
#pragma unroll
    for (int c = 0; c < WIDTH / 8; c += 2) {
      load_b<true>(b, tile, 8 * m, 8 * c, lane);
      mma(sum[c], a, b[0], b[1], S());
      mma(sum[c + 1], a, b[2], b[3], S());
    }
  }
}
