// The pullback of the selective scan: every chunk of time from its end to its start, with the flow that enters it.
//
// The forward kept one state of EVERY steps. From it the states of those steps are run again, SUB steps at a time: first
// one state for each SUB steps, then, from the last SUB to the first, every decay and every state before a step; then
// the SUB steps are run backwards. Two exponentials for each step and state, as the forward has one.
// Gradients of B and C are sums over channels: over a warp by shuffles that halve what a lane holds, over a block in
// shared memory, over blocks by `total`, always in the same order.
//
// Bytes moved: u, dt, z, dy twice, du, ddt, dz once, and 2 N numbers a step for every block of channels.
#ifndef STORAGE  // the launcher's macros, as the tests compile them
#define STORAGE float
#define STATES 16
#define PER 4
#define LANES 4
#define THREADS 128
#define EVERY 32
#define SOFTPLUS 1
#define GATED 1
#define RESETS 1
#define REAL 1
#define BACKWARD 1
#define SOME 1
#define ALL_STATES 2
#define KEEP 1
#endif
#include "selective.cuh"

constexpr int SUB = 4, SUBS = EVERY / SUB, WARPS = THREADS / 32;

struct Gradients {
  void *du, *ddt, *dz;           // (row, time, channel), as u, dt and z are stored
  C *dA, *dD;                    // of each chunk: (chunk, row, channel, state) and (chunk, row, channel)
  R* bias;                       // (chunk, row, channel)
  C *vectors, *first;            // (block, row, time, group, B or C, state); (row, channel, state)
};

struct Shared {
  C B[SUB][WIDE], C_[SUB][WIDE];
  C start[SUBS][PER][THREADS];                      // the states SUB steps begin with
  C decay[SUB][PER][THREADS], before[SUB][PER][THREADS];
  C sums[WARPS][SUB][2 * WIDE];
};

struct Inputs {
  SR dt[SUB];
  S u[SUB];
  u32 fresh;
};

__device__ __forceinline__ void fetch(Inputs& in, const Problem& p, const Spot& x, i64 first, int count) {
  const SR* dt = row_of<SR>(p.dt, x.row, x.channel);
  const S* u = row_of<S>(p.u, x.row, x.channel);
  const u8* reset = row_of<u8>(p.reset, x.row, 0);
  in.fresh = 0;
#pragma unroll
  for (int s = 0; s < SUB; s++) {
    if (s >= count) break;
    in.dt[s] = dt[(first + s) * p.dt.time], in.u[s] = u[(first + s) * p.u.time];
    if (RESETS && reset[(first + s) * p.reset.time]) in.fresh |= 1u << s;
  }
}

template <bool BOTH> __device__ __forceinline__ void vectors(Shared& shared, const Problem& p, const Spot& x, i64 first, int count) {
  Vectors<SUB> B, C_;
  B.fetch(p.B, p, x, first, count, false);
  if (BOTH) C_.fetch(p.C, p, x, first, count, false);
  __syncthreads();  // the tile before is done with
  B.settle(shared.B);
  if (BOTH) C_.settle(shared.C_);
  __syncthreads();
}

// SUB steps forward from h; with WRITE every decay and every state before a step goes to shared memory.
template <bool WRITE>
__device__ __forceinline__ void forward(C (&h)[PER], const C (&A)[PER], R bias, const Inputs& in, int count, Shared& shared, const Spot& x) {
#pragma unroll
  for (int s = 0; s < SUB; s++) {
    if (s >= count) break;
    const R delta = step_size(in.dt[s], bias);
    const C drive = mul(delta, C(widen(in.u[s])));
#pragma unroll
    for (int i = 0; i < PER; i++) {
      const C a = decay(delta, A[i]), input = mul(drive, shared.B[s][x.state + i]);
      if (WRITE) shared.decay[s][i][threadIdx.x] = a, shared.before[s][i][threadIdx.x] = h[i];
      h[i] = RESETS && (in.fresh >> s & 1u) ? input : mul_add(a, h[i], input);
    }
  }
}

// Sums over the channels of a warp of 2 PER numbers a lane: at each halving a lane hands half of them on and adds what it
// is handed of the others. What is left starts at index `from`; `owner` is one of the lanes that hold the same sum.
struct Held { int from, count; bool owner; };
__device__ __forceinline__ Held sum_channels(C (&v)[2 * PER], int lane) {
  Held held = {0, 2 * PER, true};
#pragma unroll
  for (int by = 16; by >= LANES; by /= 2) {
    const bool upper = lane & by;
    if (held.count > 1) {
      held.count /= 2;
#pragma unroll
      for (int i = 0; i < PER; i++) {
        if (i >= held.count) break;
        const C low = v[i], high = v[i + held.count];
        v[i] = add(upper ? high : low, shuffle_xor(upper ? low : high, by));
      }
      held.from += upper ? held.count : 0;
    } else {
      v[0] = add(v[0], shuffle_xor(v[0], by));
      held.owner = held.owner && !upper;
    }
  }
  return held;
}

struct Flow {
  C flow[PER], A[PER], dA[PER], skip, dD;
  R bias, dbias;
};

// One step backwards: see the note in ops/selective_scan.py for the terms.
__device__ __forceinline__ void back(Flow& f, const Inputs& in, int s, i64 t, const Problem& p, const Spot& x, Shared& shared,
                                     const Gradients& out) {
  const R v = widen(in.dt[s]) + f.bias, delta = SOFTPLUS ? softplus(v) : v;
  const bool fresh = RESETS && (in.fresh >> s & 1u);
  const C u = widen(in.u[s]), drive = mul(delta, u), dy = cotangent(p, x.row, x.channel, t);
  const R z = GATED ? widen(row_of<SR>(p.z, x.row, x.channel)[t * p.z.time]) : R(0), share = GATED ? sigmoid(z) : R(0);
  const C g = GATED ? mul(z * share, dy) : dy;
  C dx = Number<C>::make(0), total = dx, sums[2 * PER];
  R ddelta = 0;
#pragma unroll
  for (int i = 0; i < PER; i++) {
    if (!live(x, i)) {
      sums[i] = sums[PER + i] = Number<C>::make(0);
      continue;
    }
    const C a = shared.decay[s][i][threadIdx.x], carried = mul(a, shared.before[s][i][threadIdx.x]);
    const C B = shared.B[s][x.state + i], vector = shared.C_[s][x.state + i];
    const C input = mul(drive, B), h = fresh ? input : mul_add(a, shared.before[s][i][threadIdx.x], input);
    const C grad = mul_add(conj(vector), g, f.flow[i]);
    const C past = fresh ? Number<C>::make(0) : mul(conj(carried), grad);
    f.flow[i] = fresh ? Number<C>::make(0) : mul(conj(a), grad);
    total = mul_add(vector, h, total);
    dx = mul_add(conj(B), grad, dx);
    f.dA[i] = mul_add(delta, past, f.dA[i]);
    ddelta += real_part(mul(conj(f.A[i]), past));
    sums[i] = x.mine ? mul(conj(drive), grad) : Number<C>::make(0);
    sums[PER + i] = x.mine ? mul(conj(h), g) : Number<C>::make(0);
  }
  const int lane = threadIdx.x & 31;
  const Held held = sum_channels(sums, lane);
#pragma unroll
  for (int i = 0; i < 2 * PER; i++) {
    const int index = held.from + i, n = x.state + index % PER;
    if (i < held.count && held.owner) shared.sums[threadIdx.x / 32][s][index < PER ? n : WIDE + n] = sums[i];
  }
  dx = sum_lanes(dx), ddelta = sum_lanes(ddelta);
  if (GATED) total = mul_add(f.skip, u, sum_lanes(total));
  ddelta += real_part(mul(conj(u), dx));
  if (SOFTPLUS) ddelta *= sigmoid(v);
  f.dD = mul_add(conj(u), g, f.dD), f.dbias += ddelta;
  if (!x.mine || x.state) return;
  const i64 index = (x.row * p.length + t) * p.channels + x.channel;
  static_cast<S*>(out.du)[index] = Narrow<S>::of(mul_add(delta, dx, mul(conj(f.skip), g)));
  static_cast<SR*>(out.ddt)[index] = Narrow<SR>::of(ddelta);
  if (GATED) {
    const R slope = share * (1 + z * (1 - share)), matched = REAL ? real_part(total) * real_part(dy) : real_part(mul(conj(total), dy));
    static_cast<SR*>(out.dz)[index] = Narrow<SR>::of(matched * slope);
  }
}

// The block's sums over channels, its warps in order.
__device__ __forceinline__ void put_sums(const Shared& shared, i64 first, int count, const Problem& p, const Spot& x, i64 block, C* to) {
  for (int index = threadIdx.x; index < count * 2 * WIDE; index += THREADS) {
    const int s = index / (2 * WIDE), which = index / WIDE % 2, n = index % WIDE;
    if (n >= STATES) continue;
    C sum = shared.sums[0][s][which * WIDE + n];
    for (int w = 1; w < WARPS; w++) sum = add(sum, shared.sums[w][s][which * WIDE + n]);
    to[((((block * p.rows + x.row) * p.length + first + s) * p.groups + x.group) * 2 + which) * STATES + n] = sum;
  }
}

// `flows` is the flow that enters each chunk from behind, or, if a row is one chunk, the cotangent of its final state.
extern "C" __global__ void __launch_bounds__(THREADS)
run(const __grid_constant__ Problem p, const C* kept, const C* flows, const __grid_constant__ Gradients out) {
  __shared__ Shared shared;
  const i64 width = p.channels / p.groups, block = blockIdx.x % ((width + CHANNELS - 1) / CHANNELS);
  const Spot x = spot(p, blockIdx.x);
  const i64 slot = x.chunk * p.rows * p.channels + x.flat(p), records = (p.length + EVERY - 1) / EVERY;
  Flow f;
  C A[PER];
  take_eigenvalues(A, p, x);
  take(f.A, reinterpret_cast<const C*>(p.A) + x.channel * STATES, p, x);
  take(f.flow, flows + slot * STATES, p, x);
#pragma unroll
  for (int i = 0; i < PER; i++) f.dA[i] = Number<C>::make(0);
  f.skip = p.D ? reinterpret_cast<const C*>(p.D)[x.channel] : Number<C>::make(0);
  f.bias = p.bias ? reinterpret_cast<const R*>(p.bias)[x.channel] : R(0);
  f.dD = Number<C>::make(0), f.dbias = 0;

  Inputs in;
#pragma unroll 1
  for (i64 base = (x.hi - 1) / EVERY * EVERY; base >= x.lo; base -= EVERY) {
    const int steps = static_cast<int>(x.hi - base < EVERY ? x.hi - base : EVERY), subs = (steps + SUB - 1) / SUB;
    C h[PER];
    take(h, kept + ((x.row * records + base / EVERY) * p.channels + x.channel) * STATES, p, x);
#pragma unroll 1
    for (int j = 0; j < subs; j++) {
#pragma unroll
      for (int i = 0; i < PER; i++) shared.start[j][i][threadIdx.x] = h[i];
      if (j + 1 == subs) break;
      fetch(in, p, x, base + j * SUB, SUB);
      vectors<false>(shared, p, x, base + j * SUB, SUB);
      forward<false>(h, A, f.bias, in, SUB, shared, x);
    }
#pragma unroll 1
    for (int j = subs - 1; j >= 0; j--) {
      const int count = steps - j * SUB < SUB ? steps - j * SUB : SUB;
#pragma unroll
      for (int i = 0; i < PER; i++) h[i] = shared.start[j][i][threadIdx.x];
      fetch(in, p, x, base + j * SUB, count);
      vectors<true>(shared, p, x, base + j * SUB, count);
      forward<true>(h, A, f.bias, in, count, shared, x);
#pragma unroll
      for (int s = SUB - 1; s >= 0; s--)
        if (s < count) back(f, in, s, base + j * SUB + s, p, x, shared, out);
      __syncthreads();
      put_sums(shared, base + j * SUB, count, p, x, block, out.vectors);
    }
  }
  give(out.dA + slot * STATES, f.dA, p, x);
  if (x.chunk == 0) give(out.first + x.flat(p) * STATES, f.flow, p, x);
  if (x.mine && x.state == 0) out.dD[slot] = f.dD, out.bias[slot] = f.dbias;
}

// Sums of `parts` arrays of `size` numbers, one after the other.
extern "C" __global__ void total(const C* from, C* to, i64 parts, i64 size) {
  const i64 i = blockIdx.x * i64(blockDim.x) + threadIdx.x;
  if (i >= size) return;
  C sum = from[i];
  for (i64 k = 1; k < parts; k++) sum = add(sum, from[k * size + i]);
  to[i] = sum;
}
