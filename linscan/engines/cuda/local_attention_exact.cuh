// Sliding-window attention in the arithmetic of the dtype, a tile of queries against tiles of keys.
//
// A thread has MINE rows and shares them with the seven beside it: of scores every eighth column, of outputs packs.
#pragma once

constexpr int THREADS = 128;
#include "local_attention.cuh"
constexpr int MINE = QUERIES / 16, TILE = 32, PACK = 16 / sizeof(C), PAD = PACK;
constexpr int COLUMNS = TILE / 8, PACKS = VALUES / (8 * PACK);

struct alignas(16) Numbers { C item[PACK]; };
struct Exact {
  C q[QUERIES][KEYS + PAD], k[TILE][KEYS + PAD], v[TILE][VALUES + PAD], p[QUERIES][TILE + PAD];
};
// `count` steps of `width` numbers from `first` on, zeros beyond [low, high]; returns whether one is not finite.
template <int WIDTH>
__device__ __forceinline__ bool load_exact(C (*to)[WIDTH + PAD], const S* from, i64 time, i64 first, int count, i64 low, i64 high, i64 width) {
  bool bad = false;
  for (int i = threadIdx.x; i < count * WIDTH; i += THREADS) {
    const int t = i / WIDTH, n = i % WIDTH;
    const i64 at = first + t;
    const C x = at >= low && at <= high && n < width ? C(widen(from[at * time + n])) : C(0);
    bad = bad || !is_finite(x);
    to[t][n] = x;
  }
  return bad;
}

// Products of this thread's rows with its columns.
template <int WIDTH>
__device__ __forceinline__ void products(C (&s)[MINE][COLUMNS], const C (*a)[WIDTH + PAD], const C (*b)[WIDTH + PAD], int row, int lane) {
#pragma unroll
  for (int r = 0; r < MINE; r++)
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) s[r][c] = C(0);
#pragma unroll 2
  for (int n = 0; n < WIDTH; n += PACK) {
    Numbers x[MINE], y[COLUMNS];
#pragma unroll
    for (int r = 0; r < MINE; r++) x[r] = *reinterpret_cast<const Numbers*>(&a[row + r][n]);
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) y[c] = *reinterpret_cast<const Numbers*>(&b[lane + 8 * c][n]);
#pragma unroll
    for (int e = 0; e < PACK; e++)
#pragma unroll
      for (int r = 0; r < MINE; r++)
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) s[r][c] = mul_add(x[r].item[e], y[c].item[e], s[r][c]);
  }
}

// sum += weight times rows of the tile; with CAREFUL, what has no weight is left out even if it is not finite.
template <bool CAREFUL, int WIDTH>
__device__ __forceinline__ void gather(C (&sum)[MINE][WIDTH / (8 * PACK)][PACK], const C (*weight)[TILE + PAD], const C (*tile)[WIDTH + PAD],
                                       int row, int lane) {
#pragma unroll 2
  for (int j = 0; j < TILE; j++) {
    C w[MINE];
#pragma unroll
    for (int r = 0; r < MINE; r++) w[r] = weight[row + r][j];
#pragma unroll
    for (int n = 0; n < WIDTH / (8 * PACK); n++) {
      const Numbers x = *reinterpret_cast<const Numbers*>(&tile[j][(8 * n + lane) * PACK]);
#pragma unroll
      for (int e = 0; e < PACK; e++)
#pragma unroll
        for (int r = 0; r < MINE; r++)
          sum[r][n][e] = CAREFUL && w[r] == C(0) ? sum[r][n][e] : mul_add(w[r], x.item[e], sum[r][n][e]);
    }
  }
}

// The outputs of a block's queries, and the logarithms of their sums of weights.
__device__ __forceinline__ void attend(Exact& shared, Marks& marks, const Layout& layout, const Sizes& sizes, const Pointers& from,
                                       const Span& x, S* out, C* total) {
  const int lane = threadIdx.x % 8, row = threadIdx.x / 8 * MINE;
  C o[MINE][PACKS][PACK], top[MINE], weight[MINE];
#pragma unroll
  for (int r = 0; r < MINE; r++) {
    top[r] = C(-INFINITY), weight[r] = C(0);
#pragma unroll
    for (int n = 0; n < PACKS; n++)
#pragma unroll
      for (int e = 0; e < PACK; e++) o[r][n][e] = C(0);
  }
  load_exact<KEYS>(shared.q, from.q, layout.operand[Q].time, x.first, QUERIES, x.first, x.last, sizes.keys);
  mark_rows(marks, layout, sizes, from, x, from.own, layout.operand[OWN].time);
  double edge = 0.0;
  const i64 ahead = (x.high - x.first) / TILE + 1, behind = (x.first - x.low + TILE - 1) / TILE;
#pragma unroll 1
  for (i64 n = 0; n < ahead + behind; n++) {
    const bool up = n < ahead;
    const i64 first = up ? x.first + n * TILE : x.first - (n - ahead + 1) * TILE;
    if (n == ahead) edge = 0.0;
    __syncthreads();
    load_exact<KEYS>(shared.k, from.k, layout.operand[K].time, first, TILE, x.low, x.high, sizes.keys);
    const bool bad = load_exact<VALUES>(shared.v, from.v, layout.operand[V].time, first, TILE, x.low, x.high, sizes.values);
    mark<TILE>(marks, edge, layout, sizes, from, x, first, up, from.seen, layout.operand[SEEN].time);
    const bool careful = __syncthreads_or(bad), all = all_see(sizes, x, first, TILE);
    C s[MINE][COLUMNS];
    products<KEYS>(s, shared.q, shared.k, row, lane);
#pragma unroll
    for (int r = 0; r < MINE; r++) {
      C most = top[r];
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) {
        const C more = bias<false>(marks, sizes, x, first, row + r, lane + 8 * c, all);
        s[r][c] = more == C(-INFINITY) ? more : mul_add(static_cast<C>(sizes.scale), s[r][c], more);
        most = larger(most, s[r][c]);
      }
#pragma unroll
      for (int by = 1; by < 8; by *= 2) most = larger(most, shuffle_xor(most, by));
      const C base = most == C(-INFINITY) ? C(0) : most, old = exponential(top[r] - base);
      C sum = C(0);
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) {
        const C p = exponential(s[r][c] - base);
        shared.p[row + r][lane + 8 * c] = p, sum += p;
      }
#pragma unroll
      for (int by = 1; by < 8; by *= 2) sum += shuffle_xor(sum, by);
      weight[r] = mul_add(weight[r], old, sum), top[r] = most;
#pragma unroll
      for (int n = 0; n < PACKS; n++)
#pragma unroll
        for (int e = 0; e < PACK; e++) o[r][n][e] = o[r][n][e] * old;
    }
    __syncwarp();
    if (careful) gather<true, VALUES>(o, shared.p, shared.v, row, lane);
    else gather<false, VALUES>(o, shared.p, shared.v, row, lane);
  }
#pragma unroll
  for (int r = 0; r < MINE; r++) {
    const i64 t = x.first + row + r;
    if (t > x.last) continue;
    const bool empty = weight[r] == C(0);
    S* to = out + (x.row * layout.length + t - sizes.past) * sizes.values;
#pragma unroll
    for (int n = 0; n < PACKS; n++)
#pragma unroll
      for (int e = 0; e < PACK; e++) {
        const int c = (8 * n + lane) * PACK + e;
        if (c < sizes.values) to[c] = Narrow<S>::of(empty ? C(0) : o[r][n][e] / weight[r]);
      }
    if (lane == 0) total[x.row * layout.length + t - sizes.past] = empty ? C(INFINITY) : top[r] + logarithm(weight[r]);
  }
}
