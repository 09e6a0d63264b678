// The pullback of the selective scan: every chunk of time from its end to its start, with the flow that enters it.
//
// The forward kept one state of EVERY steps. From it the states of those steps are run again, SUB steps at a time: first
// one state for each SUB steps, then, from the last SUB to the first, every decay and every state before a step, in
// registers; then the SUB steps are run backwards. Two exponentials for each step and state, as the forward has one.
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

constexpr int SUB = 4, SUBS = EVERY / SUB, WARPS = THREADS / 32, GROUP = 8;

struct Gradients {
  void *du, *ddt, *dz;           // (row, time, channel), as u, dt and z are stored
  C *dA, *dD;                    // of each chunk: (chunk, row, channel, state) and (chunk, row, channel)
  R* bias;                       // (chunk, row, channel)
  C *vectors, *first;            // (block, row, time, group, B or C, state); (row, channel, state)
};

// EVERY steps as the states need them. Once a step is done, its gradients stand where its numbers were: ddt in delta, du
// in u, the output before the gate in g.
struct alignas(16) Shared {
  C B[EVERY][WIDE], C_[EVERY][WIDE];
  C start[SUBS][PER][THREADS];  // the states SUB steps begin with
  C sums[WARPS][SUB][2 * WIDE];
  C u[EVERY][CHANNELS], g[EVERY][CHANNELS];
  R delta[EVERY][CHANNELS], slope[SOFTPLUS ? EVERY : 1][CHANNELS];
  bool fresh[EVERY];
};

__device__ __forceinline__ void copy(C (&to)[EVERY][WIDE], const Sequence& from, const Spot& x, i64 first, int count) {
  const S* at = row_of<S>(from, x.row, x.group);
#pragma unroll 4
  for (int index = threadIdx.x; index < EVERY * WIDE; index += THREADS) {
    const int s = index / WIDE, n = index % WIDE;
    to[s][n] = s < count && n < STATES ? widen(at[(first + s) * from.time + n * from.state]) : Number<C>::make(0);
  }
}

// Steps first, ..., first + count - 1: this thread's items, GROUP reads on their way at a time.
__device__ __forceinline__ void load(Shared& shared, const Problem& p, const Spot& x, R bias, i64 first, int count) {
  copy(shared.B, p.B, x, first, count);
  copy(shared.C_, p.C, x, first, count);
  if (RESETS && threadIdx.x < count) shared.fresh[threadIdx.x] = row_of<u8>(p.reset, x.row, 0)[(first + threadIdx.x) * p.reset.time];
  const SR *dt = row_of<SR>(p.dt, x.row, x.item), *z = row_of<SR>(p.z, x.row, x.item);
  const S* u = row_of<S>(p.u, x.row, x.item);
  const Cotangent::type* dy = row_of<Cotangent::type>(p.dy, x.row, x.item);
#pragma unroll 1
  for (int at = x.step; at < count; at += GROUP * LANES) {
    Word<SR> dts[GROUP], zs[GROUP];
    Word<S> us[GROUP];
    Word<Cotangent::type> dys[GROUP];
#pragma unroll
    for (int j = 0; j < GROUP; j++) {
      const i64 s = at + j * LANES, t = first + (s < count ? s : count - 1);  // asking would take longer than reading
      dts[j].fetch(dt + t * p.dt.time), us[j].fetch(u + t * p.u.time), dys[j].fetch(dy + t * p.dy.time);
      if (GATED) zs[j].fetch(z + t * p.z.time);
    }
#pragma unroll
    for (int j = 0; j < GROUP; j++) {
      const int s = at + j * LANES;
      if (EVERY % (GROUP * LANES) && s >= EVERY) break;
      const R v = widen(dts[j].number()) + bias;
      const C dy = Cotangent::wide(dys[j].number());
      shared.delta[s][x.seat] = SOFTPLUS ? softplus(v) : v;
      if (SOFTPLUS) shared.slope[s][x.seat] = sigmoid(v);
      shared.u[s][x.seat] = widen(us[j].number());
      shared.g[s][x.seat] = GATED ? mul(silu(widen(zs[j].number())), dy) : dy;
    }
  }
}

// SUB steps forward from h, from step `first` of the tile on; `each(s, i, decay, state before)` is told what comes by.
template <class Each>
__device__ __forceinline__ void forward(C (&h)[PER], const C (&A)[PER], const Shared& shared, const Spot& x, int first, int count, Each each) {
#pragma unroll
  for (int s = 0; s < SUB; s++) {
    if (s >= count) break;
    const R delta = shared.delta[first + s][x.slot];
    const C drive = mul(delta, shared.u[first + s][x.slot]);
    const bool fresh = RESETS && shared.fresh[first + s];
#pragma unroll
    for (int i = 0; i < PER; i++) {
      const C a = decay(delta, A[i]), input = mul(drive, shared.B[first + s][x.state + i]);
      each(s, i, a, h[i]);
      h[i] = fresh ? input : mul_add(a, h[i], input);
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
  R dbias;
};

// Step s of the SUB that begin with step `first` of the tile, backwards: the note in ops/selective_scan.py has the terms.
__device__ __forceinline__ void back(Flow& f, const C (&decays)[PER], const C (&before)[PER], int first, int s, const Spot& x, Shared& shared) {
  const int at = first + s;
  const R delta = shared.delta[at][x.slot], slope = SOFTPLUS ? shared.slope[at][x.slot] : R(1);
  const bool fresh = RESETS && shared.fresh[at];
  const C u = shared.u[at][x.slot], g = shared.g[at][x.slot], drive = mul(delta, u);
  C dx = Number<C>::make(0), total = dx, sums[2 * PER];
  R ddelta = 0;
#pragma unroll
  for (int i = 0; i < PER; i++) {
    if (!live(x, i)) {
      sums[i] = sums[PER + i] = Number<C>::make(0);
      continue;
    }
    const C a = decays[i], B = shared.B[at][x.state + i], vector = shared.C_[at][x.state + i];
    const C input = mul(drive, B), h = fresh ? input : mul_add(a, before[i], input);
    const C grad = mul_add(conj(vector), g, f.flow[i]);
    f.flow[i] = fresh ? Number<C>::make(0) : mul(conj(a), grad);
    const C past = fresh ? Number<C>::make(0) : mul(conj(before[i]), f.flow[i]);
    if (GATED) total = mul_add(vector, h, total);
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
  ddelta = (Plain<C>::of(ddelta) + real_part(mul(conj(u), dx))) * slope;
  f.dD = mul_add(conj(u), g, f.dD), f.dbias += ddelta;
  __syncwarp();  // all of the channel's lanes have read what is overwritten now
  if (x.state) return;
  shared.delta[at][x.slot] = ddelta;
  shared.u[at][x.slot] = mul_add(delta, dx, mul(conj(f.skip), g));
  if (GATED) shared.g[at][x.slot] = total;
}

// What `back` left in the tile, to where it belongs.
__device__ __forceinline__ void store(const Shared& shared, const Problem& p, const Spot& x, i64 first, int count, const Gradients& out) {
  if (!x.item_mine) return;
  const SR* z = row_of<SR>(p.z, x.row, x.item);
#pragma unroll 4
  for (int s = x.step; s < count; s += LANES) {
    const i64 t = first + s, index = (x.row * p.length + t) * p.channels + x.item;
    static_cast<S*>(out.du)[index] = Narrow<S>::of(shared.u[s][x.seat]);
    static_cast<SR*>(out.ddt)[index] = Narrow<SR>::of(shared.delta[s][x.seat]);
    if (!GATED) continue;
    const R gate = widen(z[t * p.z.time]), share = sigmoid(gate), slope = share * (1 + gate * (1 - share));
    const C total = shared.g[s][x.seat], dy = cotangent(p, x.row, x.item, t);
    const R matched = REAL ? real_part(total) * real_part(dy) : real_part(mul(conj(total), dy));
    static_cast<SR*>(out.dz)[index] = Narrow<SR>::of(matched * slope);
  }
}

// The block's sums over channels, its warps in order.
__device__ __forceinline__ void put_sums(const Shared& shared, i64 first, int count, const Problem& p, const Spot& x, i64 block, C* to) {
#pragma unroll 1
  for (int index = threadIdx.x; index < count * 2 * WIDE; index += THREADS) {
    const int s = index / (2 * WIDE), which = index / WIDE % 2, n = index % WIDE;
    if (n >= STATES) continue;
    C sum = shared.sums[0][s][which * WIDE + n];
    for (int w = 1; w < WARPS; w++) sum = add(sum, shared.sums[w][s][which * WIDE + n]);
    to[((((block * p.rows + x.row) * p.length + first + s) * p.groups + x.group) * 2 + which) * STATES + n] = sum;
  }
}

// `flows` is the flow that enters each chunk from behind, or, if a row is one chunk, the cotangent of its final state.
extern "C" __global__ void __launch_bounds__(THREADS, sizeof(C) == 4 ? 512 / THREADS : 1)
run(const __grid_constant__ Problem p, const C* kept, const C* flows, const __grid_constant__ Gradients out) {
  __shared__ Shared shared;
  const i64 width = p.channels / p.groups, block = blockIdx.x % ((width + CHANNELS - 1) / CHANNELS);
  const Spot x = spot(p, blockIdx.x);
  const i64 slot = x.chunk * p.rows * p.channels + x.flat(p), records = (p.length + EVERY - 1) / EVERY;
  Flow f;
  take_eigenvalues(f.A, p, x);
  take(f.flow, flows + slot * STATES, p, x);
#pragma unroll
  for (int i = 0; i < PER; i++) f.dA[i] = Number<C>::make(0);
  f.skip = p.D ? reinterpret_cast<const C*>(p.D)[x.channel] : Number<C>::make(0);
  f.dD = Number<C>::make(0), f.dbias = 0;
  const R bias = p.bias ? reinterpret_cast<const R*>(p.bias)[x.item] : R(0);

#pragma unroll 1
  for (i64 base = (x.hi - 1) / EVERY * EVERY; base >= x.lo; base -= EVERY) {
    const int steps = static_cast<int>(x.hi - base < EVERY ? x.hi - base : EVERY), subs = (steps + SUB - 1) / SUB;
    load(shared, p, x, bias, base, steps);
    C h[PER], decays[SUB][PER], before[SUB][PER];
    take(h, kept + ((x.row * records + base / EVERY) * p.channels + x.channel) * STATES, p, x);
    __syncthreads();
#pragma unroll 1
    for (int j = 0; j < subs; j++) {
#pragma unroll
      for (int i = 0; i < PER; i++) shared.start[j][i][threadIdx.x] = h[i];
      if (j + 1 < subs) forward(h, f.A, shared, x, j * SUB, SUB, [](int, int, C, C) {});
    }
#pragma unroll 1
    for (int j = subs - 1; j >= 0; j--) {
      const int count = steps - j * SUB < SUB ? steps - j * SUB : SUB;
#pragma unroll
      for (int i = 0; i < PER; i++) h[i] = shared.start[j][i][threadIdx.x];
      forward(h, f.A, shared, x, j * SUB, count, [&](int s, int i, C a, C state) { decays[s][i] = a, before[s][i] = state; });
#pragma unroll
      for (int s = SUB - 1; s >= 0; s--)
        if (s < count) back(f, decays[s], before[s], j * SUB, s, x, shared);
      __syncthreads();
      put_sums(shared, base + j * SUB, count, p, x, block, out.vectors);
      __syncthreads();
    }
    store(shared, p, x, base, steps, out);
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
