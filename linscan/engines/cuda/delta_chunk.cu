// The delta rule, 16-bit arrays and one decay a step, on tensor cores: through the chunks, forwards and backwards.
//
//   S[t] = D S[t-1] + k[t] u[t]^T,   u[t] = beta[t] e[t],   e[t] = v[t] - D S[t-1]^T k[t],   o[t] = scale S[t]^T q[t]
//
// A chunk has 64 steps. With W the sums of g from its start, P[t, s] = q[t] k[s] e^(W[t] - W[s]) for s <= t, and L the same
// of k[t] k[s] for s < t:
//   (1 + L beta) E = V - e^W K S,   O = scale (e^W Q S + P beta E),   S' = e^W[63] S + K^T (e^(W[63] - W) beta E).
// All of this is done transposed: a warp owns 16 value columns and keeps its part of S^T in registers, where results of
// one product are the left side of the next. No warp waits for another, except for q, k and the scores P and L, which the
// block makes together. The system is solved by blocks of 16 steps, whose inverses are made by substitution in float32;
// what is rounded on the way, u, is what all that follows is told, as in a loop over time.
//
// Backwards, X being the gradient of S:
//   (1 + L^T beta) Y = scale P^T dO + e^(W[63] - W) K X',   X = e^W[63] X' + scale Q^T e^W dO - K^T e^W beta Y.
// Y is the gradient of u and beta Y that of v. Kept for the gradients, which are made in delta_chunk_back.cu chunk by
// chunk: E and the states before the chunks, Y and the gradients of the states after them.
//
// Bytes moved: q, k, v, o once (q and k once more for every 128 values beyond the first), and what is kept.
// Limits: keys to 256, any number of values and steps.
#ifndef STORAGE  // the launcher's macros, as the tests compile them
#define STORAGE bfloat16
#define KEYS 128
#define WARPS 8
#define STAGES 2
#define DECAYS 1
#define PACKED 1
#define KEEP 1
#endif
#include "delta_chunk.cuh"

constexpr int VALUES = 16 * WARPS;

struct Stage { S q[STEPS][KEYS + PAD], k[STEPS][KEYS + PAD], v[STEPS][VALUES + PAD]; };
struct Shared {
  Stage stage[STAGES];
  Scores scores;
  Gates gates[2];
  int bad[STEPS], spoilt[STEPS];
};

// Where a block is, and what it reads.
struct Spot {
  i64 row, column, chunks;  // `column`: of its first value
  Place place;
};

__device__ __forceinline__ Spot spot(const Layout& layout, i64 values) {
  const i64 slices = (values + VALUES - 1) / VALUES;
  Spot x;
  x.row = blockIdx.x / slices, x.column = blockIdx.x % slices * VALUES, x.chunks = (layout.length + STEPS - 1) / STEPS;
  x.place = locate(layout, x.row);
  return x;
}

__device__ __forceinline__ int at_most_values(i64 left) { return static_cast<int>(left < VALUES ? left : VALUES); }

__device__ __forceinline__ void fetch(Stage& to, const Layout& layout, const Spot& x, const S* q, const S* k, const S* v, i64 chunk,
                                      int keys, i64 values) {
  const i64 t = chunk * STEPS, step_q = layout.operand[Q].time, step_k = layout.operand[K].time, step_v = layout.operand[V].time;
  const int count = at_most_steps(layout.length - t);
  load<KEYS, PACKED>(to.q, q + x.place.at[Q] + t * step_q, step_q, count, keys);
  load<KEYS, PACKED>(to.k, k + x.place.at[K] + t * step_k, step_k, count, keys);
  load<VALUES, PACKED>(to.v, v + x.place.at[V] + x.column + t * step_v, step_v, count, at_most_values(values - x.column));
}

// Which steps of a chunk the bad ones are taken out of, forwards those that come after them and backwards those before,
// as far as nothing is forgotten in between. `lost` is whether the state that enters is; returns whether that which
// leaves is.
template <bool BACK> __device__ __forceinline__ bool spoil(Shared& shared, Stage& stage, Gates& gates, bool lost) {
  if (threadIdx.x < STEPS) shared.bad[threadIdx.x] |= gates.bad[threadIdx.x];
  __syncthreads();
  clear_rows<KEYS>(stage.k, shared.bad), clear_rows<VALUES>(stage.v, shared.bad);
  if (BACK) clear_rows<KEYS>(stage.q, shared.bad);
  if (threadIdx.x < STEPS) {
    const int t = threadIdx.x;
    bool found = lost && (BACK ? t >= gates.cut[STEPS - 1] : gates.cut[t] < 0);
    for (int s = 0; s < STEPS; s++)
      found |= shared.bad[s] && (BACK ? s >= t && gates.cut[s] <= t : s <= t && gates.cut[t] <= s);
    shared.spoilt[t] = found;
    if (shared.bad[t]) gates.beta[t] = 0.0f;
  }
  __syncthreads();
  bool leaves = BACK ? lost && gates.cut[STEPS - 1] < 0 : shared.spoilt[STEPS - 1];
  if (BACK)
    for (int s = 0; s < STEPS; s++) leaves |= shared.bad[s] && gates.cut[s] < 0;
  __syncthreads();
  if (threadIdx.x < STEPS) shared.bad[threadIdx.x] = 0;
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

// state += (16 values by steps) times (steps by keys), the left side as rounded blocks.
template <class Row> __device__ __forceinline__ void add_steps(State& state, const u32 (&a)[BLOCKS][4], const Row* rows, int lane) {
#pragma unroll
  for (int i = 0; i < BLOCKS; i++)
#pragma unroll
    for (int n = 0; n < KEYS / 8; n += 2) {
      u32 b[4];
      load_b<true>(b, rows, 16 * i, 8 * n, lane);
      mma_pair(state[n], state[n + 1], a[i], b);
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

extern "C" __global__ void __launch_bounds__(THREADS)
forwards(const __grid_constant__ Layout layout, const S* q, const S* k, const S* v, const float* beta, const float* g,
         const float* first, S* o, float* last, int keys, i64 values, float scale, const __grid_constant__ Kept kept) {
  extern __shared__ __align__(16) u8 memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const Spot x = spot(layout, values);
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, column = 16 * warp;
  const i64 left = values - x.column - column;
  const int width = static_cast<int>(left < 0 ? 0 : left < 16 ? left : 16);  // values of this warp
  State state;
  const float* from = first ? first + x.place.at[STATE] + x.column + column : nullptr;
  each(state, lane, [=](int key, int c, float& y) { y = from && key < keys && c < width ? from[key * values + c] : 0.0f; });
  fetch(shared.stage[0], layout, x, q, k, v, 0, keys, values);
  bool odd = warp == 0 && gates(shared.gates[0], steep(layout, x.place, g, beta, 0, lane), lane);
  bool lost = enters(shared, state, lane);
#pragma unroll 1
  for (i64 chunk = 0; chunk < x.chunks; chunk++) {
    Stage& stage = shared.stage[chunk % STAGES];
    Gates& gate = shared.gates[chunk % 2];
    const Scores& scores = shared.scores;
    const bool more = chunk + 1 < x.chunks;
    commit();
    arrived<0>();
    odd |= inspect<KEYS, PACKED>(stage.k, shared.bad) | inspect<VALUES, PACKED>(stage.v, shared.bad);
    const bool careful = __syncthreads_or(odd) || lost;
    if (STAGES == 2 && more) fetch(shared.stage[(chunk + 1) % 2], layout, x, q, k, v, chunk + 1, keys, values);
    Steep next;
    if (warp == 0 && more) next = steep(layout, x.place, g, beta, chunk + 1, lane);
    bool leaves = false;
    if (careful) leaves = spoil<false>(shared, stage, gate, lost);
    score<false>(shared.scores, stage.q, stage.k, gate, scale, warp, lane);
    __syncthreads();

    Steps e, out;
    clear(e), clear(out);
#pragma unroll
    for (int n = 0; n < KEYS / 8; n += 2) {
      u32 a[4], b[4];
      round_block(a, state[n], state[n + 1]);
#pragma unroll
      for (int m = 0; m < STEPS / 8; m += 2) {
        load_b<false>(b, stage.k, 8 * n, 8 * m, lane);
        mma_pair(e[m], e[m + 1], a, b);
        load_b<false>(b, stage.q, 8 * n, 8 * m, lane);
        mma_pair(out[m], out[m + 1], a, b);
      }
    }
    if (KEEP && x.column + column < kept.wide)
      keep_state(kept.states + ((x.row * x.chunks + chunk) * kept.wide + x.column + column) * KEYS, state, lost, lane);
    u32 written[BLOCKS][4], u[BLOCKS][4];
#pragma unroll
    for (int i = 0; i < BLOCKS; i++) {
      u32 a[4], b[4];
      load_a<true>(a, stage.v, 16 * i, column, lane);
#pragma unroll
      for (int half = 0; half < 2; half++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const int m = 2 * i + half, t = 8 * m + lane % 4 * 2 + j % 2;
          const float start = DECAYS ? gate.start[t] : 1.0f;
          const u32 word = a[2 * half + j / 2];
          e[m][j] = (j % 2 ? high(word, S()) : low(word, S())) - times(start, e[m][j]);
          out[m][j] = times(start * scale, out[m][j]);
        }
#pragma unroll
      for (int j = 0; j < i; j++) {
        load_b<false>(b, scores.erases, 16 * j, 16 * i, lane);
        mma_pair(e[2 * i], e[2 * i + 1], u[j], b);
      }
      solve_block<false>(e[2 * i], e[2 * i + 1], scores, i, lane);
      float y[2][4], z[2][4];
#pragma unroll
      for (int half = 0; half < 2; half++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const int t = 16 * i + 8 * half + lane % 4 * 2 + j % 2;
          y[half][j] = gate.beta[t] * e[2 * i + half][j];
          z[half][j] = DECAYS ? times(gate.end[t], y[half][j]) : y[half][j];
        }
      round_block(u[i], y[0], y[1]);
      round_block(written[i], z[0], z[1]);
    }
    const float stays = DECAYS ? gate.start[STEPS - 1] : 1.0f;
    if (DECAYS) each(state, lane, [=](int, int, float& y) { y = times(stays, y); });
    add_steps(state, written, stage.k, lane);
#pragma unroll
    for (int i = 0; i < BLOCKS; i++)
#pragma unroll
      for (int j = 0; j <= i; j++) {
        u32 b[4];
        load_b<false>(b, scores.reads, 16 * j, 16 * i, lane);
        mma_pair(out[2 * i], out[2 * i + 1], u[j], b);
      }
    const i64 t = chunk * STEPS;
    const int count = at_most_steps(layout.length - t);
    if (careful) spoil_steps(out, shared.spoilt, lane), spoil_steps(e, shared.spoilt, lane);
    __syncwarp();
    put_steps(stage.v, out, column, lane);
    __syncwarp();
    store_columns(o + (x.row * layout.length + t) * values + x.column + column, values, stage.v, column, count, width, lane);
    if (KEEP && x.column + column < kept.wide) {
      __syncwarp();
      put_steps(stage.v, e, column, lane);
      __syncwarp();
      store_columns(kept.steps + (x.row * layout.length + t) * kept.wide + x.column + column, kept.wide, stage.v, column, count, 16, lane);
    }
    lost = leaves;
    odd = warp == 0 && more && gates(shared.gates[(chunk + 1) % 2], next, lane);
    if (STAGES == 1 && more) {
      __syncthreads();
      fetch(shared.stage[0], layout, x, q, k, v, chunk + 1, keys, values);
    }
  }
  each(state, lane, [=](int key, int c, float& y) {
    if (key < keys && c < width) last[(x.row * keys + key) * values + x.column + column + c] = lost ? not_a_number() : y;
  });
}

// `before` becomes the gradient of the first state, from that of the last one.
extern "C" __global__ void __launch_bounds__(THREADS)
backwards(const __grid_constant__ Layout layout, const S* q, const S* k, const S* flow, const float* beta, const float* g,
          const float* after, float* before, int keys, i64 values, float scale, const __grid_constant__ Kept kept) {
  extern __shared__ __align__(16) u8 memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const Spot x = spot(layout, values);
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, column = 16 * warp;
  const i64 left = values - x.column - column;
  const int width = static_cast<int>(left < 0 ? 0 : left < 16 ? left : 16);
  State state;
  const float* from = after + x.place.at[STATE] + x.column + column;
  each(state, lane, [=](int key, int c, float& y) { y = key < keys && c < width ? from[key * values + c] : 0.0f; });
  fetch(shared.stage[(x.chunks - 1) % STAGES], layout, x, q, k, flow, x.chunks - 1, keys, values);
  bool odd = warp == 0 && gates(shared.gates[(x.chunks - 1) % 2], steep(layout, x.place, g, beta, x.chunks - 1, lane), lane);
  bool lost = enters(shared, state, lane);
#pragma unroll 1
  for (i64 chunk = x.chunks - 1; chunk >= 0; chunk--) {
    Stage& stage = shared.stage[chunk % STAGES];
    Gates& gate = shared.gates[chunk % 2];
    const Scores& scores = shared.scores;
    commit();
    arrived<0>();
    odd |= inspect<KEYS, PACKED>(stage.q, shared.bad) | inspect<KEYS, PACKED>(stage.k, shared.bad);
    odd |= inspect<VALUES, PACKED>(stage.v, shared.bad);
    const bool careful = __syncthreads_or(odd) || lost;
    if (STAGES == 2 && chunk) fetch(shared.stage[(chunk - 1) % 2], layout, x, q, k, flow, chunk - 1, keys, values);
    Steep next;
    if (warp == 0 && chunk) next = steep(layout, x.place, g, beta, chunk - 1, lane);
    bool leaves = false;
    if (careful) leaves = spoil<true>(shared, stage, gate, lost);
    score<true>(shared.scores, stage.q, stage.k, gate, scale, warp, lane);
    __syncthreads();

    Steps y;
    clear(y);
#pragma unroll
    for (int n = 0; n < KEYS / 8; n += 2) {
      u32 a[4], b[4];
      round_block(a, state[n], state[n + 1]);
#pragma unroll
      for (int m = 0; m < STEPS / 8; m += 2) {
        load_b<false>(b, stage.k, 8 * n, 8 * m, lane);
        mma_pair(y[m], y[m + 1], a, b);
      }
    }
    if (x.column + column < kept.wide)
      keep_state(kept.states + ((x.row * x.chunks + chunk) * kept.wide + x.column + column) * KEYS, state, lost, lane);
    u32 read[BLOCKS][4], erased[BLOCKS][4], solved[BLOCKS][4];
    const float stays = DECAYS ? gate.start[STEPS - 1] : 1.0f;
    if (DECAYS) each(state, lane, [=](int, int, float& z) { z = times(stays, z); });
#pragma unroll
    for (int i = 0; i < BLOCKS; i++) {
      load_a<true>(read[i], stage.v, 16 * i, column, lane);
      if (DECAYS)
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
          for (int j = 0; j < 4; j++) y[2 * i + half][j] = times(gate.end[16 * i + 8 * half + lane % 4 * 2 + j % 2], y[2 * i + half][j]);
    }
#pragma unroll
    for (int i = BLOCKS - 1; i >= 0; i--) {
      u32 b[4];
#pragma unroll
      for (int j = i; j < BLOCKS; j++) {
        load_b<true>(b, scores.reads, 16 * j, 16 * i, lane);
        mma_pair(y[2 * i], y[2 * i + 1], read[j], b);
      }
#pragma unroll
      for (int j = BLOCKS - 1; j > i; j--) {
        load_b<true>(b, scores.erases, 16 * j, 16 * i, lane);
        mma_pair(y[2 * i], y[2 * i + 1], solved[j], b);
      }
      solve_block<true>(y[2 * i], y[2 * i + 1], scores, i, lane);
      float z[2][4], w[2][4];
#pragma unroll
      for (int half = 0; half < 2; half++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const int t = 16 * i + 8 * half + lane % 4 * 2 + j % 2;
          z[half][j] = gate.beta[t] * y[2 * i + half][j];
          w[half][j] = DECAYS ? times(-gate.start[t], z[half][j]) : -z[half][j];
        }
      round_block(solved[i], z[0], z[1]);
      round_block(erased[i], w[0], w[1]);
    }
    add_steps(state, erased, stage.k, lane);
#pragma unroll
    for (int i = 0; i < BLOCKS; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int t = 16 * i + 8 * (j / 2) + lane % 4 * 2;
        const float even = scale * (DECAYS ? gate.start[t] : 1.0f), odd = scale * (DECAYS ? gate.start[t + 1] : 1.0f);
        read[i][j] = pair<S>(times(even, low(read[i][j], S())), times(odd, high(read[i][j], S())));
      }
    add_steps(state, read, stage.q, lane);
    const i64 t = chunk * STEPS;
    if (x.column + column < kept.wide) {
      if (careful) spoil_steps(y, shared.spoilt, lane);
      __syncwarp();
      put_steps(stage.v, y, column, lane);
      __syncwarp();
      store_columns(kept.steps + (x.row * layout.length + t) * kept.wide + x.column + column, kept.wide, stage.v, column,
                    at_most_steps(layout.length - t), 16, lane);
    }
    lost = leaves;
    odd = warp == 0 && chunk && gates(shared.gates[(chunk + 1) % 2], next, lane);
    if (STAGES == 1 && chunk) {
      __syncthreads();
      fetch(shared.stage[0], layout, x, q, k, flow, chunk - 1, keys, values);
    }
  }
  each(state, lane, [=](int key, int c, float& y) {
    if (key < keys && c < width) before[(x.row * keys + key) * values + x.column + column + c] = lost ? not_a_number() : y;
  });
}
