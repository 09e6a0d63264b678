// s[t] = f(x[t], R u(s[t-1]) + b, s[t-1]) for all t at once, by Newton's method: cells with diagonal R.
//
// With r[t] = f(s[t-1]) - s[t] the correction solves δ[t] = J[t] δ[t-1] + r[t]. Channels do not meet, so:
//   guess   time is cut into chunks, one to a thread, which runs the cell's own loop from the start and `warm` steps before
//           its first; cells that forget are close to the solution after that. Only steps that begin a chunk have a residual
//   solve   a block owns WIDTH channels of a row, and of their time one of PARTS shares (the blocks of a cluster): it takes
//           the residual of those steps and, where that is too large, makes all corrections. LANES threads of a block share
//           a channel; each goes through a piece's corrections, and through residuals and maps of the corrected states: the
//           piece makes of a correction before it δ -> map δ + end. Between two rounds δ is carried from piece to piece.
//           The first round corrects nothing: it makes the maps.
// How time is cut follows from its length alone, and no block waits for one of another row or channel.
//
// Bytes moved: x read, once and a share, and s written; x and s read and s written again by each correction.
// Limits: below 2^31 blocks.
#ifndef STORAGE  // the launcher's macros, as the tests compile them
#define STORAGE float
#define CELL 7
#define RESETS 1
#define PARTS 1
#endif
#include "rnn_newton.cuh"

constexpr int SOLVERS = 256, WIDTH = 8, LANES = SOLVERS / WIDTH;  // threads of a block of `solve`
constexpr int BATCH = sizeof(C) == 4 ? 8 : 4, AHEAD = 4;  // steps whose numbers are under way, in `guess` and in `solve`

// What a guess reads of BATCH steps, asked for in one go: a wait for some of them is a wait for all that are under way.
struct Steps {
  Input in[BATCH];

  // The steps that `from` and `reset` point to, which go on to those behind them.
  __device__ __forceinline__ void fetch(Row<S>& from, Row<u8>& reset) {
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
#pragma unroll
      for (int g = 0; g < GATES; g++) in[i].x[g] = from.at[g * from.part];
      in[i].fresh = RESETS && *reset.at;
      from.at += from.time, reset.at += reset.time;
    }
  }
};

extern "C" __global__ void __launch_bounds__(THREADS)
guess(const __grid_constant__ Problem p, i64 steps, i64 chunks, i64 warm, C* size, i64* count) {
  const Piece at = piece_of_thread(p, steps, chunks);
  if (!at.mine) return;
  if (at.lo == 0 && at.channel == 0) size[at.row] = C(0), count[at.row] = 0;
  Row<S> from(p.x, p, at.row, at.channel);
  Row<u8> reset(p.reset, p, at.row, 0);
  Row<C> to(p.states, p, at.row, at.channel);
  const Channel c(p, at.row, at.channel);
  const i64 begin = at.lo > warm ? at.lo - warm : 0;
  int left = static_cast<int>(at.hi - begin), unkept = static_cast<int>(at.lo - begin);  // steps
  State s;
  Row<C>(p.first, p, at.row, at.channel).get(s, 0, true);
  restart(s, begin > 0);
  from.at += begin * from.time, reset.at += begin * reset.time, to.at += begin * to.time;
  Steps next;
  if (left >= BATCH) next.fetch(from, reset);
#pragma unroll 1
  for (; left >= BATCH; left -= BATCH, unkept -= BATCH) {
    const Steps now = next;
    State after[BATCH];
    if (left < 2 * BATCH) from.at -= BATCH * from.time, reset.at -= BATCH * reset.time;  // the last ones, again
    next.fetch(from, reset);
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
      advance(c, now.in[i].x, now.in[i].fresh, s);
#pragma unroll
      for (int n = 0; n < STATES; n++) after[i][n] = s[n];
    }
#pragma unroll
    for (int i = 0; i < BATCH; i++, to.at += to.time)
      if (i >= unkept) to.put(after[i], 0, true);
  }
#pragma unroll 1
  for (; left > 0; left--, unkept--, to.at += to.time, from.at += from.time, reset.at += reset.time) {
    Input in;
    in.fetch(from, reset, 0, 1, true);
    advance(c, in.x, in.fresh, s);
    if (unkept <= 0) to.put(s, 0, true);
  }
}

// Of the block's cluster.
__device__ __forceinline__ int part_of_time() { return static_cast<int>(blockIdx.x % PARTS); }
__device__ __forceinline__ void everyone() {
#if PARTS > 1
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
#else
  __syncthreads();
#endif
}

__device__ __forceinline__ C larger(C x, C y) { return x == x && !(y <= x) ? y : x; }  // NaN stays

// The largest residual so far, as a share of what it corrects.
__device__ __forceinline__ C larger_residual(C worst, const State& residual, const State& s) {
#pragma unroll
  for (int n = 0; n < STATES; n++)
    worst = larger(worst, (residual[n] < C(0) ? -residual[n] : residual[n]) / (C(1) + (s[n] < C(0) ? -s[n] : s[n])));
  return worst;
}

// The largest of all threads of the cluster; `board` has a place for each block of it.
__device__ __forceinline__ C largest(C worst, volatile C* board) {
  __shared__ C part[SOLVERS];
  part[threadIdx.x] = worst;
#pragma unroll 1
  for (int by = SOLVERS / 2; by > 0; by /= 2) {
    __syncthreads();
    if (threadIdx.x < by) part[threadIdx.x] = larger(part[threadIdx.x], part[threadIdx.x + by]);
  }
  if (threadIdx.x == 0) board[part_of_time()] = part[0];
  everyone();
  C most = board[0];
  for (int i = 1; i < PARTS; i++) most = larger(most, board[i]);
  return most;
}

__device__ __forceinline__ void note_largest(float* slot, float x) { atomicMax(reinterpret_cast<u32*>(slot), __float_as_uint(x)); }
__device__ __forceinline__ void note_largest(double* slot, double x) {
  atomicMax(reinterpret_cast<u64*>(slot), static_cast<u64>(__double_as_longlong(x)));
}

// What the loops over a channel's steps read and write.
struct Channels {
  const Row<S> x;
  const Row<u8> reset;
  const Row<C> states, first;
  const Channel c;

  __device__ __forceinline__ Channels(const Problem& p, const Piece& at)
      : x(p.x, p, at.row, at.channel), reset(p.reset, p, at.row, 0), states(p.states, p, at.row, at.channel),
        first(p.first, p, at.row, at.channel), c(p, at.row, at.channel) {}
  __device__ __forceinline__ void before(State& s, i64 t) const {
    if (t) states.get(s, t - 1, true);
    else first.get(s, 0, true);
  }
};

// The largest residual of the steps that begin a chunk, every `apart`-th of them from the thread's own.
__device__ __forceinline__ C seams(const Channels& on, const Problem& p, i64 steps, i64 lane, i64 apart) {
  C worst = C(0);
#pragma unroll 4
  for (i64 t = lane * steps; t < p.length; t += apart * steps) {
    Input in;
    State s, next;
    in.fetch(on.x, on.reset, t, p.length, true);
    on.states.get(s, t, true), on.before(next, t);
    advance(on.c, in.x, in.fresh, next);
#pragma unroll
    for (int n = 0; n < STATES; n++) next[n] = next[n] - s[n];
    worst = larger_residual(worst, next, s);
  }
  return worst;
}

// What is read of a step.
struct Step {
  Input in;
  State s;
};

// A piece's corrections if it `applies` them, `delta` entering it; `prev` is the state before it. Returns the largest
// residual that is left.
__device__ __forceinline__ C correct(const Channels& on, const Piece& at, State& prev, State& delta, bool applies, C* maps, C* ends) {
  State corrected, end;
  Map map, slope;
#pragma unroll
  for (int n = 0; n < STATES; n++) corrected[n] = prev[n] + delta[n];
  identity(map), clear(end);
  C worst = C(0);
  Step next[AHEAD];
#pragma unroll
  for (int i = 0; i < AHEAD; i++)
    next[i].in.fetch(on.x, on.reset, at.lo + i, at.hi, true), on.states.get(next[i].s, at.lo + i, at.lo + i < at.hi);
#pragma unroll 1
  for (i64 t = at.lo; t < at.hi; t += AHEAD) {
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      if (t + i >= at.hi) break;
      const Step now = next[i];
      const i64 ahead = t + i + AHEAD;
      next[i].in.fetch(on.x, on.reset, ahead, at.hi, true), on.states.get(next[i].s, ahead, ahead < at.hi);
      State after;
      evaluate(on.c, now.in.x, now.in.fresh, prev, after, slope);
#pragma unroll
      for (int n = 0; n < STATES; n++) after[n] = after[n] - now.s[n], prev[n] = now.s[n];
      apply(slope, delta, after);
      if (!applies) clear(delta);
      evaluate(on.c, now.in.x, now.in.fresh, corrected, after, slope);
#pragma unroll
      for (int n = 0; n < STATES; n++) corrected[n] = now.s[n] + delta[n], after[n] = after[n] - corrected[n];
      on.states.put(corrected, t + i, true);
      worst = larger_residual(worst, after, corrected);
      apply(slope, end, after), compose(slope, map);
    }
  }
  put_map(map, maps, at), at.put(end, ends);
  return worst;
}

// `size` and `count`, zeros after the guess, become a row's largest residual and the most corrections one of its blocks made.
extern "C" __global__ void __launch_bounds__(SOLVERS, 1)
#if PARTS > 1
__cluster_dims__(PARTS)
#endif
solve(const __grid_constant__ Problem p, i64 steps, i64 piece_steps, C* maps, C* ends, C* flow, C* boards, C* size, i64* count,
      C tol, i64 limit) {
  const i64 groups = (p.width + WIDTH - 1) / WIDTH, group = blockIdx.x / PARTS, pieces = PARTS * LANES;
  const i64 lane = part_of_time() * LANES + threadIdx.x / WIDTH;
  const Piece at(p, piece_steps, pieces, group / groups, lane, group % groups * WIDTH + threadIdx.x % WIDTH);
  const bool inside = at.channel < p.width;
  const Channels on(p, inside ? at : Piece(p, piece_steps, pieces, at.row, lane, 0));
  C* const board = boards + group * PARTS;
  C worst = inside ? seams(on, p, steps, lane, pieces) : C(0), most;
  i64 made = 0;
  for (bool mapped = false;; made += mapped, mapped = true) {
    most = largest(worst, board);
    if (!(most > tol && is_finite(most)) || made == limit) break;
    State prev, delta;
    clear(prev), clear(delta);
    if (mapped && inside && lane == 0) carry_over<false>(delta, p, pieces, at.row * p.width + at.channel, maps, ends, flow);
    everyone();
    if (at.mine) on.before(prev, at.lo);
    if (mapped && at.mine) at.get(delta, flow);
    everyone();
    if (inside) worst = correct(on, at, prev, delta, mapped, maps, ends);
  }
  if (threadIdx.x == 0 && part_of_time() == 0) {
    note_largest(size + at.row, most);
    atomicMax(reinterpret_cast<u64*>(count) + at.row, static_cast<u64>(made));
  }
}
