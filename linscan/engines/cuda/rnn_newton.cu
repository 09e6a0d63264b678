// s[t] = f(x[t], R u(s[t-1]) + b, s[t-1]) for all t at once, by Newton's method: cells with diagonal R.
//
// With r[t] = f(s[t-1]) - s[t] the correction solves δ[t] = J[t] δ[t-1] + r[t]. Time is cut into chunks, one to a thread:
//   guess   every chunk runs the cell's own loop, from the start and `warm` steps before its first, which cells that forget
//           are close to after that: only steps that begin a chunk have a residual
//   seams   that residual, and what the chunk makes of a correction before it: δ -> map δ + end
//   judge   which rows go on
//   carry   from chunk to chunk: `flow`, the correction that enters each
//   correct every chunk goes through its corrections, and through residuals and maps of the corrected states
// so that an iteration reads x once. `edges` are the states that chunks end with, before and after.
// Bytes moved: x read, once and a share, and s written by the guess; x and s read and s written by each correction.
// Limits: below 2^31 blocks.
#ifndef STORAGE  // the launcher's macros, as the tests compile them
#define STORAGE float
#define CELL 7
#endif
#include "rnn_newton.cuh"

constexpr int AHEAD = 4;

// What is read of a step.
struct Step {
  Input in;
  State s;
};

extern "C" __global__ void __launch_bounds__(THREADS)
guess(const __grid_constant__ Problem p, i64 steps, i64 chunks, i64 warm, C* maps, C* edges) {
  const Piece at(p, steps, chunks);
  if (!at.mine) return;
  const Row<S> from(p.x, p, at.row, at.channel);
  const Row<u8> reset(p.reset, p, at.row, 0);
  const Row<C> states(p.states, p, at.row, at.channel);
  const Channel c(p, at.row, at.channel);
  const i64 begin = at.lo > warm ? at.lo - warm : 0;
  State s;
  Map map;
  Row<C>(p.first, p, at.row, at.channel).get(s, 0, true);
  restart(s, begin > 0);
  identity(map);
  Input next[AHEAD];
#pragma unroll
  for (int i = 0; i < AHEAD; i++) next[i].fetch(from, reset, begin + i, at.hi, true);
#pragma unroll 1
  for (i64 first = begin; first < at.hi; first += AHEAD) {
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      const i64 t = first + i;
      if (t >= at.hi) break;
      const Input now = next[i];
      next[i].fetch(from, reset, t + AHEAD, at.hi, true);
      if (t > at.lo) {
        State after;
        Map slope;
        evaluate(c, now.x, now.fresh, s, after, slope);
        compose(slope, map);
#pragma unroll
        for (int n = 0; n < STATES; n++) s[n] = after[n];
      } else {
        C x[GATES], y[GATES];
        widened(x, now.x);
        restart(s, now.fresh);
        c.fed(y, s);
        step(activate(x, y, s, c.w), x, y, s, c.w);
      }
      if (t >= at.lo) states.put(s, t, true);
    }
  }
  put_map(map, maps, at), at.put(s, edges);
}

// The largest residual so far, as a share of what it corrects; NaN stays.
__device__ __forceinline__ C larger_residual(C worst, const State& residual, const State& s) {
#pragma unroll
  for (int n = 0; n < STATES; n++) {
    const C size = (residual[n] < C(0) ? -residual[n] : residual[n]) / (C(1) + (s[n] < C(0) ? -s[n] : s[n]));
    if (worst == worst && !(size <= worst)) worst = size;
  }
  return worst;
}

__device__ __forceinline__ void before(State& s, const Problem& p, const Piece& at, const C* edges) {
  if (at.chunk) at.get(s, edges, 1, p.width);
  else Row<C>(p.first, p, at.row, at.channel).get(s, 0, true);
}

extern "C" __global__ void __launch_bounds__(THREADS)
seams(const __grid_constant__ Problem p, i64 steps, i64 chunks, C* maps, C* ends, const C* edges, C* worst) {
  const Piece at(p, steps, chunks);
  if (!at.mine) return;
  const Channel c(p, at.row, at.channel);
  State s, prev, after, zero;
  Map slope, map;
  Input in;
  in.fetch(Row<S>(p.x, p, at.row, at.channel), Row<u8>(p.reset, p, at.row, 0), at.lo, at.hi, true);
  Row<C>(p.states, p, at.row, at.channel).get(s, at.lo, true);
  before(prev, p, at, edges);
  evaluate(c, in.x, in.fresh, prev, after, slope);
#pragma unroll
  for (int n = 0; n < STATES; n++) after[n] = after[n] - s[n];
  const C size[1] = {larger_residual(C(0), after, s)};
  get_map(map, maps, at);
  clear(zero);
  apply(map, after, zero), compose(map, slope);
  put_map(slope, maps, at), at.put(after, ends), at.put(size, worst);
}

// The largest residual of a row, a block's; whether it goes on, and then how many corrections it has had.
extern "C" __global__ void __launch_bounds__(THREADS)
judge(const __grid_constant__ Problem p, i64 steps, i64 chunks, const C* worst, C* size, u8* active, i64* count, int* any, C tol,
      int first, int more) {
  __shared__ C part[THREADS];
  const i64 each = chunks * p.width, row = blockIdx.x;
  C most = C(0);
  constexpr int BATCH = 16;  // loads under way
  for (i64 i = threadIdx.x; i < each; i += BATCH * THREADS) {
    C x[BATCH];
#pragma unroll
    for (int k = 0; k < BATCH; k++) x[k] = i + k * THREADS < each ? worst[row * each + i + k * THREADS] : C(0);
#pragma unroll
    for (int k = 0; k < BATCH; k++)
      if (most == most && !(x[k] <= most)) most = x[k];
  }
  part[threadIdx.x] = most;
  __syncthreads();
  if (threadIdx.x) return;
  for (int i = 1; i < THREADS; i++)
    if (most == most && !(part[i] <= most)) most = part[i];
  const bool goes_on = most > tol && is_finite(most) && (first || active[row]);
  size[row] = most, active[row] = goes_on, count[row] = (first ? 0 : count[row]) + (goes_on && more);
  if (goes_on) *any = 1;
}

extern "C" __global__ void __launch_bounds__(THREADS)
carry(const __grid_constant__ Problem p, i64 steps, i64 chunks, const C* maps, const C* ends, C* flow, const u8* active) {
  const i64 thread = blockIdx.x * i64(THREADS) + threadIdx.x;
  if (thread >= p.rows * p.width || !active[thread / p.width]) return;
  State delta;
  clear(delta);
  carry_over<false>(delta, p, chunks, thread, maps, ends, flow);
}

extern "C" __global__ void __launch_bounds__(THREADS)
correct(const __grid_constant__ Problem p, i64 steps, i64 chunks, C* maps, C* ends, const C* flow, const C* edges, C* edges_after,
        C* worst, const u8* active) {
  const Piece at(p, steps, chunks);
  if (!at.mine || !active[at.row]) return;
  const Row<S> from(p.x, p, at.row, at.channel);
  const Row<u8> reset(p.reset, p, at.row, 0);
  const Row<C> states(p.states, p, at.row, at.channel);
  const Channel c(p, at.row, at.channel);
  State delta, prev, corrected, end;
  Map map, slope;
  before(prev, p, at, edges);
  at.get(delta, flow, 0, 0);
#pragma unroll
  for (int n = 0; n < STATES; n++) corrected[n] = at.chunk ? prev[n] + delta[n] : prev[n];
  identity(map), clear(end);
  C size[1] = {C(0)};
  Step next[AHEAD];
#pragma unroll
  for (int i = 0; i < AHEAD; i++) {
    next[i].in.fetch(from, reset, at.lo + i, at.hi, true), states.get(next[i].s, at.lo + i, at.lo + i < at.hi);
  }
#pragma unroll 1
  for (i64 t = at.lo; t < at.hi; t += AHEAD) {
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      if (t + i >= at.hi) break;
      const Step now = next[i];
      next[i].in.fetch(from, reset, t + i + AHEAD, at.hi, true), states.get(next[i].s, t + i + AHEAD, t + i + AHEAD < at.hi);
      State after;
      evaluate(c, now.in.x, now.in.fresh, prev, after, slope);
#pragma unroll
      for (int n = 0; n < STATES; n++) after[n] = after[n] - now.s[n], prev[n] = now.s[n];
      apply(slope, delta, after);
      evaluate(c, now.in.x, now.in.fresh, corrected, after, slope);
#pragma unroll
      for (int n = 0; n < STATES; n++) corrected[n] = now.s[n] + delta[n], after[n] = after[n] - corrected[n];
      states.put(corrected, t + i, true);
      size[0] = larger_residual(size[0], after, corrected);
      apply(slope, end, after), compose(slope, map);
    }
  }
  put_map(map, maps, at), at.put(end, ends), at.put(corrected, edges_after), at.put(size, worst);
}
