// A pass of the delta rule through the chunks of a head, forwards or backwards: what is loaded, and made ready ahead of
// the warps that carry the state. See delta_chunk.cu.
#pragma once
#include "delta_scores.cuh"

constexpr int VALUES = 16 * WARPS;
constexpr bool AHEAD = STAGES == 3;  // the scores of a chunk are made beside the work on the one before
constexpr int TURNS = 1 + AHEAD;

struct Stage { S q[STEPS][KEYS + PAD], k[STEPS][KEYS + PAD], v[STEPS][VALUES + PAD]; };
struct Shared {
  Stage stage[STAGES];
  Scores scores[TURNS];
  Gates gates[3];
  int bad[STEPS], spoilt[TURNS][STEPS];
};

// The arrays a pass reads; `v` is dO backwards.
struct Arrays {
  const S *q, *k, *v;
  const float *beta, *g;
  int keys;
  i64 values;
  float scale;
};

// Where a block is, and what it reads.
struct Spot {
  u32 row, column;  // `column`: of its first value
  int chunks, width;  // `width`: values of this warp
  Place place;
};

__device__ __forceinline__ Spot spot(const Layout& layout, i64 values) {
  const u32 slices = static_cast<u32>((values + VALUES - 1) / VALUES);
  Spot x;
  x.row = blockIdx.x / slices, x.column = blockIdx.x % slices * VALUES, x.chunks = static_cast<int>((layout.length + STEPS - 1) / STEPS);
  x.place = locate(layout, x.row);
  const i64 left = values - x.column - i64(threadIdx.x / 32 * 16);
  x.width = static_cast<int>(left < 0 ? 0 : left < 16 ? left : 16);
  return x;
}

// The n-th chunk of the pass.
template <bool BACK> __device__ __forceinline__ i64 chunk_of(const Spot& x, int n) { return BACK ? x.chunks - 1 - n : n; }
__device__ __forceinline__ int at_most_values(i64 left) { return static_cast<int>(left < VALUES ? left : VALUES); }


template <bool BACK> __device__ __forceinline__ void fetch(Shared& shared, const Layout& layout, const Spot& x, const Arrays& from, int n) {
  Stage& to = shared.stage[n % STAGES];
  const i64 t = chunk_of<BACK>(x, n) * STEPS, step_q = layout.operand[Q].time, step_k = layout.operand[K].time;
  const i64 step_v = layout.operand[V].time;
  const int count = at_most_steps(layout.length - t), width = at_most_values(from.values - x.column);
  if (READ) load<KEYS, PACKED>(to.q, from.q + x.place.at[Q] + t * step_q, step_q, count, from.keys);
  load<KEYS, PACKED>(to.k, from.k + x.place.at[K] + t * step_k, step_k, count, from.keys);
  load<VALUES, PACKED>(to.v, from.v + x.place.at[V] + x.column + t * step_v, step_v, count, width);
  commit();
}

// Which steps of a chunk the bad ones are taken out of, forwards those that come after them and backwards those before,
// as far as nothing is forgotten in between. `lost` is whether the state that enters is; returns whether that which
// leaves is.
template <bool BACK> __device__ __forceinline__ bool spoil(Shared& shared, Stage& stage, Gates& gates, int* spoilt, bool lost) {
  if (threadIdx.x < STEPS) shared.bad[threadIdx.x] |= gates.bad[threadIdx.x];
  __syncthreads();
  clear_rows<KEYS>(stage.k, shared.bad), clear_rows<VALUES>(stage.v, shared.bad);
  if (BACK) clear_rows<KEYS>(stage.q, shared.bad);
  if (threadIdx.x < STEPS) {
    const int t = threadIdx.x;
    bool found = lost && (BACK ? t >= gates.cut[STEPS - 1] : gates.cut[t] < 0);
    for (int s = 0; s < STEPS; s++)
      found |= shared.bad[s] && (BACK ? s >= t && gates.cut[s] <= t : s <= t && gates.cut[t] <= s);
    spoilt[t] = found;
    if (shared.bad[t]) gates.beta[t] = 0.0f;
  }
  __syncthreads();
  bool leaves = BACK ? lost && gates.cut[STEPS - 1] < 0 : spoilt[STEPS - 1];
  if (BACK)
    for (int s = 0; s < STEPS; s++) leaves |= shared.bad[s] && gates.cut[s] < 0;
  __syncthreads();
  if (threadIdx.x < STEPS) shared.bad[threadIdx.x] = 0;
  __syncthreads();
  return leaves;
}
__device__ __forceinline__ void spoil_steps(Steps& x, const int* spoilt, int lane) {
#pragma unroll
  for (int n = 0; n < STEPS / 8; n++)
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (spoilt[8 * n + lane % 4 * 2 + i % 2]) x[n][i] = not_a_number();
}

// The state of a warp, rounded, to rows of KEYS numbers, one for each value.
__device__ __forceinline__ void keep_state(S* to, const State& state, bool lost, int lane) {
  const u32 none = pair<S>(not_a_number(), not_a_number());
#pragma unroll
  for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
    for (int half = 0; half < 2; half++)
      *reinterpret_cast<u32*>(to + (lane / 4 + 8 * half) * KEYS + 8 * n + lane % 4 * 2) =
          lost ? none : pair<S>(state[n][2 * half], state[n][2 * half + 1]);
}

// Calls f(key, value, x) for each number of the state.
template <class F> __device__ __forceinline__ void each(State& state, int lane, F f) {
#pragma unroll
  for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) f(8 * n + lane % 4 * 2 + i % 2, lane / 4 + i / 2 * 8, state[n][i]);
}

// state += (16 values by the 16 steps of block i) times (those steps by keys).
template <class Row> __device__ __forceinline__ void add_block(State& state, const u32 (&a)[4], const Row* rows, int i, int lane) {
#pragma unroll
  for (int n = 0; n < KEYS / 8; n += 2) {
    u32 b[4];
    load_b<true>(b, rows, 16 * i, 8 * n, lane);
    mma_pair(state[n], state[n + 1], a, b);
  }
}

// Whether the state is not finite, anywhere in the block; then it is taken out.
__device__ __forceinline__ bool enters(Shared& shared, State& state, int lane) {
  bool found = false;
  each(state, lane, [&](int, int, float& y) { found |= !is_finite(y); });
  if (threadIdx.x < STEPS) shared.bad[threadIdx.x] = 0;
  const bool lost = __syncthreads_or(found);
  if (lost) each(state, lane, [](int, int, float& y) { y = 0.0f; });
  return lost;
}

// At the start of a pass: whether this thread knows of gates of the first chunk that are not finite, whether the state is.
struct Outset { bool odd, lost; };

// The state from `first`, if any, and the first chunk on its way.
template <bool BACK>
__device__ __forceinline__ Outset set_out(Shared& shared, State& state, const Layout& layout, const Spot& x, const Arrays& from, const float* first) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  if (first) first += x.place.at[STATE] + x.column + 16 * warp;
  each(state, lane, [&](int key, int c, float& y) { y = first && key < from.keys && c < x.width ? first[key * from.values + c] : 0.0f; });
  fetch<BACK>(shared, layout, x, from, 0);
  const bool odd = warp == 0 && gates(shared.gates[0], steep(layout, x.place, from.g, from.beta, chunk_of<BACK>(x, 0), lane), lane);
  return {odd, enters(shared, state, lane)};
}

// Of a chunk: whether anything in it or before it is not finite; whether the state that enters it is, and that which leaves.
struct Turn { bool careful, lost, leaves; };

// Makes the n-th chunk's scores, and sees that the next one is on its way. `odd`: this thread knows of gates that are not
// finite, in this chunk, and then in the next.
template <bool BACK>
__device__ __forceinline__ Turn ready(Shared& shared, const Layout& layout, const Spot& x, const Arrays& from, int n, bool lost, bool& odd) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  const bool more = n + 1 < x.chunks;
  Stage& stage = shared.stage[n % STAGES];
  Gates& gate = shared.gates[n % 3];
  arrived<0>();
  odd |= inspect<KEYS, PACKED>(stage.k, shared.bad) | inspect<VALUES, PACKED>(stage.v, shared.bad);
  if (BACK) odd |= inspect<KEYS, PACKED>(stage.q, shared.bad);
  Turn turn = {__syncthreads_or(odd) || lost, lost, false};
  if (STAGES > 1 && more) fetch<BACK>(shared, layout, x, from, n + 1);
  Steep next;
  if (warp == 0 && more) next = steep(layout, x.place, from.g, from.beta, chunk_of<BACK>(x, n + 1), lane);
  if (turn.careful) turn.leaves = spoil<BACK>(shared, stage, gate, shared.spoilt[n % TURNS], lost);
  score<BACK>(shared.scores[n % TURNS], stage.q, stage.k, gate, from.scale, warp, lane);
  odd = warp == 0 && more && gates(shared.gates[(n + 1) % 3], next, lane);
  return turn;
}

// Goes through the chunks: work(n, turn) is done on each. Returns whether the last state is not finite.
template <bool BACK, class Work>
__device__ __forceinline__ bool walk(Shared& shared, const Layout& layout, const Spot& x, const Arrays& from, const Outset& outset, Work work) {
  const bool lost = outset.lost;
  bool odd = outset.odd;
  Turn next = {false, lost, lost}, turn = next;
  if (AHEAD) next = ready<BACK>(shared, layout, x, from, 0, lost, odd);
#pragma unroll 1
  for (int n = 0; n < x.chunks; n++) {
    if (AHEAD) {
      turn = next;
      if (n + 1 < x.chunks) next = ready<BACK>(shared, layout, x, from, n + 1, turn.leaves, odd);
      else __syncthreads();
    } else {
      turn = ready<BACK>(shared, layout, x, from, n, turn.leaves, odd);
      __syncthreads();
    }
    work(n, turn);
    if (STAGES == 1 && n + 1 < x.chunks) {
      __syncthreads();
      fetch<BACK>(shared, layout, x, from, n + 1);
    }
  }
  return turn.leaves;
}
