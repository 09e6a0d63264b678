// s[t] = f(x[t], R u(s[t-1]) + b, s[t-1]) for cells f with diagonal R: each channel runs on its own.
//
// A thread takes one channel of one row through time; neighbouring threads have neighbouring channels.
// Bytes moved: x and h once; backwards x, y, the states, dh and dx. What takes the time is the chain of T steps.
#ifndef STORAGE  // the launcher's macros, as the tests compile them
#define STORAGE float
#define CELL 7
#endif
#include "rnn.cuh"

constexpr int THREADS = 64, AHEAD = 8, BEHIND = 4;  // steps whose numbers are under way, forwards and backwards

extern "C" __global__ void __launch_bounds__(THREADS, 1) forward(const __grid_constant__ Problem p) {
  const i64 index = blockIdx.x * i64(THREADS) + threadIdx.x, row = index / p.width, channel = index % p.width;
  if (row >= p.rows) return;
  const Row<S> from(p.x, p, row, channel), out(p.h, p, row, channel);
  const Row<u8> reset(p.reset, p, row, 0);
  const Row<C> kept(p.states, p, row, channel), fed(p.y, p, row, channel);
  const bool rectified = channel >= p.linear;
  C R[GATES], b[GATES], w[HELD], s[STATES];
  Row<C>(p.R, p, row, channel).get(R, 0, true), Row<C>(p.b, p, row, channel).get(b, 0, true);
  clear(w);
  if constexpr (WEIGHTS > 0) Row<C>(p.w, p, row, channel).get(w, 0, true);
  Row<C>(p.first, p, row, channel).get(s, 0, true);
  Input next[AHEAD];
#pragma unroll
  for (int i = 0; i < AHEAD; i++) next[i].fetch(from, reset, i, p.length, true);
#pragma unroll 1
  for (i64 t = 0; t < p.length; t += AHEAD) {
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      if (t + i >= p.length) break;
      C x[GATES], y[GATES], h[1];
      widened(x, next[i].x);
      if (next[i].fresh) {
#pragma unroll
        for (int n = 0; n < STATES; n++) s[n] = start_of(n);
      }
      next[i].fetch(from, reset, t + i + AHEAD, p.length, true);
      const C u = feed(s[0], rectified);
#pragma unroll
      for (int g = 0; g < GATES; g++) y[g] = mul_add(R[g], u, b[g]);
      step(activate(x, y, s, w), x, y, s, w);
      h[0] = s[0];
      out.put(h, t + i, true), kept.put(s, t + i, true), fed.put(y, t + i, true);
    }
  }
  Row<C>(p.last, p, row, channel).put(s, 0, true);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) backward(const __grid_constant__ Problem p) {
  const i64 index = blockIdx.x * i64(THREADS) + threadIdx.x, row = index / p.width, channel = index % p.width;
  if (row >= p.rows) return;
  const Row<S> from(p.x, p, row, channel), dout(p.dh, p, row, channel);
  const Row<u8> reset(p.reset, p, row, 0);
  const Row<C> fed(p.y, p, row, channel), states(p.states, p, row, channel), first(p.first, p, row, channel);
  const Row<C> to(p.dx, p, row, channel), to_y(p.dy, p, row, channel), flow(p.ds, p, row, channel);
  const bool rectified = channel >= p.linear;
  C R[GATES], w[HELD], dw[HELD], ds[STATES];
  Row<C>(p.R, p, row, channel).get(R, 0, true);
  clear(w), clear(dw);
  if constexpr (WEIGHTS > 0) Row<C>(p.w, p, row, channel).get(w, 0, true);
  flow.get(ds, 0, true);
  Record next[BEHIND];
#pragma unroll
  for (int i = 0; i < BEHIND; i++) next[i].fetch(from, dout, fed, states, first, reset, p.length - 1 - i, true);
#pragma unroll 1
  for (i64 last = p.length - 1; last >= 0; last -= BEHIND) {
#pragma unroll
    for (int i = 0; i < BEHIND; i++) {
      if (last - i < 0) break;
      C dx[GATES], dy[GATES], du = C(0);
      const C slope = back(next[i], ds, w, dx, dy, dw, rectified);
      const bool fresh = next[i].fresh;
      next[i].fetch(from, dout, fed, states, first, reset, last - i - BEHIND, true);
      to.put(dx, last - i, true), to_y.put(dy, last - i, true);
#pragma unroll
      for (int g = 0; g < GATES; g++) du = mul_add(R[g], dy[g], du);
      ds[0] = slope == C(0) ? ds[0] : ds[0] + du;
      forget(ds, fresh);
    }
  }
  flow.put(ds, 0, true);
  if constexpr (WEIGHTS > 0) Row<C>(p.dw, p, row, channel).put(dw, 0, true);
}
