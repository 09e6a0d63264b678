// S[t] = e^g[t] S[t-1] + k[t] v[t]^T,  o[t] = scale S[t]^T q[t], 16-bit arrays, one decay a step, on tensor cores.
//
// A block owns SLICE value columns of one head and walks the head's chunks of 64 steps, the state in float32 registers:
//   O = e^W (Q S) + P V,   P[t, s] = q[t] k[s] e^(W[t] - W[s]) for s <= t,   S' = e^W[63] S + (e^(W[63] - W) K)^T V,
// W being sums of g from the chunk's start, or from the last step that forgets what was before it. Rows t are shared out
// between four warps for O, and rows of S for S', or between four pairs that share out the columns. What products take in is
// rounded to 16 bits, sums are float32. The next chunk's arrays come while one is worked on.
//
// Long sequences are cut into segments: `reduce` makes each one's state from zero, `carry` hands the state on, `run` goes
// again from the true one. Whether a sequence is cut follows from its length alone, and so do its bits.
//
// The pullback is three such passes: dq = F(do, v, k) as o = F(q, k, v), and, backwards in time with every decay one step
// later, dv = F(k, q, do) and dk = F(v, do, q), whose state is the gradient of S. The forward keeps the states between
// chunks, the second of them multiplies its own with those, and outputs are multiplied with q and k: of these sums dg is made
// in attention_gates.cu. Chunks begin at the same steps in both directions: backwards the first has `head` steps.
//
// Bytes moved: v, o once, q, k and g once for each slice of the values; k, v and g once more if cut.
// Limits: keys to 256, any number of values and steps.
#ifndef STORAGE  // the launcher's macros, as the tests compile them
#define STORAGE bfloat16
#define KEYS 128
#define SLICE 64
#define DECAYS 1
#define PACKED 1
#define KEPT 0
#define MATED 0
#endif
#include "attention_chunk.cuh"

__device__ __forceinline__ void put(State& state, float* to, int keys, i64 values, int width) {
  each(state, threadIdx.x & 31, [=](int key, int c, float& x) {
    if (key < keys && c < width) to[key * values + c] = x;
  });
}

// The same, of the state as it lies in shared memory, in 16 bits.
__device__ __forceinline__ void put(const Shared& shared, S* to, int keys, i64 values, int width) {
  constexpr int PACK = PACKED ? 16 / sizeof(S) : 1;
  struct alignas(PACK * sizeof(S)) Pack { S item[PACK]; };
  for (int i = threadIdx.x; i < KEYS * (SLICE / PACK); i += THREADS) {
    const int key = i / (SLICE / PACK), c = i % (SLICE / PACK) * PACK;
    if (key < keys && c < width) *reinterpret_cast<Pack*>(to + key * values + c) = *reinterpret_cast<const Pack*>(&shared.state[key][c]);
  }
}

// Mates of the outputs of this lane; zeros outside.
typedef Both Mates[COLUMNS][2];
__device__ __forceinline__ void mates(Mates& to, const Layout& layout, const Spot& x, const Place& place, i64 t, int count,
                                      const Extras& extras, int lane) {
#pragma unroll
  for (int n = 0; n < COLUMNS; n++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int step = 16 * quarter() + lane / 4 + 8 * half, c = first_column() + 8 * n + lane % 4 * 2;
      const S* from = extras.mate + place.at[MATE] + x.column + (t + step) * layout.operand[MATE].time;
      to[n][half] = step < count ? two(from + c, c, x.width) : Both{};
    }
}

// The sums over this slice's values of the outputs times their mates.
__device__ __forceinline__ void multiply(const float (&out)[COLUMNS][4], const Mates& mates, const Layout& layout, const Spot& x,
                                         i64 t, int count, const Extras& extras, float scale, int lane) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int step = 16 * quarter() + lane / 4 + 8 * half;
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < COLUMNS; n++) {
      sum = __fmaf_rn(out[n][2 * half], low(mates[n][half], S()), sum);
      sum = __fmaf_rn(out[n][2 * half + 1], high(mates[n][half], S()), sum);
    }
    sum += shuffle_xor(sum, 1), sum += shuffle_xor(sum, 2);
    const i64 slice = SHARES * x.slice + share();
    if (lane % 4 == 0 && step < count) extras.sums[(slice * layout.rows + x.row) * layout.length + t + step] = scale * sum;
  }
}

// Through the segment; returns the product of its decays, zero if it forgets. Without OUT only the state is made, and one
// barrier a chunk is enough.
template <bool OUT>
__device__ __forceinline__ float through(State& state, Shared& shared, const Layout& layout, const Spot& x, const S* q, const S* k,
                                         const S* v, const float* g, S* o, int keys, i64 values, float scale,
                                         const Extras& extras) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  const Place place = locate(layout, x.row);
  const i64 step_k = layout.operand[K].time, step_v = layout.operand[V].time, step_g = layout.operand[G].time;
  k += place.at[K], v += place.at[V] + x.column, g += DECAYS ? place.at[G] : 0;
  const i64 step_o = extras.backwards ? -values : values;
  if (OUT) q += place.at[Q], o += (x.row * layout.length + (extras.backwards ? layout.length - 1 : 0)) * values + x.column;
  float decay = 1.0f, ahead[2];
  const i64 chunks = (layout.length + STEPS - 1) / STEPS;
  const auto bring = [&](Stage& stage, i64 t, i64 end) {
    const int count = static_cast<int>(end - t);
    if (OUT) fetch<KEYS>(shared.q[turn(shared, stage)], q + t * layout.operand[Q].time, layout.operand[Q].time, 0, count, keys, STEPS);
    fetch<KEYS>(stage.k, k + t * step_k, step_k, 0, count, keys, STEPS);
    fetch<SLICE>(stage.v, v + t * step_v, step_v, 0, count, x.width, STEPS);
    commit();
    const int late = static_cast<int>(extras.backwards);
    if (warp == IDLE) logarithms(ahead, g + (t - late) * step_g, step_g, t ? 0 : late, count, lane);
  };
  i64 chunk = x.lo ? (x.lo - extras.head) / STEPS + 1 : 0, next = begin(chunk + 1, extras.head, layout.length);
  bring(shared.stage[chunk % 2], x.lo, next);
  const auto prepare = [&](i64 chunk) {
    if (warp == IDLE) gates(shared.gates[chunk % 2], ahead, lane);
  };
  prepare(chunk);
#pragma unroll 1
  for (i64 t = x.lo; t < x.hi; t = next, chunk++) {
    Stage& stage = shared.stage[chunk % 2];
    const Gates& gate = shared.gates[chunk % 2];
    next = begin(chunk + 1, extras.head, layout.length);
    const int count = static_cast<int>(next - t);
    if (OUT)
      each_pair(state, lane, [&](int key, int c, float y, float z) { *reinterpret_cast<Both*>(&shared.state[key][c]) = pair<S>(y, z); });
    if (!OUT) arrived<0>(), __syncthreads();
    if (next < x.hi) bring(shared.stage[(chunk + 1) % 2], next, begin(chunk + 2, extras.head, layout.length));
    if (OUT && next < x.hi) arrived<1>();
    else if (OUT) arrived<0>();
    if (OUT) __syncthreads();
    decay *= since_start(gate, STEPS - 1);
    if (OUT && KEPT == WRITE) put(shared, extras.kept + (x.row * chunks + chunk) * keys * values + x.column, keys, values, x.width);
    float out[COLUMNS][4] = {};
    Mates others;
    if (OUT) outputs(out, shared, stage, gate, lane);
    if (OUT && MATED) mates(others, layout, x, place, t, count, extras, lane);
    if (OUT && MATED) multiply(out, others, layout, x, t, count, extras, scale, lane);
    if (OUT)
#pragma unroll
      for (int n = 0; n < COLUMNS; n++) write(o + t * step_o, step_o, out[n], 16 * quarter(), first_column() + 8 * n, count, x.width, lane, scale);
    advance(state, gate, stage, lane);
    if (next < x.hi) prepare(chunk + 1);
    if (OUT && KEPT == MULTIPLY) {  // forwards, this chunk is the one that many from the end
      const S* other = extras.kept + (x.row * chunks + chunks - 1 - chunk) * keys * values + x.column;
      float sum = 0.0f;
      each_pair(state, lane, [&](int key, int c, float y, float z) {
        const Both both = key < keys ? two(other + key * values + c, c, x.width) : Both{};
        sum = __fmaf_rn(y, low(both, S()), sum), sum = __fmaf_rn(z, high(both, S()), sum);
      });
#pragma unroll
      for (int by = 16; by > 0; by /= 2) sum += shuffle_xor(sum, by);
      if (lane == 0) shared.part[warp] = sum;
    }
    if (OUT) __syncthreads();
    if (OUT && KEPT == MULTIPLY && threadIdx.x == 0) {
      float sum = 0.0f;
      for (int w = 0; w < WARPS; w++) sum += shared.part[w];
      extras.dots[(x.slice * layout.rows + x.row) * chunks + chunk] = sum;
    }
  }
  return decay;
}

// What a segment makes of a state of zero, and the product of its decays. Needing no queries, twice as many blocks fit.
extern "C" __global__ void __launch_bounds__(THREADS, 2 * BLOCKS)
reduce(const __grid_constant__ Layout layout, const S* k, const S* v, const float* g, float* ends, float* decays, int keys,
       i64 values, i64 segment, const __grid_constant__ Extras extras) {
  extern __shared__ __align__(16) u8 memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const Spot x = spot(layout, values, segment, extras.head);
  const i64 slot = x.segment * layout.rows + x.row;
  State state;
  each(state, 0, [](int, int, float& y) { y = 0.0f; });
  const float decay = through<false>(state, shared, layout, x, nullptr, k, v, g, nullptr, keys, values, 1.0f, extras);
  put(state, ends + slot * keys * values + x.column, keys, values, x.width);
  if (threadIdx.x == 0 && x.column == 0) decays[slot] = decay;
}

// `starts` is what enters each segment; without it a row is one segment, which begins with `first`.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
run(const __grid_constant__ Layout layout, const S* q, const S* k, const S* v, const float* g, const float* first,
    const float* starts, S* o, float* last, int keys, i64 values, float scale, i64 segment, const __grid_constant__ Extras extras) {
  extern __shared__ __align__(16) u8 memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const Spot x = spot(layout, values, segment, extras.head);
  const float* from = starts ? starts + (x.segment * layout.rows + x.row) * keys * values
                             : first ? first + locate(layout, x.row).at[STATE] : nullptr;
  State state;
  each(state, threadIdx.x & 31, [=](int key, int c, float& y) {
    y = from && key < keys && c < x.width ? from[key * values + x.column + c] : 0.0f;
  });
  through<true>(state, shared, layout, x, q, k, v, g, o, keys, values, scale, extras);
  if (x.hi < layout.length) return;
  if (extras.backwards) {  // the first step's decay is left
    const float first_decay = DECAYS ? __expf(g[locate(layout, x.row).at[G] + (layout.length - 1) * layout.operand[G].time]) : 1.0f;
    each(state, threadIdx.x & 31, [=](int, int, float& y) { y = first_decay == 0.0f ? 0.0f : first_decay * (scale * y); });
  }
  put(state, last + x.row * keys * values + x.column, keys, values, x.width);
}
