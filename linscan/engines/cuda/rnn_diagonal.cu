// s[t] = f(x[t], R u(s[t-1]) + b, s[t-1]) for cells f with diagonal R: each channel runs on its own.
//
// A thread of a block's first warp takes one channel of one row through time, neighbouring threads neighbouring channels.
// What it needs is read by other warps, BATCH steps at a time and one batch ahead: a thread that waited for its own reads
// would wait for all that are under way, at every step. Backwards those warps also make the activations.
// Bytes moved: x and h once; backwards x, y, the states, dh and dx. What takes the time is the chain of T steps.
#ifndef STORAGE  // the launcher's macros, as the tests compile them
#define STORAGE float
#define CELL 7
#endif
#include "rnn.cuh"

constexpr int CHANNELS = 32, READERS = 1, READERS_BACK = 4;

// `use` of every step, one after the other, from what `fetch` makes for it in one of WARPS other warps.
template <class Taken, int WARPS, class Fetch, class Use>
__device__ __forceinline__ void run(i64 length, Fetch fetch, Use use) {
  constexpr int BATCH = sizeof(Taken) <= 32 ? 16 : sizeof(Taken) <= 80 ? 8 : 4;  // in shared memory, and in registers
  __shared__ Taken read[2][BATCH][CHANNELS];
  const int lane = threadIdx.x % CHANNELS, reader = static_cast<int>(threadIdx.x) / CHANNELS - 1;
#pragma unroll 1
  for (i64 first = -BATCH; first < length; first += BATCH) {
    const int half = static_cast<int>(first / BATCH & 1);
    if (reader >= 0) {
      Taken ahead[BATCH / WARPS];
#pragma unroll
      for (int i = 0; i < BATCH / WARPS; i++) fetch(ahead[i], first + BATCH + i * WARPS + reader);
#pragma unroll
      for (int i = 0; i < BATCH / WARPS; i++) read[1 - half][i * WARPS + reader][lane] = ahead[i];
    } else if (first >= 0) {
      Taken next = read[half][0][lane];
#pragma unroll 4
      for (int i = 0; i < BATCH; i++) {
        const Taken now = next;
        next = read[half][i + 1 < BATCH ? i + 1 : i][lane];
        if (first + i < length) use(now, first + i);
      }
    }
    __syncthreads();
  }
}

// What a step back needs.
struct Pulled {
  Activations a;
  C y[GATES], s[STATES], dh;
  bool fresh;
};

extern "C" __global__ void __launch_bounds__((1 + READERS) * CHANNELS, 1)
forward(const __grid_constant__ Problem p, const C* residual, C tol, bool* solved) {
  const i64 index = blockIdx.x * i64(CHANNELS) + threadIdx.x % CHANNELS, row = index / p.width, channel = index % p.width;
  const bool done = row < p.rows && residual && residual[row] <= tol;  // Newton's method has solved it
  const bool mine = row < p.rows && !done;
  if (solved && channel == 0 && row < p.rows && threadIdx.x < CHANNELS) solved[row] = done;
  if (!__syncthreads_or(mine)) return;
  const i64 known = mine ? row : 0;
  const Row<S> from(p.x, p, known, channel), out(p.h, p, known, channel);
  const Row<u8> reset(p.reset, p, known, 0);
  const Row<C> kept(p.states, p, known, channel), fed(p.y, p, known, channel);
  const bool rectified = channel >= p.linear;
  C R[GATES], b[GATES], w[HELD], s[STATES];
  Row<C>(p.R, p, known, channel).get(R, 0, true), Row<C>(p.b, p, known, channel).get(b, 0, true);
  clear(w);
  if constexpr (WEIGHTS > 0) Row<C>(p.w, p, known, channel).get(w, 0, true);
  Row<C>(p.first, p, known, channel).get(s, 0, true);
  run<Input, READERS>(
      p.length, [&](Input& in, i64 t) { in.fetch(from, reset, t, p.length, mine); },
      [&](const Input& in, i64 t) {
        C x[GATES], y[GATES], h[1];
        widened(x, in.x);
        if (in.fresh) {
#pragma unroll
          for (int n = 0; n < STATES; n++) s[n] = start_of(n);
        }
        const C u = feed(s[0], rectified);
#pragma unroll
        for (int g = 0; g < GATES; g++) y[g] = mul_add(R[g], u, b[g]);
        step(activate(x, y, s, w), x, y, s, w);
        h[0] = s[0];
        out.put(h, t, mine), kept.put(s, t, mine), fed.put(y, t, mine);
      });
  if (threadIdx.x < CHANNELS) Row<C>(p.last, p, known, channel).put(s, 0, mine);
}

extern "C" __global__ void __launch_bounds__((1 + READERS_BACK) * CHANNELS, 1)
backward(const __grid_constant__ Problem p) {
  const i64 index = blockIdx.x * i64(CHANNELS) + threadIdx.x % CHANNELS, row = index / p.width, channel = index % p.width;
  const bool mine = row < p.rows;
  const i64 known = mine ? row : 0;
  const Row<S> from(p.x, p, known, channel), dout(p.dh, p, known, channel);
  const Row<u8> reset(p.reset, p, known, 0);
  const Row<C> fed(p.y, p, known, channel), states(p.states, p, known, channel), first(p.first, p, known, channel);
  const Row<C> to(p.dx, p, known, channel), to_y(p.dy, p, known, channel), flow(p.ds, p, known, channel);
  const bool rectified = channel >= p.linear;
  C R[GATES], w[HELD], dw[HELD], ds[STATES];
  Row<C>(p.R, p, known, channel).get(R, 0, true);
  clear(w), clear(dw);
  if constexpr (WEIGHTS > 0) Row<C>(p.w, p, known, channel).get(w, 0, true);
  flow.get(ds, 0, true);
  const i64 end = p.length - 1;
  run<Pulled, READERS_BACK>(
      p.length,
      [&](Pulled& to_do, i64 n) {
        Record in;
        C x[GATES];
        in.fetch(from, dout, fed, states, first, reset, end - n, mine);
        widened(x, in.x), to_do.dh = widen(in.dh[0]), to_do.fresh = in.fresh;
#pragma unroll
        for (int g = 0; g < GATES; g++) to_do.y[g] = in.y[g];
#pragma unroll
        for (int i = 0; i < STATES; i++) to_do.s[i] = in.fresh ? start_of(i) : in.s[i];
        to_do.a = activate(x, to_do.y, to_do.s, w);
      },
      [&](const Pulled& in, i64 n) {
        C dx[GATES], dy[GATES], du = C(0);
        ds[0] = ds[0] + in.dh;
        pull(in.a, in.y, in.s, w, ds, dx, dy, dw);
        to.put(dx, end - n, mine), to_y.put(dy, end - n, mine);
#pragma unroll
        for (int g = 0; g < GATES; g++) du = mul_add(R[g], dy[g], du);
        ds[0] = feed_slope(in.s[0], rectified) == C(0) ? ds[0] : ds[0] + du;
        forget(ds, in.fresh);
      });
  if (threadIdx.x >= CHANNELS) return;
  flow.put(ds, 0, mine);
  if constexpr (WEIGHTS > 0) Row<C>(p.dw, p, known, channel).put(dw, 0, mine);
}
