// S[t] = e^g[t] S[t-1] + k[t] v[t]^T,  o[t] = scale S[t]^T q[t], float32 arrays, one decay a step, on tensor cores.
//
// What linear_attention.cu does for 16-bit arrays, pass by pass and chunk by chunk. Numbers are sums of two float16 numbers
// (split.cuh), each product three of tensor cores, so results are as exact as float32 arithmetic's, or, PRODUCTS = 1, the first
// alone. Queries and keys are split once, in shared memory, values by the one warp that multiplies with them; a row of 16 scores
// is split as it is made. The state stays in registers, transposed: a warp owns 16 columns of it and all keys, which makes the
// state of one product the factor of another. Tensor cores cut sums off instead of rounding them, so none is longer than a
// chunk, or the keys.
//
// Bytes moved: q, k, v, o and g once, k, v and g once more if cut. Limits: keys and values to 128, any number of steps.
#ifndef STORAGE  // the launcher's macros, as the tests compile them
#define STORAGE float
#define KEYS 128
#define SLICE 128
#define DECAYS 1
#define PACKED 1
#define KEPT 0
#define MATED 0
#endif
#include "single_scores.cuh"
#include "attention_flow.cuh"

constexpr int IDLE = WARPS - 1;  // the warp with the least to do makes the next chunk's gates

// Outputs times their mates, summed over this warp's columns.
__device__ __forceinline__ void multiply(Outputs& out, const S* mate, i64 time, float* sums, int count, int width, float scale,
                                         int lane) {
  float sum[STEPS / 8][2] = {};
  int n = 0;
  each(out, mate, time, count, width, [&](float x, const S* mate, bool inside) {
    if (inside) sum[n / 4][n % 2] = __fmaf_rn(x, *mate, sum[n / 4][n % 2]);
    n++;
  });
#pragma unroll
  for (int n = 0; n < STEPS / 8; n++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
      for (int by = 4; by < 32; by *= 2) sum[n][i] += shuffle_xor(sum[n][i], by);
      const int step = 8 * n + lane % 4 * 2 + i;
      if (lane < 4 && step < count) sums[step] = scale * sum[n][i];
    }
}

// A block has all the columns.
__device__ __forceinline__ Spot place_of(const Layout& layout, i64 values, i64 segment, i64 head) {
  Spot x = spot(layout, SLICE, segment, head);
  x.width = static_cast<int>(values);
  return x;
}

// What will be read at the chunk's end.
__device__ __forceinline__ void prefetch_rows(const S* from, i64 time, int count, int width) {
  constexpr int LINE = 32;
  for (int i = threadIdx.x; i < count * (SLICE / LINE); i += THREADS) {
    const int step = i / (SLICE / LINE), c = i % (SLICE / LINE) * LINE;
    if (c < width) prefetch(from + step * time + c);
  }
}

// Through the segment; returns the product of its decays, zero if it forgets. Without OUT only the state is made.
template <bool OUT>
__device__ __forceinline__ float through(State& state, Shared& shared, const Layout& layout, const Spot& x, const S* q, const S* k,
                                         const S* v, const float* g, S* o, int keys, i64 values, float scale,
                                         const Extras& extras) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  const Place& place = shared.place;  // there, not in registers, of which there are too few
  if (!threadIdx.x) shared.place = locate(layout, x.row);
  __syncthreads();
  const i64 step_q = layout.operand[Q].time, step_k = layout.operand[K].time, step_v = layout.operand[V].time;
  const i64 step_g = layout.operand[G].time, step_o = extras.backwards ? -values : values;
  if (OUT) o += (x.row * layout.length + (extras.backwards ? layout.length - 1 : 0)) * values;
  float decay = 1.0f, ahead[2];
  const i64 chunks = (layout.length + STEPS - 1) / STEPS;
  const auto bring = [&](i64 chunk, i64 t, i64 end) {
    const int count = static_cast<int>(end - t), late = static_cast<int>(extras.backwards);
    if (OUT) fetch<KEYS>(shared.q, q + place.at[Q] + t * step_q, step_q, 0, count, keys, STEPS);
    fetch<KEYS>(shared.k, k + place.at[K] + t * step_k, step_k, 0, count, keys, STEPS);
    fetch<SLICE>(shared.v[chunk % 2], v + place.at[V] + t * step_v, step_v, 0, count, x.width, STEPS);
    commit();
    if (warp == IDLE) logarithms(ahead, g + place.at[G] + (t - late) * step_g, step_g, t ? 0 : late, count, lane);
  };
  bool grows = false;
  const auto prepare = [&](i64 chunk) {
    if (warp != IDLE) return;
    gates(shared.gates[chunk % 2], ahead, lane);
    grows = DECAYS && !(ahead[0] <= 1.0f && ahead[1] <= 1.0f);
  };
  i64 chunk = x.lo ? (x.lo - extras.head) / STEPS + 1 : 0, next = begin(chunk + 1, extras.head, layout.length);
  bring(chunk, x.lo, next), prepare(chunk);
#pragma unroll 1
  for (i64 t = x.lo; t < x.hi; t = next, chunk++) {
    const Gates& gate = shared.gates[chunk % 2];
    Values& here = shared.v[chunk % 2];
    next = begin(chunk + 1, extras.head, layout.length);
    const int count = static_cast<int>(next - t);
    arrived<0>();
    __syncthreads();
    decay *= since_start(gate, STEPS - 1);
    if (OUT && KEPT == WRITE) put(state, extras.kept + (x.row * chunks + chunk) * keys * values, keys, values, x.width);
    Outputs out = {};
    float units_of_state[2];
    const float none[PASSES] = {};
    bool wild = halve<OUT>(shared, here, gate, none, lane) || grows;
    if (OUT) wild |= units(units_of_state, state);
    wild = __syncthreads_or(wild);
    if (next < x.hi) bring(chunk + 1, next, begin(chunk + 2, extras.head, layout.length));
    const i64 step_mate = layout.operand[MATE].time;
    const S* mate = MATED ? extras.mate + place.at[MATE] + t * step_mate : nullptr;
    // Forwards, this chunk is the one that many from the end.
    const S* other = KEPT == MULTIPLY ? extras.kept + (x.row * chunks + chunks - 1 - chunk) * keys * values : nullptr;
    if (OUT && MATED) prefetch_rows(mate, step_mate, count, x.width);
    if (OUT && KEPT == MULTIPLY) prefetch_rows(other, values, keys, x.width);
    if (OUT && !wild) {
      wild = scores(shared, gate, lane);
      from_state(out, here, state, units_of_state, shared, lane);
    }
    if (next < x.hi) prepare(chunk + 1);
    if (OUT) wild = __syncthreads_or(wild);
    if (OUT && !wild) from_chunk(out, here, shared, lane);
    if (wild) {
      float(*memory)[SLICE] = reinterpret_cast<float(*)[SLICE]>(&shared);  // queries and keys, which nobody wants now
      put(state, memory[0], KEYS, SLICE, SLICE);
      __syncthreads();
      step_by_step<OUT>(memory, here, gate, q + place.at[Q] + t * step_q, k + place.at[K] + t * step_k,
                        v + place.at[V] + t * step_v, nullptr, {step_q, step_k, step_v, 0}, count, keys, x.width,
                        [](int, int, float) {});
      __syncthreads();
      const auto get = [](float& x, const float* from, bool) { x = *from; };
      each(state, memory[0], SLICE, KEYS, SLICE, get);
      if (OUT) each(out, here[0], ACROSS, STEPS, SLICE, get);
    }
    if (OUT && MATED) {
      float* sums = extras.sums + (warp * layout.rows + x.row) * layout.length + t;
      multiply(out, mate, step_mate, sums, count, x.width, scale, lane);
    }
    if (OUT)
      each(out, o + t * step_o, step_o, count, x.width, [=](float y, S* to, bool inside) {
        if (inside) *to = scale * y;
      });
    if (!wild) advance(state, here, shared, gate, lane);
    if (OUT && KEPT == MULTIPLY) {
      float sum = 0.0f;
      each(state, other, values, keys, x.width, [&](float y, const S* other, bool inside) {
        if (inside) sum = __fmaf_rn(y, *other, sum);
      });
#pragma unroll
      for (int by = 16; by > 0; by /= 2) sum += shuffle_xor(sum, by);
      if (lane == 0) shared.part[warp] = sum;
      __syncthreads();
      if (threadIdx.x == 0) {
        sum = 0.0f;
        for (int w = 0; w < WARPS; w++) sum += shared.part[w];
        extras.dots[x.row * chunks + chunk] = sum;
      }
    }
  }
  return decay;
}

// What a segment makes of a state of zero, and the product of its decays.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
reduce(const __grid_constant__ Layout layout, const S* k, const S* v, const float* g, float* ends, float* decays, int keys,
       i64 values, i64 segment, const __grid_constant__ Extras extras) {
  extern __shared__ __align__(16) u8 memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const Spot x = place_of(layout, values, segment, extras.head);
  const i64 slot = x.segment * layout.rows + x.row;
  State state = {};
  const float decay = through<false>(state, shared, layout, x, nullptr, k, v, g, nullptr, keys, values, 1.0f, extras);
  put(state, ends + slot * keys * values, keys, values, x.width);
  if (threadIdx.x == 0) decays[slot] = decay;
}

// `starts` is what enters each segment; without it a row is one segment, which begins with `first`.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
run(const __grid_constant__ Layout layout, const S* q, const S* k, const S* v, const float* g, const float* first,
    const float* starts, S* o, float* last, int keys, i64 values, float scale, i64 segment, const __grid_constant__ Extras extras) {
  extern __shared__ __align__(16) u8 memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const Spot x = place_of(layout, values, segment, extras.head);
  const float* from = starts ? starts + (x.segment * layout.rows + x.row) * keys * values
                             : first ? first + locate(layout, x.row).at[STATE] : nullptr;
  State state = {};
  if (from)
    each(state, from, values, keys, x.width, [](float& y, const float* from, bool inside) {
      if (inside) y = *from;
    });
  through<true>(state, shared, layout, x, q, k, v, g, o, keys, values, scale, extras);
  if (x.hi < layout.length) return;
  if (extras.backwards) {  // the first step's decay is left
    const float first_decay = DECAYS ? expf(g[locate(layout, x.row).at[G] + (layout.length - 1) * layout.operand[G].time]) : 1.0f;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) state[n][i] = first_decay == 0.0f ? 0.0f : first_decay * (scale * state[n][i]);
  }
  put(state, last + x.row * keys * values, keys, values, x.width);
}
