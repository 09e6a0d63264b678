// The pullback of sliding-window attention, in the arithmetic of the dtype; weights and their slopes are made anew:
//
//   p = exp(score - total),  ds = p (do·v - D),  D = do·o;   dq = scale Σ ds k,  dk = scale Σ ds q,  dv = Σ p do.
//
// In `queries` a block has QUERIES queries and visits tiles of keys; in `keys` it has as many keys and visits tiles of
// queries. `crossings` are, for the gates, what a step's pairs add where they begin and take away where they end, those
// with slopes that are not finite counted apart: what they spoil ends with them.
// Bytes moved: see local_attention.cu; four arrays come through shared memory here, and outputs are twice as many.
// Limits: KEYS and VALUES, the widths rounded up, to 256; below 2^31 blocks.
#ifndef STORAGE  // the launcher's macros, as the tests compile them
#define STORAGE float
#define QUERIES 64
#define KEYS 64
#define VALUES 64
#define GATED 1
#define MARKED 1
#endif
#include "local_attention_exact.cuh"
#include "local_attention_back.cuh"

// Of rows and columns: what scores are made of (q or k), and what their slopes are (do or v).
struct Back {
  C rows[QUERIES][KEYS + PAD], rows_out[QUERIES][VALUES + PAD], tile[TILE][KEYS + PAD], tile_out[TILE][VALUES + PAD];
  C p[QUERIES][TILE + PAD], ds[QUERIES][TILE + PAD], total[TILE], mean[TILE];
};

template <int COUNT>
__device__ __forceinline__ void give(S* out, const C (&sum)[MINE][COUNT][PACK], C scale, const Span& x, i64 length, i64 before, i64 width,
                                     int row, int lane) {
#pragma unroll
  for (int r = 0; r < MINE; r++) {
    const i64 t = x.first + row + r;
    if (t > x.last) continue;
    S* to = out + (x.row * length + t - before) * width;
#pragma unroll
    for (int n = 0; n < COUNT; n++)
#pragma unroll
      for (int e = 0; e < PACK; e++)
        if ((8 * n + lane) * PACK + e < width) to[(8 * n + lane) * PACK + e] = Narrow<S>::of(scale * sum[r][n][e]);
  }
}

struct Crossings {
  double* sums;
  int* broken;
};

template <bool BY_KEYS>
__device__ __forceinline__ void pull_back(Back& shared, Marks& marks, const Layout& layout, const Sizes& sizes, const Pointers& from,
                                          const Span& x, const Given<C>& given, S* first_out, S* second_out, const Crossings& crossings) {
  constexpr int WIDE = KEYS / (8 * PACK);
  const int lane = threadIdx.x % 8, row = threadIdx.x / 8 * MINE;
  const i64 all = sizes.past + layout.length, begin = x.row * layout.length - sizes.past;
  const S* cotangent = given.cotangent + begin * sizes.values;
  const i64 step_q = layout.operand[Q].time, step_k = layout.operand[K].time, step_v = layout.operand[V].time;
  C sum[MINE][WIDE][PACK], sum_out[BY_KEYS ? MINE : 1][PACKS][PACK];
  double crossing[MINE];
  int broken[MINE];
#pragma unroll
  for (int r = 0; r < MINE; r++) {
    crossing[r] = 0.0, broken[r] = 0;
#pragma unroll
    for (int e = 0; e < PACK; e++) {
#pragma unroll
      for (int n = 0; n < WIDE; n++) sum[r][n][e] = C(0);
#pragma unroll
      for (int n = 0; n < PACKS; n++) sum_out[BY_KEYS ? r : 0][n][e] = C(0);
    }
  }
  bool bad_rows = load_exact<KEYS>(shared.rows, BY_KEYS ? from.k : from.q, BY_KEYS ? step_k : step_q, x.first, QUERIES, x.first, x.last, sizes.keys);
  bad_rows |= load_exact<VALUES>(shared.rows_out, BY_KEYS ? from.v : cotangent, BY_KEYS ? step_v : sizes.values, x.first, QUERIES, x.first, x.last, sizes.values);
  const int *rows_numbers = BY_KEYS ? from.seen : from.own, *tile_numbers = BY_KEYS ? from.own : from.seen;
  const i64 step_rows = layout.operand[BY_KEYS ? SEEN : OWN].time, step_tile = layout.operand[BY_KEYS ? OWN : SEEN].time;
  mark_rows(marks, layout, sizes, from, x, rows_numbers, step_rows);
  C total[MINE], mean[MINE];
#pragma unroll
  for (int r = 0; r < MINE; r++) {
    const bool mine = !BY_KEYS && x.first + row + r <= x.last;
    total[r] = mine ? given.total[begin + x.first + row + r] : C(INFINITY);
    mean[r] = mine ? given.mean[begin + x.first + row + r] : C(0);
  }
  double edge = 0.0;
  const i64 ahead = x.high < x.first ? 0 : (x.high - x.first) / TILE + 1, behind = x.low < x.first ? (x.first - x.low + TILE - 1) / TILE : 0;
#pragma unroll 1
  for (i64 n = 0; n < ahead + behind; n++) {
    const bool up = n < ahead;
    const i64 first = up ? x.first + n * TILE : x.first - (n - ahead + 1) * TILE;
    if (n == ahead) edge = 0.0;
    __syncthreads();
    bool bad = bad_rows;
    bad |= load_exact<KEYS>(shared.tile, BY_KEYS ? from.q : from.k, BY_KEYS ? step_q : step_k, first, TILE, x.low, x.high, sizes.keys);
    bad |= load_exact<VALUES>(shared.tile_out, BY_KEYS ? cotangent : from.v, BY_KEYS ? sizes.values : step_v, first, TILE, x.low, x.high, sizes.values);
    if (BY_KEYS)
      for (int i = threadIdx.x; i < TILE; i += THREADS) {
        const bool inside = first + i >= x.low && first + i <= x.high;
        shared.total[i] = inside ? given.total[begin + first + i] : C(INFINITY);
        shared.mean[i] = inside ? given.mean[begin + first + i] : C(0);
      }
    mark<TILE>(marks, edge, layout, sizes, from, x, first, up, tile_numbers, step_tile);
    const bool careful = __syncthreads_or(bad);
    C s[MINE][COLUMNS], slope[MINE][COLUMNS];
    products<KEYS>(s, shared.rows, shared.tile, row, lane);
    products<VALUES>(slope, shared.rows_out, shared.tile_out, row, lane);
#pragma unroll
    for (int r = 0; r < MINE; r++)
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) {
        const int column = lane + 8 * c;
        const i64 i = x.first + row + r, j = first + column;
        const C more = bias<BY_KEYS>(marks, sizes, x, first, row + r, column, false);
        const C score = more == C(-INFINITY) ? more : mul_add(static_cast<C>(sizes.scale), s[r][c], more);
        const C sums = BY_KEYS ? shared.total[column] : total[r], centre = BY_KEYS ? shared.mean[column] : mean[r];
        const bool visible = score != C(-INFINITY) && sums != C(INFINITY);
        const C p = visible ? exponential(score - sums) : C(0), ds = visible ? p * (slope[r][c] - centre) : C(0);
        shared.p[row + r][column] = p, shared.ds[row + r][column] = ds;
        if (GATED && i != j && i <= x.last) {
          const bool counts = is_finite(ds);
          crossing[r] += !counts ? 0.0 : j > i ? static_cast<double>(ds) : -static_cast<double>(ds);
          broken[r] += counts ? 0 : j > i ? 1 : -1;
        }
      }
    __syncwarp();
    if (careful) {
      gather<true, KEYS>(sum, shared.ds, shared.tile, row, lane);
      if constexpr (BY_KEYS) gather<true, VALUES>(sum_out, shared.p, shared.tile_out, row, lane);
    } else {
      gather<false, KEYS>(sum, shared.ds, shared.tile, row, lane);
      if constexpr (BY_KEYS) gather<false, VALUES>(sum_out, shared.p, shared.tile_out, row, lane);
    }
  }
  const i64 length = BY_KEYS ? all : layout.length, before = BY_KEYS ? 0 : sizes.past;
  give(first_out, sum, static_cast<C>(sizes.scale), x, length, before, sizes.keys, row, lane);
  if constexpr (BY_KEYS) give(second_out, sum_out, C(1), x, length, before, sizes.values, row, lane);
  if (GATED) {
#pragma unroll
    for (int r = 0; r < MINE; r++) {
#pragma unroll
      for (int by = 1; by < 8; by *= 2) crossing[r] += shuffle_xor(crossing[r], by), broken[r] += shuffle_xor(broken[r], by);
      if (lane || x.first + row + r > x.last) continue;
      const i64 at = x.row * length + x.first + row + r - before;
      crossings.sums[at] = crossing[r], crossings.broken[at] = broken[r];
    }
  }
}

// D, for `count` queries; a warp takes one.
extern "C" __global__ void __launch_bounds__(THREADS) means(const S* o, const S* cotangent, C* mean, i64 count, i64 width) {
  const i64 t = blockIdx.x * i64(THREADS / 32) + threadIdx.x / 32;
  C sum = C(0);
  if (t < count)
    for (i64 c = threadIdx.x % 32; c < width; c += 32) sum = mul_add(C(widen(o[t * width + c])), C(widen(cotangent[t * width + c])), sum);
#pragma unroll
  for (int by = 16; by > 0; by /= 2) sum += shuffle_xor(sum, by);
  if (t < count && threadIdx.x % 32 == 0) mean[t] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) queries(ARGUMENTS, S* dq, double* sums, int* broken, const u8* chosen) {
  if (chosen && !chosen[blockIdx.x]) return;
  extern __shared__ __align__(16) u8 memory[];
  __shared__ Marks marks;
  const Span x = span(layout, sizes);
  const Pointers from = pointers(layout, sizes, locate(layout, x.row), q, k, v, g, own, seen);
  pull_back<false>(*reinterpret_cast<Back*>(memory), marks, layout, sizes, from, x, {cotangent, total, mean}, dq, nullptr, {sums, broken});
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) keys(ARGUMENTS, S* dk, S* dv, double* sums, int* broken, const u8* chosen) {
  if (chosen && !chosen[blockIdx.x]) return;
  extern __shared__ __align__(16) u8 memory[];
  __shared__ Marks marks;
  const Span x = span_of_keys(layout, sizes);
  const Pointers from = pointers(layout, sizes, locate(layout, x.row), q, k, v, g, own, seen);
  pull_back<true>(*reinterpret_cast<Back*>(memory), marks, layout, sizes, from, x, {cotangent, total, mean}, dk, dv, {sums, broken});
}
