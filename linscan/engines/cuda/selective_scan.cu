// h[t] = exp(Δ[t] A) h[t-1] + Δ[t] u[t] B[t],  y[t] = (C[t] h[t] + D u[t]) silu(z[t]),  N states to each channel.
//
// A thread runs its channel's states through time, in registers; what comes next is read while this is computed. Long
// rows are cut into chunks of time: `reduce` runs each from zero, `carry` hands the state from chunk to chunk, `run` runs
// each again from its true start. Whether a row is cut follows from its length alone, and so do its bits.
//
// Bytes moved: u, dt, z, y once (twice but for y and z if cut); B and C once for every block of channels.
// The exponentials, T D N of them, are the floor: a multiprocessor makes 16 of them in a cycle.
// Limits: 32 PER states of a channel, below 2^31 blocks.
#ifndef STORAGE  // the launcher's macros, as the tests compile them
#define STORAGE float
#define STATES 16
#define PER 8
#define LANES 2
#define THREADS 128
#define EVERY 32
#define SOFTPLUS 1
#define GATED 1
#define RESETS 1
#define REAL 1
#define BACKWARD 0
#define SOME 1
#define ALL_STATES 2
#define KEEP 1
#endif
#include "selective.cuh"

constexpr int STEPS = 8;
// Blocks that shall fit: the fewer, the further ahead of their use are exponentials and reads, which counts where warps
// are few. What a gate or resets keep on their way from memory takes registers, too.
constexpr int RESIDENT = sizeof(C) > 4 ? 1 : (PER > 8 && (GATED || RESETS) ? 384 : 512) / THREADS;

// What drives a channel's states in one step: Δ and Δ u; for the pullback's flow Δ and dy silu(z).
struct alignas(sizeof(C) < 16 ? 2 * sizeof(C) : 16) Item { R delta; C input; };

// STEPS steps as the states need them.
struct alignas(16) Tile {
  C B[STEPS][WIDE], C_[STEPS][WIDE], u[STEPS][CHANNELS];
  Item item[STEPS][CHANNELS];
  R gate[GATED ? STEPS : 1][CHANNELS];
  bool fresh[STEPS];
};

// The next tile on its way from memory. With PULL it is the pullback's flow that runs, backwards in time and driven by
// dy silu(z).
template <bool PULL, bool OUT> struct Feed {
  static constexpr int ITEMS = (STEPS + LANES - 1) / LANES;
  static constexpr bool GATE = GATED && (PULL || OUT);
  typedef Drive<PULL && REAL> D;
  Word<SR> dt[ITEMS], z[ITEMS];
  Word<typename D::type> drive[ITEMS];
  Vectors<STEPS> B, C_;
  bool fresh;
  const SR *dt_at, *z_at;  // the next tile's first step
  const typename D::type* drive_at;
  const S *B_at, *C_at;
  const u8* fresh_at;

  template <class T> static __device__ __forceinline__ const T* begin(const Sequence& from, const Spot& x, i64 channel) {
    return row_of<T>(from, x.row, channel) + (PULL ? x.hi - 1 : x.lo) * from.time;
  }
  static __device__ __forceinline__ i64 stride(const Sequence& from) { return PULL ? -from.time : from.time; }

  __device__ __forceinline__ Feed(const Problem& p, const Spot& x)
      : dt_at(begin<SR>(p.dt, x, x.item)), z_at(GATE ? begin<SR>(p.z, x, x.item) : 0),
        drive_at(begin<typename D::type>(PULL ? p.dy : p.u, x, x.item)), B_at(begin<S>(p.B, x, x.group)),
        C_at(begin<S>(p.C, x, x.group)), fresh_at(RESETS ? begin<u8>(p.reset, x, 0) : 0) {}

  // `left` steps remain; the last tile may be shorter than the others.
  __device__ __forceinline__ void fetch(const Problem& p, const Spot& x, i64 left) {
    if (left >= STEPS) fetch<LANES <= STEPS>(p, x, STEPS);
    else fetch<false>(p, x, static_cast<int>(left));
  }
  template <bool FULL> __device__ __forceinline__ void fetch(const Problem& p, const Spot& x, int left) {
    const Sequence& from = PULL ? p.dy : p.u;
    read<FULL>(dt, dt_at, stride(p.dt), x.step, left), dt_at += STEPS * stride(p.dt);
    read<FULL>(drive, drive_at, stride(from), x.step, left), drive_at += STEPS * stride(from);
    if (GATE) read<FULL>(z, z_at, stride(p.z), x.step, left), z_at += STEPS * stride(p.z);
    if (RESETS) {
      if (threadIdx.x < left) fresh = fresh_at[threadIdx.x * stride(p.reset)];
      fresh_at += STEPS * stride(p.reset);
    }
    if (PULL || OUT) C_.template fetch<FULL>(C_at, stride(p.C), p.C.state, left), C_at += STEPS * stride(p.C);
    if (!PULL) B.template fetch<FULL>(B_at, stride(p.B), p.B.state, left), B_at += STEPS * stride(p.B);
  }

  __device__ __forceinline__ void settle(Tile& tile, const Spot& x, R bias) const {
#pragma unroll
    for (int j = 0; j < ITEMS; j++) {
      const int s = x.step + j * LANES;
      if (STEPS % LANES && s >= STEPS) break;
      const R delta = step_size(dt[j].number(), bias), gate = GATE ? silu(widen(z[j].number())) : R(0);
      const C driven = D::wide(drive[j].number());
      tile.item[s][x.seat] = {delta, !PULL ? mul(delta, driven) : GATED ? mul(gate, driven) : driven};
      if (PULL || !OUT) continue;
      tile.u[s][x.seat] = driven;
      if (GATED) tile.gate[s][x.seat] = gate;
    }
    if (RESETS && threadIdx.x < STEPS) tile.fresh[threadIdx.x] = fresh;
    if (PULL || OUT) C_.settle(tile.C_);
    if (!PULL) B.settle(tile.B);
  }
};

struct Results {
  void* y;
  C *kept, *last;
};

// One step of this thread's states.
template <bool PULL>
__device__ __forceinline__ void advance(C (&h)[PER], const C (&A)[PER], const C* vector, R delta, C x, bool fresh) {
#pragma unroll
  for (int i = 0; i < PER; i++) {
    const C a = decay(delta, A[i]);
    if (PULL) {
      const C next = mul(conj(a), add(h[i], mul(conj(vector[i]), x)));
      h[i] = RESETS && fresh ? Number<C>::make(0) : next;
    } else {
      const C input = mul(x, vector[i]);
      h[i] = RESETS && fresh ? input : mul_add(a, h[i], input);
    }
  }
}

__device__ __forceinline__ void put_output(void* y, i64 index, C s) {
  if (REAL) static_cast<SR*>(y)[index] = Narrow<SR>::of(real_part(s));
  else static_cast<S*>(y)[index] = Narrow<S>::of(s);
}

// A chunk on its way: the states, and what of its past the carry has to know.
struct Walker {
  C h[PER], A[PER], skip;
  R sum;
  bool cut;
  i64 index;  // in the output, of the tile's first step
};

typedef Halving<STEPS, LANES, 1> Totals;  // C·h of all steps, of which a lane is left with some

template <bool PULL, bool OUT, bool FULL>
__device__ __forceinline__ void steps(Walker& w, const Tile& tile, int count, const Problem& p, const Spot& x, const Results& out) {
  C totals[STEPS];
#pragma unroll
  for (int s = 0; s < STEPS; s++) {
    totals[s] = Number<C>::make(0);
    if (!FULL && s >= count) continue;
    const Item item = tile.item[s][x.slot];
    const bool fresh = RESETS && tile.fresh[s];
    advance<PULL>(w.h, w.A, (PULL ? tile.C_[s] : tile.B[s]) + x.state, item.delta, item.input, fresh);
    if (!OUT) w.sum += item.delta, w.cut = w.cut || fresh;
    else if (KEEP == ALL_STATES) give(out.kept + (w.index + s * p.channels) * STATES, w.h, p, x);
#pragma unroll
    for (int i = 0; i < PER; i++)
      if (OUT && live(x, i)) totals[s] = mul_add(tile.C_[s][x.state + i], w.h[i], totals[s]);
  }
  if (!OUT) return;
  const Totals mine;
  Totals::sum(totals);
  i64 index = w.index + mine.from * p.channels;
#pragma unroll
  for (int j = 0; j < Totals::LEFT; j++, index += p.channels) {
    const int s = mine.from + j;
    const C total = mul_add(w.skip, tile.u[s][x.slot], totals[j]);
    if (x.mine && mine.owner && (FULL || s < count)) put_output(out.y, index, GATED ? mul(tile.gate[s][x.slot], total) : total);
  }
}

// Through the chunk, what comes next being read while this is computed.
template <bool PULL, bool OUT>
__device__ __forceinline__ void through(Walker& w, const Problem& p, const Spot& x, const Results& out, Tile (&tiles)[2]) {
  take_eigenvalues(w.A, p, x);
  w.skip = OUT && p.D ? reinterpret_cast<const C*>(p.D)[x.channel] : Number<C>::make(0);
  w.sum = 0, w.cut = false, w.index = (x.row * p.length + x.lo) * p.channels + x.channel;
  const R bias = p.bias ? reinterpret_cast<const R*>(p.bias)[x.item] : R(0);
  C* kept = OUT && KEEP == SOME ? out.kept + ((x.row * ((p.length + EVERY - 1) / EVERY) + x.lo / EVERY) * p.channels + x.channel) * STATES : 0;
  Feed<PULL, OUT> feed(p, x);
  i64 left = x.hi - x.lo;
  feed.fetch(p, x, left);
  feed.settle(tiles[0], x, bias);
  __syncthreads();
#pragma unroll 1
  for (int turn = 0; left > 0; turn++) {
    const Tile& tile = tiles[turn & 1];
    const int count = static_cast<int>(left < STEPS ? left : STEPS);
    left -= count;
    if (left) feed.fetch(p, x, left);
    if (OUT && KEEP == SOME && turn % (EVERY / STEPS) == 0) give(kept, w.h, p, x), kept += p.channels * STATES;
    if (count == STEPS) steps<PULL, OUT, true>(w, tile, STEPS, p, x, out);
    else steps<PULL, OUT, false>(w, tile, count, p, x, out);
    w.index += STEPS * p.channels;
    if (left) feed.settle(tiles[~turn & 1], x, bias);
    __syncthreads();
  }
}

// What a chunk leaves that began with zero, the sum of its step sizes, and whether it forgot what came before; not of
// the last chunk in the scan's direction.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
reduce(const __grid_constant__ Problem p, C* ends, R* sums, u8* cuts) {
  __shared__ Tile shared[2];
  const Spot x = spot(p, blockIdx.x + (BACKWARD ? gridDim.x / (p.chunks - 1) : 0));
  Walker w;
#pragma unroll
  for (int i = 0; i < PER; i++) w.h[i] = Number<C>::make(0);
  through<BACKWARD, false>(w, p, x, Results(), shared);
  const i64 slot = x.chunk * p.rows * p.channels + x.flat(p);
  give(ends + slot * STATES, w.h, p, x);
  if (x.mine && x.state == 0) sums[slot] = w.sum, cuts[slot] = w.cut;
}

// Through the chunk step by step: what the plain loop makes of this state.
__device__ __noinline__ C walk(const Problem& p, i64 row, i64 chunk, i64 channel, i64 n, C h) {
  const i64 lo = chunk * p.chunk, hi = lo + p.chunk < p.length ? lo + p.chunk : p.length;
  const C A = eigenvalue(reinterpret_cast<const C*>(p.A)[channel * STATES + n]);
  const R bias = p.bias ? reinterpret_cast<const R*>(p.bias)[channel] : R(0);
  const Sequence& vectors = BACKWARD ? p.C : p.B;
  const S* vector = row_of<S>(vectors, row, channel / (p.channels / p.groups));
#pragma unroll 1
  for (i64 s = 0; s < hi - lo; s++) {
    const i64 t = BACKWARD ? hi - 1 - s : lo + s;
    const R delta = step_size(row_of<SR>(p.dt, row, channel)[t * p.dt.time], bias);
    const bool fresh = RESETS && row_of<u8>(p.reset, row, 0)[t * p.reset.time];
    const C v = widen(vector[t * vectors.time + n * vectors.state]), a = decay(delta, A);
    if (BACKWARD) {
      const C dy = cotangent(p, row, channel, t);
      const R z = GATED ? widen(row_of<SR>(p.z, row, channel)[t * p.z.time]) : R(0);
      const C next = mul(conj(a), add(h, mul(conj(v), GATED ? mul(silu(z), dy) : dy)));
      h = fresh ? Number<C>::make(0) : next;
    } else {
      const C input = mul(mul(delta, widen(row_of<S>(p.u, row, channel)[t * p.u.time])), v);
      h = fresh ? input : mul_add(a, h, input);
    }
  }
  return h;
}

// From chunk to chunk, one thread to a state: `ends` becomes what enters each chunk. Where a chunk's decay is no tame
// number, or the states are not finite, the chunk is walked.
extern "C" __global__ void carry(const __grid_constant__ Problem p, C* ends, const R* sums, const u8* cuts, const C* first) {
  const i64 all = p.rows * p.channels * STATES, index = blockIdx.x * i64(blockDim.x) + threadIdx.x;
  if (index >= all) return;
  const i64 flat = index / STATES, n = index % STATES, channel = flat % p.channels, row = flat / p.channels;
  const C A = eigenvalue(reinterpret_cast<const C*>(p.A)[channel * STATES + n]);
  C h = first ? first[index] : Number<C>::make(0);
  for (i64 k = 0; k < p.chunks; k++) {
    const i64 chunk = BACKWARD ? p.chunks - 1 - k : k, slot = chunk * p.rows * p.channels + flat;
    const C end = ends[slot * STATES + n];
    ends[slot * STATES + n] = h;
    if (k + 1 == p.chunks) break;  // `end`: nobody's
    C a = decay(sums[slot], A);
    if (BACKWARD) a = conj(a);
    if (RESETS && cuts[slot]) h = end;
    else if (is_tame(a) && is_finite(h) && is_finite(end)) h = mul_add(a, h, end);
    else h = walk(p, row, chunk, channel, n, h);
  }
}

// `starts` is what enters each chunk; without it a row is one chunk that starts with h0.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
run(const __grid_constant__ Problem p, const C* starts, void* y, C* kept, C* last) {
  __shared__ Tile shared[2];
  const Spot x = spot(p, blockIdx.x);
  Walker w;
#pragma unroll
  for (int i = 0; i < PER; i++) w.h[i] = Number<C>::make(0);
  if (starts) take(w.h, starts + (x.chunk * p.rows * p.channels + x.flat(p)) * STATES, p, x);
  else if (p.h0) take(w.h, reinterpret_cast<const C*>(p.h0) + x.flat(p) * STATES, p, x);
  through<false, true>(w, p, x, {y, kept, last}, shared);
  if (x.hi == p.length) give(last + x.flat(p) * STATES, w.h, p, x);
}
