// Recurrences of a matrix state S (rows x columns), step after step, in exact arithmetic; a pass is one of these loops:
//
//   S += p x^T                        PRE     (p, and all that is named before a ^T, has an entry per row of S,
//   y = S^T r, z = S^T s              READS    x and the outputs one per column)
//   S = e S                           DECAY   by a number, per row or per column
//   S += w y^T, w (x + y)^T or w x^T  WRITES  FEED: whether what was read is written
//   o = S^T q                         AFTER
//
// linear_attention, delta_rule and dplr_attention are such passes, and so is each of their gradients, with time backwards
// or with S transposed (recurrent.py lists them).
//
// A block owns a tile of columns of one head for all steps, a thread PER rows of COLUMNS columns in registers. LANES
// neighbouring lanes share columns and add up what they read by shuffles in a fixed order. Vectors come through shared
// memory, DEPTH steps at a time, the next ones being on their way; a head's bits do not depend on the other heads. Every
// pass moves its vectors once for each tile of columns, outputs once, and no state but the first and the last.
//
// Decays take no multiplication of the state at each step: with P their product since the tile began, X = S / P is what
// the registers hold, q P reads it and w / P is written, and it is multiplied with P when the tile ends. All that P
// changes is the exponent, by 2^60 at most: tiles with a decay too far from 1 are done by the loop as it stands above. So
// are those with a decay of zero, which forgets what was before, NaN and inf included.
//
// KEEP: the states after every EVERY steps are written, or multiplied with those that were.
#ifndef STORAGE  // the launcher's macros, as the tests compile them
#define STORAGE float
#define LANES 16
#define PER 8
#define COLUMNS 8
#define WARPS 4
#define DEPTH 8
#define UNROLL 2
#define PRE 0
#define READS 1
#define WRITES 1
#define AFTER 1
#define FEED 2
#define DECAY 1
#define KEEP 0
#define PACKED 1
#endif
#include "recurrent_state.cuh"

// y = S^T x of this thread's rows, x being step t of a tile's vectors.
__device__ __forceinline__ void read(C (&y)[COLUMNS], const State& state, const Spot& x, const C (&rows)[DEPTH][ROWS], int t) {
#pragma unroll
  for (int c = 0; c < COLUMNS; c++) y[c] = Number<C>::make(0);
#pragma unroll
  for (int j = 0; j < PER; j += 4) {
    C row[4];
    take<4>(row, &rows[t][row_of(x, j)]);
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) y[c] = mul_add(row[i], state[j + i][c], y[c]);
  }
}
// S += x y^T.
__device__ __forceinline__ void write(State& state, const Spot& x, const C (&rows)[DEPTH][ROWS], int t, const C (&y)[COLUMNS]) {
#pragma unroll
  for (int j = 0; j < PER; j += 4) {
    C row[4];
    take<4>(row, &rows[t][row_of(x, j)]);
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) state[j + i][c] = mul_add(row[i], y[c], state[j + i][c]);
  }
}

// What is read, and written then: y becomes the sums over all rows, in every lane, with what is added to them.
template <bool CAREFUL>
__device__ __forceinline__ void feed(C (&y)[COLUMNS], const Spot& x, const Tile& tile, const Decays& decays, int t, Out& out) {
  sum_rows<COLUMNS, LANES / 2>(y);
  if (!CAREFUL) scaled(y, x, decays, t - 1, false);
  if (FEED == SUM) {
#pragma unroll
    for (int i = 0; i < SHARE; i++) y[i] = add(tile.column[PRE][t][x.column + x.share + i], y[i]);
  }
  out.put(y, 1);
  if (!CAREFUL) scaled(y, x, decays, t, true);
  all_columns<COLUMNS, LANES / 2>(y);
}
__device__ __forceinline__ void write_all(State& state, const Spot& x, const Tile& tile, int t, const C (&fed)[COLUMNS]) {
#pragma unroll
  for (int n = 0; n < WRITES; n++) {
    if (FEED && !n) {
      write(state, x, tile.row[PRE + READS], t, fed);
    } else {
      C column[COLUMNS];
      take<COLUMNS>(column, &tile.column[PRE + n - (FEED == READ)][t][x.column]);
      write(state, x, tile.row[PRE + READS + n], t, column);
    }
  }
}
// Output n, read after the decay of step t or before it.
template <bool CAREFUL>
__device__ __forceinline__ void give(C (&y)[COLUMNS], const Spot& x, const Decays& decays, int t, Out* out, int n, R scale) {
  sum_rows<COLUMNS, LANES / 2>(y);
  if (!CAREFUL) scaled(y, x, decays, n < READS ? t - 1 : t, false);
  out[n].put(y, n < READS ? R(1) : scale);
}

template <bool CAREFUL>
__device__ __forceinline__ void step(State& state, const Problem& p, const Spot& x, const Tile& tile, const Decays& decays, int t,
                                     Out* out, R scale) {
  C y[READS + 1][COLUMNS];
  if (PRE) {
    take<COLUMNS>(y[0], &tile.column[0][t][x.column]);
    write(state, x, tile.row[0], t, y[0]);
  }
  if (CAREFUL && DECAY && FEED && !PRE) forget<true>(state, p, x, tile, decays, t);
#pragma unroll
  for (int n = 0; n < READS; n++) read(y[n], state, x, tile.row[PRE + n], t);
  if (FEED) feed<CAREFUL>(y[0], x, tile, decays, t, out[0]);
  if (CAREFUL && DECAY) {
    forget<false>(state, p, x, tile, decays, t);
    decayed(state, x, decays.each[t]);
  }
  write_all(state, x, tile, t, y[0]);
  if (CAREFUL && DECAY && PRE && WRITES) forget<true>(state, p, x, tile, decays, t);
  if (AFTER) read(y[READS], state, x, tile.row[NROWS - 1], t);
#pragma unroll
  for (int n = FEED ? 1 : 0; n < READS + AFTER; n++) give<CAREFUL>(y[n], x, decays, t, out, n, scale);
}

// All steps of a tile whose decays are multiplied. What is fed is summed while the last step's output is read.
__device__ __forceinline__ void steps(State& state, const Problem& p, const Spot& x, const Tile& tile, const Decays& decays,
                                      Out* out, R scale) {
  if (!FEED || !AFTER) {
#pragma unroll TOGETHER
    for (int t = 0; t < DEPTH; t++) step<false>(state, p, x, tile, decays, t, out, scale);
    return;
  }
  C y[COLUMNS], o[COLUMNS];
  read(y, state, x, tile.row[0], 0);
  feed<false>(y, x, tile, decays, 0, out[0]);
  write_all(state, x, tile, 0, y);
#pragma unroll TOGETHER
  for (int t = 1; t < DEPTH; t++) {
    read(y, state, x, tile.row[0], t);
    read(o, state, x, tile.row[NROWS - 1], t - 1);
    feed<false>(y, x, tile, decays, t, out[0]);
    write_all(state, x, tile, t, y);
    give<false>(o, x, decays, t - 1, out, READS, scale);
  }
  read(o, state, x, tile.row[NROWS - 1], DEPTH - 1);
  give<false>(o, x, decays, DEPTH - 1, out, READS, scale);
}

// The states after each EVERY steps of the scan this one is the pullback of: written there, multiplied with these here.
__device__ __forceinline__ void keep(State& state, const Problem& p, const Spot& x, i64 t) {
  const i64 chunk = t / EVERY;
  C* const kept = p.kept + (x.head * p.chunks + chunk) * p.rows * p.columns;
  if (KEEP == WRITE) {
    each(state, p, x, [=](i64 row, i64 column, C& number) { kept[row * p.columns + column] = number; });
    return;
  }
  R sum[PER];
#pragma unroll
  for (int i = 0; i < PER; i++) {
    sum[i] = 0;
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
      const i64 row = row_of(x, i), column = x.tile * TILE + x.column + c;
      if (row < p.rows && column < p.columns) sum[i] += real_of_product(kept[row * p.columns + column], state[i][c]);
    }
#pragma unroll
    for (int by = LANES; by < 32; by *= 2) sum[i] += shuffle_xor(sum[i], by);
  }
  const i64 part = x.tile * WARPS + threadIdx.x / 32;
  if (threadIdx.x % 32 < LANES) {
#pragma unroll
    for (int i = 0; i < PER; i++)
      if (row_of(x, i) < p.rows) p.dots[((part * p.heads + x.head) * p.chunks + chunk) * p.rows + row_of(x, i)] = sum[i];
  }
}
__device__ __forceinline__ bool keeps(const Problem& p, i64 t) { return (t + 1) % EVERY == 0 || t == p.length - 1; }

extern "C" __global__ void __launch_bounds__(THREADS, THREADS < 256 ? 256 / THREADS : 1) run(const __grid_constant__ Problem p) {
  extern __shared__ __align__(16) u8 memory[];
  Tile(&tiles)[2] = reinterpret_cast<Shared*>(memory)->tiles;
  Decays(&decays)[3] = reinterpret_cast<Shared*>(memory)->decays;
  const Spot x = spot(p);
  State state;
#pragma unroll
  for (int i = 0; i < PER; i++)
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) state[i][c] = Number<C>::make(0);
  if (p.first.at) {
    const C* const first = locate<C>(p.first, p, x.head);
    each(state, p, x, [=](i64 row, i64 column, C& number) { number = first[row * p.first_row + column * p.first_column]; });
  }
  Out out[3] = {Out(p, x, 0), Out(p, x, 1), Out(p, x, 2)};
  const R scale = sizeof(R) == 4 ? p.scale32 : p.scale;
  Stage stage(p, x.head, x.tile * TILE);
  // Decays are a tile ahead of the vectors they are multiplied with. Backwards the first tile is the short one: states are
  // kept between tiles, at the same steps in both directions.
  int count = static_cast<int>(p.length < DEPTH ? p.length : KEEP == MULTIPLY ? (p.length - 1) % DEPTH + 1 : DEPTH);
  int coming = static_cast<int>(p.length - count < DEPTH ? p.length - count : DEPTH);
  stage.fetch_decays(p, count);
  int careful = shuffle(__syncthreads_or(stage.store_decays(decays[0])) || count < DEPTH, 0);
  stage.fetch(p, count);
  stage.fetch_decays(p, coming);
  stage.store(tiles[0], decays[0], !careful);
  int then = __syncthreads_or(stage.store_decays(decays[1])) || coming < DEPTH;
  int now = 0, third = 0;
#pragma unroll 1
  for (i64 s = 0; s < p.length;) {
    const i64 next = s + count, left = p.length - next - coming;
    const int later = static_cast<int>(left < DEPTH ? left : DEPTH), after = third == 2 ? 0 : third + 1;
    if (coming) stage.fetch(p, coming);
    if (later) stage.fetch_decays(p, later);
    if (KEEP == MULTIPLY && keeps(p, p.length - 1 - s)) keep(state, p, x, p.length - 1 - s);
    if (!careful) {
      steps(state, p, x, tiles[now], decays[third], out, scale);
      if (DECAY) decayed(state, x, decays[third].all[DEPTH - 1]);
    } else {
#pragma unroll 1
      for (int t = 0; t < count; t++) step<true>(state, p, x, tiles[now], decays[third], t, out, scale);
    }
    if (KEEP == WRITE && keeps(p, next - 1)) keep(state, p, x, next - 1);
    now ^= 1;
    if (coming) stage.store(tiles[now], decays[after], !then);
    careful = shuffle(then, 0);  // the same everywhere, and now known to be: steps may be interleaved
    then = __syncthreads_or(later ? stage.store_decays(decays[after == 2 ? 0 : after + 1]) : 0) || later < DEPTH;
    s = next, count = coming, coming = later, third = after;
  }
  if (p.last)
    each(state, p, x, [=](i64 row, i64 column, C& number) { p.last[(x.head * p.rows + row) * p.columns + column] = number; });
}
