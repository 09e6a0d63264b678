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

// Where a thread begins to read a row's sequence.
template <class T> __device__ __forceinline__ const T* begin(const Sequence& from, const Spot& x, i64 channel, i64 first) {
  return row_of<T>(from, x.row, channel) + first * from.time;
}

// Steps first, ..., first + count - 1: this thread's items, GROUP reads on their way at a time.
__device__ __forceinline__ void load(Shared& shared, const Problem& p, const Spot& x, R bias, i64 first, int count) {
  Vectors<EVERY> B, C_;
  B.template fetch<false>(begin<S>(p.B, x, x.group, first), p.B.time, p.B.state, count);
  C_.template fetch<false>(begin<S>(p.C, x, x.group, first), p.C.time, p.C.state, count);
  if (RESETS && threadIdx.x < count) shared.fresh[threadIdx.x] = begin<u8>(p.reset, x, 0, first)[threadIdx.x * p.reset.time];
#pragma unroll 1
  for (int at = 0; at < count; at += GROUP * LANES) {
    Word<SR> dts[GROUP], zs[GROUP];
    Word<S> us[GROUP];
    Word<Cotangent::type> dys[GROUP];
    const int left = count - at;
    read<false>(dts, begin<SR>(p.dt, x, x.item, first + at), p.dt.time, x.step, left);
    read<false>(us, begin<S>(p.u, x, x.item, first + at), p.u.time, x.step, left);
    read<false>(dys, begin<Cotangent::type>(p.dy, x, x.item, first + at), p.dy.time, x.step, left);
    if (GATED) read<false>(zs, begin<SR>(p.z, x, x.item, first + at), p.z.time, x.step, left);
#pragma unroll
    for (int j = 0; j < GROUP; j++) {
      const int s = at + x.step + j * LANES;
      if (EVERY % (GROUP * LANES) && s >= EVERY) break;
      const R v = widen(dts[j].number()) + bias, small = SOFTPLUS ? small_exponential(v) : R(0);
      const C dy = Cotangent::wide(dys[j].number());
      shared.delta[s][x.seat] = SOFTPLUS ? softplus(v, small) : v;
      if (SOFTPLUS) shared.slope[s][x.seat] = sigmoid(v, small);
      shared.u[s][x.seat] = widen(us[j].number());
      shared.g[s][x.seat] = GATED ? mul(silu(widen(zs[j].number())), dy) : dy;
    }
  }
  B.settle(shared.B);
  C_.settle(shared.C_);
}

// SUB steps forward, from step `first` of the tile on: the states before and after each, and the decays.
__device__ __forceinline__ void forward(C (&h)[SUB + 1][PER], C (&decays)[SUB][PER], const C (&A)[PER], const Shared& shared, const Spot& x, int first) {
#pragma unroll
  for (int s = 0; s < SUB; s++) {
    const R delta = shared.delta[first + s][x.slot];
    const C drive = mul(delta, shared.u[first + s][x.slot]);
    const bool fresh = RESETS && shared.fresh[first + s];
#pragma unroll
    for (int i = 0; i < PER; i++) {
      const C input = mul(drive, shared.B[first + s][x.state + i]);
      decays[s][i] = decay(delta, A[i]);
      h[s + 1][i] = fresh ? input : mul_add(decays[s][i], h[s][i], input);
    }
  }
}

typedef Halving<2 * PER, 32 / LANES, LANES> Channels;  // sums over a warp's channels of what B and C are owed

struct Flow {
  C flow[PER], A[PER], dA[PER], skip, dD;
  R dbias;
  C* sums;  // where this thread leaves its sums over channels, those of the first of SUB steps
  bool owner;
};

// Over the lanes of one channel.
template <class T> __device__ __forceinline__ T sum_lanes(T x) {
#pragma unroll
  for (int by = LANES / 2; by > 0; by /= 2) x = add(x, shuffle_xor(x, by));
  return x;
}

// Re(conj(x) y) + z.
__device__ __forceinline__ float real_mul_add(float x, float y, float z) { return mul_add(x, y, z); }
__device__ __forceinline__ double real_mul_add(double x, double y, double z) { return mul_add(x, y, z); }
template <class T> __device__ __forceinline__ T real_mul_add(complex<T> x, complex<T> y, T z) {
  return mul_add(x.re, y.re, mul_add(x.im, y.im, z));
}

// Step s of the SUB that begin with step `first` of the tile, backwards: the note in ops/selective_scan.py has the terms.
__device__ __forceinline__ void back(Flow& f, const C (&decays)[PER], const C (&before)[PER], const C (&after)[PER], int first, int s, const Spot& x, Shared& shared) {
  const int at = first + s;
  const R delta = shared.delta[at][x.slot], slope = SOFTPLUS ? shared.slope[at][x.slot] : R(1);
  const bool fresh = RESETS && shared.fresh[at];
  const C zero = Number<C>::make(0), u = shared.u[at][x.slot], g = shared.g[at][x.slot];
  const C drive = x.mine ? mul(delta, u) : zero, share = x.mine ? g : zero;  // the last channel counts once
  C dx = zero, total = zero, sums[2 * PER];
  R ddelta = 0;
#pragma unroll
  for (int i = 0; i < PER; i++) {
    if (!live(x, i)) {
      sums[i] = sums[PER + i] = zero;
      continue;
    }
    const C B = shared.B[at][x.state + i], vector = shared.C_[at][x.state + i];
    const C grad = mul_add(conj(vector), g, f.flow[i]);
    f.flow[i] = fresh ? zero : mul(conj(decays[i]), grad);
    const C past = fresh ? zero : mul(conj(before[i]), f.flow[i]);
    if (GATED) total = mul_add(vector, after[i], total);
    dx = mul_add(conj(B), grad, dx);
    f.dA[i] = mul_add(delta, past, f.dA[i]);
    ddelta = real_mul_add(f.A[i], past, ddelta);
    sums[i] = mul(conj(drive), grad);
    sums[PER + i] = mul(conj(after[i]), share);
  }
  Channels::sum(sums);
#pragma unroll
  for (int i = 0; i < Channels::LEFT; i++)
    if (f.owner) f.sums[s * 2 * WIDE + (Channels::LEFT > PER && i >= PER ? WIDE - PER : 0) + i] = sums[i];
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
  const SR* z = begin<SR>(p.z, x, x.item, first + x.step);
  i64 index = (x.row * p.length + first + x.step) * p.channels + x.item;
#pragma unroll 4
  for (int s = x.step; s < count; s += LANES, index += LANES * p.channels, z += LANES * p.z.time) {
    static_cast<S*>(out.du)[index] = Narrow<S>::of(shared.u[s][x.seat]);
    static_cast<SR*>(out.ddt)[index] = Narrow<SR>::of(shared.delta[s][x.seat]);
    if (!GATED) continue;
    const R gate = widen(*z), share = sigmoid(gate, small_exponential(gate)), slope = share * (1 + gate * (1 - share));
    const C total = shared.g[s][x.seat], dy = cotangent(p, x.row, x.item, first + s);
    const R matched = REAL ? real_part(total) * real_part(dy) : real_part(mul(conj(total), dy));
    static_cast<SR*>(out.dz)[index] = Narrow<SR>::of(matched * slope);
  }
}

// The block's sums over channels, its warps in order; step 0 of the SUB goes to `to`.
__device__ __forceinline__ void put_sums(const Shared& shared, int count, C* to, i64 time) {
#pragma unroll
  for (int j = 0; j < SUB * 2 * WIDE; j += THREADS) {  // powers of two: an index is the sum of its parts
    const int s = j / (2 * WIDE) + threadIdx.x / (2 * WIDE), at = (j + threadIdx.x) % (2 * WIDE), n = at % WIDE;
    if (s >= count || PADDED && n >= STATES) continue;
    C sum = shared.sums[0][s][at];
#pragma unroll
    for (int w = 1; w < WARPS; w++) sum = add(sum, shared.sums[w][s][at]);
    to[s * time + (at / WIDE) * STATES + n] = sum;
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
  const Channels held;
  f.owner = held.owner;
  f.sums = &shared.sums[threadIdx.x / 32][0][held.from % PER + (held.from < PER ? 0 : WIDE) + x.state];
  const i64 time = 2 * STATES * p.groups;  // from step to step in out.vectors
  const R bias = p.bias ? reinterpret_cast<const R*>(p.bias)[x.item] : R(0);

#pragma unroll 1
  for (i64 base = (x.hi - 1) / EVERY * EVERY; base >= x.lo; base -= EVERY) {
    const int steps = static_cast<int>(x.hi - base < EVERY ? x.hi - base : EVERY), subs = (steps + SUB - 1) / SUB;
    load(shared, p, x, bias, base, steps);
    C h[SUB + 1][PER], decays[SUB][PER];
    take(h[SUB], kept + ((x.row * records + base / EVERY) * p.channels + x.channel) * STATES, p, x);
    C* sums = out.vectors + (((block * p.rows + x.row) * p.length + base) * p.groups + x.group) * 2 * STATES;
    __syncthreads();
#pragma unroll 1
    for (int j = 0; j < subs; j++) {
#pragma unroll
      for (int i = 0; i < PER; i++) h[0][i] = shared.start[j][i][threadIdx.x] = h[SUB][i];
      if (j + 1 < subs) forward(h, decays, f.A, shared, x, j * SUB);
    }
#pragma unroll 1
    for (int j = subs - 1; j >= 0; j--) {
      const int count = steps - j * SUB < SUB ? steps - j * SUB : SUB;
#pragma unroll
      for (int i = 0; i < PER; i++) h[0][i] = shared.start[j][i][threadIdx.x];
      forward(h, decays, f.A, shared, x, j * SUB);
#pragma unroll
      for (int s = SUB - 1; s >= 0; s--)
        if (s < count) back(f, decays[s], h[s], h[s + 1], j * SUB, s, x, shared);
      __syncthreads();
      put_sums(shared, count, sums + j * SUB * time, time);
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
