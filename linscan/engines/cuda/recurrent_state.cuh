// A block's part of the state of a recurrence: where it lies, sums over its rows, and its decay. See recurrent.cu.
#pragma once
#include "recurrent.cuh"

typedef C State[PER][COLUMNS];

// What a block works on, its arguments apart.
struct Spot {
  i64 head, tile;
  int lane, column, share, writes;  // row lane; first column in the tile; which of the sums are this lane's, if it writes
};

__device__ __forceinline__ Spot spot(const Problem& p) {
  Spot x;
  const i64 tiles = (p.columns + TILE - 1) / TILE;
  x.head = blockIdx.x / tiles, x.tile = blockIdx.x % tiles;
  x.lane = threadIdx.x % LANES, x.column = threadIdx.x / LANES * COLUMNS;
  x.share = 0;
  int left = LANES;
#pragma unroll
  for (int n = COLUMNS / 2; n > 0; n /= 2)
    if (left > 1) left /= 2, x.share += x.lane & left ? n : 0;
  x.writes = x.lane % left == 0;
  return x;
}

__device__ __forceinline__ int row_of(const Spot& x, int i) { return 4 * (x.lane + i / 4 * LANES) + i % 4; }

// Calls f(row, column, number) for each of this thread's that the state has.
template <class F> __device__ __forceinline__ void each(State& state, const Problem& p, const Spot& x, F f) {
#pragma unroll
  for (int i = 0; i < PER; i++)
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
      const i64 row = row_of(x, i), column = x.tile * TILE + x.column + c;
      if (row < p.rows && column < p.columns) f(row, column, state[i][c]);
    }
}

// The sums over lanes of COLUMNS numbers each; afterwards a lane has SHARE of them, which begin at its `share`.
template <int N, int BY> __device__ __forceinline__ void sum_rows(C (&y)[COLUMNS]) {
  if constexpr (BY > 0) {
    if constexpr (N > 1) {
      const bool upper = threadIdx.x & BY;
#pragma unroll
      for (int i = 0; i < N / 2; i++) {
        const C mine = upper ? y[i + N / 2] : y[i], other = upper ? y[i] : y[i + N / 2];
        y[i] = add(mine, shuffle_xor(other, BY));
      }
    } else {
      y[0] = add(y[0], shuffle_xor(y[0], BY));
    }
    sum_rows<(N > 1 ? N / 2 : 1), BY / 2>(y);
  }
}
template <int N, int BY> __device__ __forceinline__ void all_columns(C (&y)[COLUMNS]) {  // and back: to every lane, all
  if constexpr (BY > 0 && N > 1) {
    all_columns<N / 2, BY / 2>(y);
    const bool upper = threadIdx.x & BY;
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
      const C own = y[i], other = shuffle_xor(own, BY);
      y[i] = upper ? other : own, y[i + N / 2] = upper ? own : other;
    }
  }
}

// One output: where this lane's share of it goes next, if it has one.
struct Out {
  C* to;
  i64 time;
  int width;  // numbers of it

  __device__ __forceinline__ Out(const Problem& p, const Spot& x, int n) {
    const i64 column = x.tile * TILE + x.column + x.share;
    const bool there = p.out[n].at && x.writes && column < p.columns;
    to = there ? locate<C>(p.out[n], p, x.head) + column : nullptr;
    time = p.out[n].time, width = !there ? 0 : p.columns - column < SHARE ? static_cast<int>(p.columns - column) : SHARE;
  }
  __device__ __forceinline__ void put(const C (&y)[COLUMNS], R scale) {
#pragma unroll
    for (int i = 0; i < SHARE; i++) {
      const C x = mul(scale, y[i]);
      if (i < width) to[i] = x;
    }
    to += time;
  }
};

// Rows or columns with a decay of zero; with LOST, those of them that are not read or written on either.
template <bool LOST> __device__ __forceinline__ void forget(State& state, const Problem& p, const Spot& x, const Tile& tile, const Decays& decays, int t) {
  const C zero = Number<C>::make(0);
#pragma unroll
  for (int i = 0; i < PER; i++)
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
      const int row = row_of(x, i), column = x.column + c;
      const R e = decays.each[t][DECAY == BY_ROW ? row : DECAY == BY_COLUMN ? column : 0];
      bool gone = e == 0;
      if (LOST) gone = gone & is_zero(FEED ? tile.row[ERASED][t][row] : tile.column[NCOLUMNS - 1][t][column]);
      if (gone | (row >= p.rows)) state[i][c] = zero;
    }
}

// This lane's share of what a state was read for that should have been decayed until then, or the inverse of that.
__device__ __forceinline__ void scaled(C (&y)[COLUMNS], const Spot& x, const Decays& decays, int t, bool inverse) {
  if (DECAY != BY_STEP && DECAY != BY_COLUMN) return;
#pragma unroll
  for (int i = 0; i < SHARE; i++) {
    const R factor = decays.until(t, x.column + x.share + i);
    y[i] = mul(inverse ? reciprocal(factor) : factor, y[i]);
  }
}

// S = e S.
__device__ __forceinline__ void decayed(State& state, const Spot& x, const R (&e)[CHANNELS]) {
  R by_column[COLUMNS], by_row[4];
  if (DECAY == BY_COLUMN) take<COLUMNS>(by_column, &e[DECAY == BY_COLUMN ? x.column : 0]);
  if (DECAY == BY_STEP) by_row[0] = e[0];
#pragma unroll
  for (int i = 0; i < PER; i++) {
    if (DECAY == BY_ROW && i % 4 == 0) take<4>(by_row, &e[DECAY == BY_ROW ? row_of(x, i) : 0]);
#pragma unroll
    for (int c = 0; c < COLUMNS; c++)
      state[i][c] = mul(DECAY == BY_COLUMN ? by_column[c] : by_row[DECAY == BY_ROW ? i % 4 : 0], state[i][c]);
  }
}
