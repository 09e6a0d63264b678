// What Newton's method does at one step of one channel, for cells with diagonal R; see rnn_newton.cu.
#pragma once
#include "rnn.cuh"

constexpr int THREADS = 128;
typedef C State[STATES];
typedef C Map[STATES][STATES];  // [to][from]

// A piece of time: `steps` of one channel of one row. Arrays of pieces have the order (number, row, piece, channel).
struct Piece {
  i64 row, channel, lo, hi, index, plane;  // `plane`: how far apart a piece's numbers lie
  bool mine;

  __device__ __forceinline__ Piece(const Problem& p, i64 steps, i64 chunks, i64 row, i64 chunk, i64 channel)
      : row(row), channel(channel), plane(p.rows * chunks * p.width) {
    lo = chunk * steps, hi = lo + steps < p.length ? lo + steps : p.length;
    index = (row * chunks + chunk) * p.width + channel;
    mine = row < p.rows && channel < p.width && lo < hi;
  }
  template <int N> __device__ __forceinline__ void get(C (&to)[N], const C* from) const {
#pragma unroll
    for (int i = 0; i < N; i++) to[i] = from[i * plane + index];
  }
  template <int N> __device__ __forceinline__ void put(const C (&from)[N], C* to) const {
#pragma unroll
    for (int i = 0; i < N; i++) to[i * plane + index] = from[i];
  }
};

// Neighbouring threads have neighbouring channels.
__device__ __forceinline__ Piece piece_of_thread(const Problem& p, i64 steps, i64 chunks) {
  const i64 thread = blockIdx.x * i64(THREADS) + threadIdx.x, piece = thread / p.width;
  return {p, steps, chunks, piece / chunks, piece % chunks, thread % p.width};
}

// What a channel has for all times.
struct Channel {
  C R[GATES], b[GATES], w[HELD];
  bool rectified;

  __device__ __forceinline__ Channel(const Problem& p, i64 row, i64 channel) : rectified(channel >= p.linear) {
    Row<C>(p.R, p, row, channel).get(R, 0, true), Row<C>(p.b, p, row, channel).get(b, 0, true);
    clear(w);
    if constexpr (WEIGHTS > 0) Row<C>(p.w, p, row, channel).get(w, 0, true);
  }
  __device__ __forceinline__ void fed(C (&y)[GATES], const State& s) const {
    const C u = feed(s[0], rectified);
#pragma unroll
    for (int g = 0; g < GATES; g++) y[g] = mul_add(R[g], u, b[g]);
  }
};

__device__ __forceinline__ void restart(State& s, bool fresh) {
#pragma unroll
  for (int n = 0; n < STATES; n++) s[n] = fresh ? start_of(n) : s[n];
}

// The state after the step from `s`, in place.
__device__ __forceinline__ void advance(const Channel& c, const S (&input)[GATES], bool fresh, State& s) {
  C x[GATES], y[GATES];
  widened(x, input);
  restart(s, fresh);
  c.fed(y, s);
  step(activate(x, y, s, c.w), x, y, s, c.w);
}

// The gradient `ds` of the state after a step, taken to that of the state before.
__device__ __forceinline__ void pull_through(const Channel& c, const Activations& a, const C (&y)[GATES], const State& s, bool fresh,
                                             State& ds, C (&dx)[GATES], C (&dy)[GATES], C (&dw)[HELD]) {
  C du = C(0);
  pull(a, y, s, c.w, ds, dx, dy, dw);
#pragma unroll
  for (int g = 0; g < GATES; g++) du = mul_add(c.R[g], dy[g], du);
  ds[0] = feed_slope(s[0], c.rectified) == C(0) ? ds[0] : ds[0] + du;
  forget(ds, fresh);
}

// The state after the step from `s`, and its derivatives.
__device__ __forceinline__ void evaluate(const Channel& c, const S (&input)[GATES], bool fresh, const State& before, State& next, Map& slope) {
  C x[GATES], y[GATES], dx[GATES], dy[GATES], dw[HELD];
  State s;
#pragma unroll
  for (int n = 0; n < STATES; n++) s[n] = before[n];
  widened(x, input);
  restart(s, fresh);
  c.fed(y, s);
  const Activations a = activate(x, y, s, c.w);
#pragma unroll
  for (int to = 0; to < STATES; to++) {
#pragma unroll
    for (int n = 0; n < STATES; n++) slope[to][n] = n == to ? C(1) : C(0);
    clear(dw);
    pull_through(c, a, y, s, fresh, slope[to], dx, dy, dw);
  }
#pragma unroll
  for (int n = 0; n < STATES; n++) next[n] = s[n];
  step(a, x, y, next, c.w);
}

// a x + y, and b a.
__device__ __forceinline__ void apply(const Map& a, State& x, const State& y) {
  State z;
#pragma unroll
  for (int i = 0; i < STATES; i++) {
    z[i] = y[i];
#pragma unroll
    for (int j = 0; j < STATES; j++) z[i] = mul_add(a[i][j], x[j], z[i]);
  }
#pragma unroll
  for (int i = 0; i < STATES; i++) x[i] = z[i];
}
__device__ __forceinline__ void compose(const Map& b, Map& a) {
#pragma unroll
  for (int j = 0; j < STATES; j++) {
    State column, zero;
    clear(zero);
#pragma unroll
    for (int i = 0; i < STATES; i++) column[i] = a[i][j];
    apply(b, column, zero);
#pragma unroll
    for (int i = 0; i < STATES; i++) a[i][j] = column[i];
  }
}
__device__ __forceinline__ void identity(Map& a) {
#pragma unroll
  for (int i = 0; i < STATES; i++)
#pragma unroll
    for (int j = 0; j < STATES; j++) a[i][j] = i == j ? C(1) : C(0);
}
__device__ __forceinline__ void put_map(const Map& a, C* to, const Piece& at) {
#pragma unroll
  for (int i = 0; i < STATES; i++) at.put(a[i], to + i * STATES * at.plane);
}

// One channel's way over its chunks, from the first or the last: `flow` is what enters each. A batch is read at a time.
template <bool BACK>
__device__ __forceinline__ void carry_over(State& x, const Problem& p, i64 chunks, i64 thread, const C* maps, const C* ends, C* flow) {
  constexpr int BATCH = STATES == 1 ? 16 : 4;
  const i64 plane = p.rows * chunks * p.width, first = thread / p.width * chunks * p.width + thread % p.width;
#pragma unroll 1
  for (i64 k = 0; k < chunks; k += BATCH) {
    Map map[BATCH];
    State end[BATCH];
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
      const i64 chunk = k + i < chunks ? k + i : chunks - 1, at = first + (BACK ? chunks - 1 - chunk : chunk) * p.width;
#pragma unroll
      for (int n = 0; n < STATES; n++) {
        end[i][n] = ends[n * plane + at];
#pragma unroll
        for (int m = 0; m < STATES; m++) map[i][n][m] = maps[(n * STATES + m) * plane + at];
      }
    }
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
      if (k + i >= chunks) break;
      const i64 at = first + (BACK ? chunks - 1 - k - i : k + i) * p.width;
#pragma unroll
      for (int n = 0; n < STATES; n++) flow[n * plane + at] = x[n];
      apply(map[i], x, end[i]);
    }
  }
}
