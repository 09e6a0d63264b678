// One chunk of linear attention on tensor cores: its gates, its outputs, and the step of the state. See linear_attention.cu.
#pragma once
#include "numbers.cuh"

// Warps that share out the columns. Measured: at 128 keys, two would be slower in 16 bits; in float32, whose chunks leave no
// room for a second block, two wait for most of the time.
constexpr int SHARES = sizeof(STORAGE) == 4 ? SLICE / 16 : KEYS == 128 ? 1 : 2;
constexpr int WARPS = 4 * SHARES;  // of a block: four for the steps, or keys, times those for the columns
#include "attention_tiles.cuh"

constexpr int BLOCKS = KEYS <= 128 && !SINGLE ? 2 : 1;  // of a multiprocessor
constexpr int TILES = KEYS / 64, COLUMNS = SLICE / 8 / SHARES;  // of the state: 16 x 8 tiles of a warp
constexpr int SCORES = STEPS / 16 / (SINGLE ? SHARES : 1);  // of the chunk's blocks of 16 steps, those whose scores a warp makes
constexpr float FORGET = -88.0f;  // e^g below the smallest normal number: what was before is no more

struct Stage { S k[STEPS][KEYS + PAD], v[STEPS][SLICE + PAD_ACROSS]; };
// Of the steps of a chunk.
struct Gates {
  float sum[STEPS], after[STEPS];  // W, and e^(W[63] - W)
  float rest[STEPS], gate[STEPS];  // of float32 arrays: what W is more than `sum`, and g
  int cut[STEPS];  // the last step up to here that forgets, -1 if the state before the chunk is still seen
};
struct Shared {
  Stage stage[2];
  Gates gates[2];  // of 16-bit arrays all that `reduce` has memory for
  S q[2][STEPS][KEYS + PAD];
  S state[KEYS][SLICE + PAD_ACROSS];
  float part[WARPS], until[SINGLE ? 1 : WARPS][STEPS];  // each warp's own: e^(W[first - 1] - W[s]) for the steps s before its first
  S scores[SINGLE ? STEPS : 1][STEPS + PAD];  // of float32 arrays: warps that share out the columns make them for each other
};

// Which of the two chunks in shared memory this is.
__device__ __forceinline__ int turn(const Shared& shared, const Stage& stage) { return &stage == &shared.stage[1]; }

constexpr int IDLE = WARPS - 4;  // the warp with the least to do makes the next chunk's gates

enum { Q, K, V, G, MATE, STATE };  // operands of the layout
enum { NOTHING, WRITE, MULTIPLY };  // what is done with the states between chunks

// What is asked for besides outputs and final state.
struct Extras {
  S* kept;        // (row, chunk, key, value): states before each chunk, written, or multiplied with those after it
  float* dots;    // (slice, row, chunk): the sums of those products
  const S* mate;  // (…, time, value), multiplied with the outputs
  float* sums;    // (slice and half, row, time): the sums of those products over values
  i64 head;       // steps of the first chunk
  i64 backwards;  // 1: time of the outputs runs the other way, a step's decay is that before it, and `last` is times scale
};

// Two steps a lane; steps outside have a decay of 1.
__device__ __forceinline__ void logarithms(float (&x)[2], const float* g, i64 time, int begin, int end, int lane) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int t = 2 * lane + i;
    x[i] = DECAYS && begin <= t && t < end ? g[t * time] : 0.0f;
  }
}

__device__ __forceinline__ float exponential(float x) { return SINGLE ? expf(x) : __expf(x); }

template <class T> struct Sum { typedef float type; };
template <> struct Sum<float> { typedef double type; };  // differences of W are as exact as their exponential

// Sums of g over the chunk; one warp.
__device__ __forceinline__ void gates(Gates& to, const float (&g)[2], int lane) {
  typename Sum<S>::type sum[2];
  int cut[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const bool forgets = g[i] < FORGET;
    cut[i] = forgets ? 2 * lane + i : i ? cut[0] : -1;
    if (SINGLE) to.gate[2 * lane + i] = g[i];
    sum[i] = forgets ? 0.0f : g[i];
    if (i && !forgets) sum[1] += sum[0];
  }
  typename Sum<S>::type before = sum[1];
  int last = cut[1];
#pragma unroll
  for (int by = 1; by < 32; by *= 2) {
    const typename Sum<S>::type left = shuffle_up(before, by);
    const int cut_left = shuffle_up(last, by);
    if (lane >= by && last < 0) before += left, last = cut_left;
  }
  const typename Sum<S>::type all = shuffle(before, 31);
  const int end = shuffle(last, 31);
  before = shuffle_up(before, 1), last = shuffle_up(last, 1);
  if (!lane) before = 0, last = -1;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const bool open = cut[i] < 0;
    const int s = 2 * lane + i;
    sum[i] = open ? before + sum[i] : sum[i];
    to.sum[s] = static_cast<float>(sum[i]);
    if (SINGLE) to.rest[s] = static_cast<float>(sum[i] - to.sum[s]);
    to.cut[s] = open ? last : cut[i];
    to.after[s] = s >= end ? exponential(static_cast<float>(all - sum[i])) : 0.0f;
  }
}

// e^(W[t] - W[s]), zero where step t no longer sees step s. A sum that restarts is below any that went before.
__device__ __forceinline__ float between(const Gates& gates, int t, int s) {
  if (s < gates.cut[t]) return 0.0f;
  const float apart = gates.sum[t] - gates.sum[s];
  return exponential(SINGLE ? apart + (gates.rest[t] - gates.rest[s]) : apart);
}
__device__ __forceinline__ float since_start(const Gates& gates, int t) { return gates.cut[t] < 0 ? exponential(gates.sum[t]) : 0.0f; }

// This warp's part of the steps, or the keys, and of the columns.
__device__ __forceinline__ int quarter() { return threadIdx.x / 32 % 4; }
__device__ __forceinline__ int share() { return threadIdx.x / 128; }
__device__ __forceinline__ int first_column() { return share() * (8 * COLUMNS); }

// Outputs of this warp's 16 steps and columns.
__device__ __forceinline__ void outputs(float (&o)[COLUMNS][4], Shared& shared, const Stage& stage, const Gates& gates, int lane) {
  const int first = 16 * quarter(), column = first_column();
  const auto block = [](int m) { return 16 * (SINGLE ? share() + m * SHARES : m); };  // the first step of this warp's m-th
  const auto add = [&](const Both(&a)[4], int s) {
#pragma unroll
    for (int c = 0; c < COLUMNS; c += 2) {
      Both b[4];
      load_b<true>(b, stage.v, s, column + 8 * c, lane);
      mma(o[c], a, b[0], b[1], S());
      mma(o[c + 1], a, b[2], b[3], S());
    }
  };
  float(&until)[STEPS] = shared.until[SINGLE ? 0 : threadIdx.x / 32];
  if (DECAYS && !SINGLE)
    for (int s = lane; s < first; s += 32) until[s] = between(gates, first - 1, s);
  __syncwarp();
#pragma unroll
  for (int n = 0; n < COLUMNS; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) o[n][i] = 0.0f;
  float p[2 * SCORES][4];
#pragma unroll
  for (int n = 0; n < 2 * SCORES; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) p[n][i] = 0.0f;
#pragma unroll 2
  for (int j = 0; j < KEYS; j += 16) {
    Both a[4], b[4];
    load_a<false>(a, shared.q[turn(shared, stage)], first, j, lane);
#pragma unroll
    for (int n = 0; n < COLUMNS; n += 2) {
      load_b<true>(b, shared.state, j, column + 8 * n, lane);
      mma(o[n], a, b[0], b[1], S());
      mma(o[n + 1], a, b[2], b[3], S());
    }
#pragma unroll
    for (int m = 0; m < SCORES; m++) {
      if (block(m) > first) continue;
      load_b<false>(b, stage.k, j, block(m), lane);
      mma(p[2 * m], a, b[0], b[1], S());
      mma(p[2 * m + 1], a, b[2], b[3], S());
    }
  }
  const int g = lane / 4, t = lane % 4;
  const float seen[2] = {since_start(gates, first + g), since_start(gates, first + g + 8)};
  float since[2] = {1.0f, 1.0f};  // the end of the warp before
  if (DECAYS && first) since[0] = between(gates, first + g, first - 1), since[1] = between(gates, first + g + 8, first - 1);
#pragma unroll
  for (int n = 0; n < COLUMNS; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) o[n][i] = seen[i / 2] == 0.0f ? 0.0f : o[n][i] * seen[i / 2];
#pragma unroll
  for (int m = 0; m < SCORES; m++) {
    if (block(m) > first) continue;
    Both a[4];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int s = block(m) + 8 * half + 2 * t;
      float(&x)[4] = p[2 * m + half];
      if (block(m) < first) {
        float2 left = {1.0f, 1.0f};
        if (DECAYS && SINGLE) left = {between(gates, first - 1, s), between(gates, first - 1, s + 1)};
        else if (DECAYS) left = *reinterpret_cast<const float2*>(&until[s]);
#pragma unroll
        for (int i = 0; i < 4 && DECAYS; i++) x[i] *= since[i / 2] * (i % 2 ? left.y : left.x);
      } else {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int step = first + g + i / 2 * 8;
          x[i] = s + i % 2 <= step ? x[i] * (DECAYS ? between(gates, step, s + i % 2) : 1.0f) : 0.0f;
        }
      }
      a[2 * half] = ::pair<S>(x[0], x[1]), a[2 * half + 1] = ::pair<S>(x[2], x[3]);
      for (int i = 0; i < 2 && SINGLE; i++) *reinterpret_cast<Both*>(&shared.scores[SINGLE ? first + g + 8 * i : 0][s]) = a[2 * half + i];
    }
    if (!SINGLE) add(a, block(m));
  }
  if (!SINGLE) return;
  __syncthreads();
#pragma unroll
  for (int s = 0; s < STEPS; s += 16) {
    if (s > first) continue;
    Both a[4];
    load_a<false>(a, shared.scores, first, s, lane);
    add(a, s);
  }
}

typedef float State[TILES][COLUMNS][4];

// Calls f(key, column, value) for each number of this thread's part of the state.
template <class F> __device__ __forceinline__ void each(State& state, int lane, F f) {
#pragma unroll
  for (int m = 0; m < TILES; m++)
#pragma unroll
    for (int n = 0; n < COLUMNS; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) f((quarter() * TILES + m) * 16 + lane / 4 + i / 2 * 8, first_column() + 8 * n + lane % 4 * 2 + i % 2, state[m][n][i]);
}

// The same for two neighbouring columns at a time: f(key, column, value, value).
template <class F> __device__ __forceinline__ void each_pair(State& state, int lane, F f) {
#pragma unroll
  for (int m = 0; m < TILES; m++)
#pragma unroll
    for (int n = 0; n < COLUMNS; n++)
#pragma unroll
      for (int i = 0; i < 4; i += 2)
        f((quarter() * TILES + m) * 16 + lane / 4 + i / 2 * 8, first_column() + 8 * n + lane % 4 * 2, state[m][n][i], state[m][n][i + 1]);
}

// S' = e^W[63] S + (e^(W[63] - W) K)^T V.
__device__ __forceinline__ void advance(State& state, const Gates& gates, const Stage& stage, int lane) {
  const float kept = since_start(gates, STEPS - 1);
  if (kept == 0.0f)
    each(state, lane, [](int, int, float& x) { x = 0.0f; });
  else
    each(state, lane, [=](int, int, float& x) { x *= kept; });
#pragma unroll
  for (int s = 0; s < STEPS; s += 16) {
    const float* left = &gates.after[s + lane % 4 * 2];
    const float scale[4] = {left[0], left[1], left[8], left[9]};
    Both b[COLUMNS / 2][4];
#pragma unroll
    for (int n = 0; n < COLUMNS; n += 2) load_b<true>(b[n / 2], stage.v, s, first_column() + 8 * n, lane);
#pragma unroll
    for (int m = 0; m < TILES; m++) {
      Both a[4];
      load_a<true>(a, stage.k, s, (quarter() * TILES + m) * 16, lane);
      if (DECAYS)
#pragma unroll
        for (int n = 0; n < 4; n++) a[n] = pair<S>(low(a[n], S()) * scale[n / 2 * 2], high(a[n], S()) * scale[n / 2 * 2 + 1]);
#pragma unroll
      for (int n = 0; n < COLUMNS; n += 2) {
        mma(state[m][n], a, b[n / 2][0], b[n / 2][1], S());
        mma(state[m][n + 1], a, b[n / 2][2], b[n / 2][3], S());
      }
    }
  }
}

// Float32 arrays whose products hold NaN or inf have their chunk made again, step after step in shared memory, where the state
// before it still is: these would reach other steps otherwise. Outputs take the place of the values. A thread owns a column.
__device__ __forceinline__ void step_by_step(State& state, float (&o)[COLUMNS][4], Shared& shared, Stage& stage, const Gates& gates, int keys, int lane) {
  for (int c = threadIdx.x; c < SLICE; c += THREADS)
    for (int t = 0; t < STEPS; t++) {
      const float e = DECAYS ? expf(gates.gate[t]) : 1.0f, v = widen(stage.v[t][c]);
      float o = 0.0f;
      for (int key = 0; key < keys; key++) {
        const float before = e == 0.0f ? 0.0f : e * widen(shared.state[key][c]), x = __fmaf_rn(widen(stage.k[t][key]), v, before);
        shared.state[key][c] = Narrow<S>::of(x), o = __fmaf_rn(widen(shared.q[turn(shared, stage)][t][key]), x, o);
      }
      stage.v[t][c] = Narrow<S>::of(o);
    }
  __syncthreads();
  each(state, lane, [&](int key, int c, float& x) { x = widen(shared.state[key][c]); });
#pragma unroll
  for (int n = 0; n < COLUMNS; n++)
#pragma unroll
    for (int i = 0; i < 4; i++)
      o[n][i] = widen(stage.v[16 * quarter() + lane / 4 + i / 2 * 8][first_column() + 8 * n + lane % 4 * 2 + i % 2]);
  __syncthreads();
}
