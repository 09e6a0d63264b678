// The pullback of a nonlinear recurrence, all steps at once: cells with diagonal R.
//
// λ[t] = (dh[t], 0, …) + J[t+1]ᵀ λ[t+1] is linear, and time is cut into chunks, one to a thread (see rnn_newton.cu):
//   reduce  what a chunk makes of the gradient that enters behind it: λ -> map λ + end
//   carry   from the last chunk to the first: `flow`, what enters each
//   run     every chunk again, from its true entry: the gradients; those of R, b and w are sums over the chunk's steps
// Bytes moved: x, dh and the states twice, dx once.
// Limits: below 2^31 blocks.
#ifndef STORAGE  // the launcher's macros, as the tests compile them
#define STORAGE float
#define CELL 7
#endif
#include "rnn_newton.cuh"

constexpr int AHEAD = 4;

// What is read of a step; `s` is the state before it.
struct Step {
  Input in;
  S dh[1];
  State s;
};

struct Reader {
  Row<S> x, dh;
  Row<u8> reset;
  Row<C> states, first;

  __device__ __forceinline__ Reader(const Problem& p, i64 row, i64 channel)
      : x(p.x, p, row, channel), dh(p.dh, p, row, channel), reset(p.reset, p, row, 0), states(p.states, p, row, channel),
        first(p.first, p, row, channel) {}
  __device__ __forceinline__ void fetch(Step& step, i64 t, i64 lo) const {
    const bool here = t >= lo;
    step.in.fetch(x, reset, here ? t : lo, here ? t + 1 : lo, here), dh.get(step.dh, t, here);
    if (t > 0) states.get(step.s, t - 1, here);
    else first.get(step.s, 0, here);
  }
};

extern "C" __global__ void __launch_bounds__(THREADS)
reduce(const __grid_constant__ Problem p, i64 steps, i64 chunks, C* maps, C* ends) {
  const Piece at = piece_of_thread(p, steps, chunks);
  if (!at.mine) return;
  const Reader from(p, at.row, at.channel);
  const Channel c(p, at.row, at.channel);
  State end, zero, unused;
  Map map, slope, turned;
  clear(end), clear(zero), identity(map);
  Step next[AHEAD];
#pragma unroll
  for (int i = 0; i < AHEAD; i++) from.fetch(next[i], at.hi - 1 - i, at.lo);
#pragma unroll 1
  for (i64 last = at.hi - 1; last >= at.lo; last -= AHEAD) {
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      if (last - i < at.lo) break;
      evaluate(c, next[i].in.x, next[i].in.fresh, next[i].s, unused, slope);
      end[0] += widen(next[i].dh[0]);
      from.fetch(next[i], last - i - AHEAD, at.lo);
#pragma unroll
      for (int n = 0; n < STATES; n++)
#pragma unroll
        for (int m = 0; m < STATES; m++) turned[n][m] = slope[m][n];
      apply(turned, end, zero), compose(turned, map);
    }
  }
  put_map(map, maps, at), at.put(end, ends);
}

extern "C" __global__ void __launch_bounds__(THREADS)
carry(const __grid_constant__ Problem p, i64 steps, i64 chunks, const C* maps, const C* ends, C* flow) {
  const i64 thread = blockIdx.x * i64(THREADS) + threadIdx.x;
  if (thread >= p.rows * p.width) return;
  State entry;
  Row<C>(p.ds, p, thread / p.width, thread % p.width).get(entry, 0, true);
  carry_over<true>(entry, p, chunks, thread, maps, ends, flow);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
run(const __grid_constant__ Problem p, i64 steps, i64 chunks, const C* flow, C* sums) {
  const Piece at = piece_of_thread(p, steps, chunks);
  if (!at.mine) return;
  const Reader from(p, at.row, at.channel);
  const Channel c(p, at.row, at.channel);
  const Row<C> to(p.dx, p, at.row, at.channel);
  State ds;
  C dR[GATES], db[GATES], dw[HELD];
  at.get(ds, flow);
  clear(dR), clear(db), clear(dw);
  Step next[AHEAD];
#pragma unroll
  for (int i = 0; i < AHEAD; i++) from.fetch(next[i], at.hi - 1 - i, at.lo);
#pragma unroll 1
  for (i64 last = at.hi - 1; last >= at.lo; last -= AHEAD) {
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      if (last - i < at.lo) break;
      C x[GATES], y[GATES], dx[GATES], dy[GATES];
      State s;
      widened(x, next[i].in.x);
      const bool fresh = next[i].in.fresh;
#pragma unroll
      for (int n = 0; n < STATES; n++) s[n] = fresh ? start_of(n) : next[i].s[n];
      ds[0] += widen(next[i].dh[0]);
      from.fetch(next[i], last - i - AHEAD, at.lo);
      c.fed(y, s);
      pull_through(c, activate(x, y, s, c.w), y, s, fresh, ds, dx, dy, dw);
      to.put(dx, last - i, true);
      const C u = feed(s[0], c.rectified);
#pragma unroll
      for (int g = 0; g < GATES; g++) dR[g] = mul_add(dy[g], u, dR[g]), db[g] += dy[g];
    }
  }
  at.put(dR, sums), at.put(db, sums + GATES * at.plane);
  if (WEIGHTS > 0) at.put(dw, sums + 2 * GATES * at.plane);
  if (at.lo == 0) Row<C>(p.ds, p, at.row, at.channel).put(ds, 0, true);
}
