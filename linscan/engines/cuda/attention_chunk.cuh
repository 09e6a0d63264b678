// One chunk of linear attention on tensor cores: its gates, its outputs, and the step of the state. See linear_attention.cu.
#pragma once
constexpr int HALVES = KEYS == 128 ? 1 : 2;  // measured: there, two warps for the columns would be slower
constexpr int WARPS = 4 * HALVES;            // of a block: four for the steps, or keys, times those for the columns
#include "attention_tiles.cuh"

constexpr int TILES = KEYS / 64, COLUMNS = SLICE / 8 / HALVES;  // of the state: 16 x 8 tiles of a warp
constexpr float FORGET = -88.0f;  // e^g below the smallest normal number: what was before is no more

struct Stage { S q[STEPS][KEYS + PAD], k[STEPS][KEYS + PAD], v[STEPS][SLICE + PAD]; };
struct Shared {
  Stage stage[2];
  S state[KEYS][SLICE + PAD];
  float sum[STEPS], after[STEPS];  // W, and e^(W[63] - W)
  float part[WARPS], until[WARPS][STEPS];  // each warp's own: e^(W[first - 1] - W[s]) for the steps s before its first
  int cut[STEPS];  // the last step up to here that forgets, -1 if the state before the chunk is still seen
};

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

// Sums of g over the chunk; one warp.
__device__ __forceinline__ void gates(Shared& shared, const float (&g)[2], int lane) {
  float sum[2];
  int cut[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const bool forgets = g[i] < FORGET;
    cut[i] = forgets ? 2 * lane + i : i ? cut[0] : -1;
    sum[i] = forgets ? 0.0f : i ? sum[0] + g[i] : g[i];
  }
  float before = sum[1];
  int last = cut[1];
#pragma unroll
  for (int by = 1; by < 32; by *= 2) {
    const float left = shuffle_up(before, by);
    const int cut_left = shuffle_up(last, by);
    if (lane >= by && last < 0) before += left, last = cut_left;
  }
  const float all = shuffle(before, 31);
  const int end = shuffle(last, 31);
  before = shuffle_up(before, 1), last = shuffle_up(last, 1);
  if (!lane) before = 0.0f, last = -1;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const bool open = cut[i] < 0;
    const int s = 2 * lane + i;
    shared.sum[s] = sum[i] = open ? before + sum[i] : sum[i];
    shared.cut[s] = open ? last : cut[i];
    shared.after[s] = s >= end ? __expf(all - sum[i]) : 0.0f;
  }
}

// e^(W[t] - W[s]), zero where step t no longer sees step s. A sum that restarts is below any that went before.
__device__ __forceinline__ float between(const Shared& shared, int t, int s) {
  return s >= shared.cut[t] ? __expf(shared.sum[t] - shared.sum[s]) : 0.0f;
}
__device__ __forceinline__ float since_start(const Shared& shared, int t) { return shared.cut[t] < 0 ? __expf(shared.sum[t]) : 0.0f; }

// This warp's part of the steps, or the keys, and of the columns.
__device__ __forceinline__ int quarter() { return threadIdx.x / 32 % 4; }
__device__ __forceinline__ int half_column() { return threadIdx.x / 128 * (8 * COLUMNS); }

// Outputs of this warp's 16 steps and columns.
__device__ __forceinline__ void outputs(float (&o)[COLUMNS][4], Shared& shared, const Stage& stage, int lane) {
  const int first = 16 * quarter(), column = half_column();
  float(&until)[STEPS] = shared.until[threadIdx.x / 32];
  if (DECAYS)
    for (int s = lane; s < first; s += 32) until[s] = between(shared, first - 1, s);
  __syncwarp();
#pragma unroll
  for (int n = 0; n < COLUMNS; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) o[n][i] = 0.0f;
  float p[STEPS / 8][4];
#pragma unroll
  for (int n = 0; n < STEPS / 8; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) p[n][i] = 0.0f;
#pragma unroll 2
  for (int j = 0; j < KEYS; j += 16) {
    u32 a[4], b[4];
    load_a<false>(a, stage.q, first, j, lane);
#pragma unroll
    for (int n = 0; n < COLUMNS; n += 2) {
      load_b<true>(b, shared.state, j, column + 8 * n, lane);
      mma(o[n], a, b[0], b[1], S());
      mma(o[n + 1], a, b[2], b[3], S());
    }
#pragma unroll
    for (int n = 0; n < STEPS / 8; n += 2) {
      if (8 * n > first) continue;
      load_b<false>(b, stage.k, j, 8 * n, lane);
      mma(p[n], a, b[0], b[1], S());
      mma(p[n + 1], a, b[2], b[3], S());
    }
  }
  const int g = lane / 4, t = lane % 4;
  const float seen[2] = {since_start(shared, first + g), since_start(shared, first + g + 8)};
  float since[2] = {1.0f, 1.0f};  // the end of the warp before
  if (DECAYS && first) since[0] = between(shared, first + g, first - 1), since[1] = between(shared, first + g + 8, first - 1);
#pragma unroll
  for (int n = 0; n < COLUMNS; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) o[n][i] = seen[i / 2] == 0.0f ? 0.0f : o[n][i] * seen[i / 2];
#pragma unroll
  for (int n = 0; n < STEPS / 8; n += 2) {
    if (8 * n > first) continue;
    u32 a[4], b[4];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int s = 8 * (n + half) + 2 * t;
      float(&x)[4] = p[n + half];
      if (8 * n < first) {
        const float2 left = *reinterpret_cast<const float2*>(&until[s]);
#pragma unroll
        for (int i = 0; i < 4 && DECAYS; i++) x[i] *= since[i / 2] * (i % 2 ? left.y : left.x);
      } else {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int step = first + g + i / 2 * 8;
          x[i] = s + i % 2 <= step ? x[i] * (DECAYS ? between(shared, step, s + i % 2) : 1.0f) : 0.0f;
        }
      }
      a[2 * half] = ::pair<S>(x[0], x[1]), a[2 * half + 1] = ::pair<S>(x[2], x[3]);
    }
#pragma unroll
    for (int c = 0; c < COLUMNS; c += 2) {
      load_b<true>(b, stage.v, 8 * n, column + 8 * c, lane);
      mma(o[c], a, b[0], b[1], S());
      mma(o[c + 1], a, b[2], b[3], S());
    }
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
      for (int i = 0; i < 4; i++) f((quarter() * TILES + m) * 16 + lane / 4 + i / 2 * 8, half_column() + 8 * n + lane % 4 * 2 + i % 2, state[m][n][i]);
}

// The same for two neighbouring columns at a time: f(key, column, value, value).
template <class F> __device__ __forceinline__ void each_pair(State& state, int lane, F f) {
#pragma unroll
  for (int m = 0; m < TILES; m++)
#pragma unroll
    for (int n = 0; n < COLUMNS; n++)
#pragma unroll
      for (int i = 0; i < 4; i += 2)
        f((quarter() * TILES + m) * 16 + lane / 4 + i / 2 * 8, half_column() + 8 * n + lane % 4 * 2, state[m][n][i], state[m][n][i + 1]);
}

// S' = e^W[63] S + (e^(W[63] - W) K)^T V.
__device__ __forceinline__ void advance(State& state, const Shared& shared, const Stage& stage, int lane) {
  const float kept = since_start(shared, STEPS - 1);
  if (kept == 0.0f)
    each(state, lane, [](int, int, float& x) { x = 0.0f; });
  else
    each(state, lane, [=](int, int, float& x) { x *= kept; });
#pragma unroll
  for (int s = 0; s < STEPS; s += 16) {
    const float* left = &shared.after[s + lane % 4 * 2];
    const float scale[4] = {left[0], left[1], left[8], left[9]};
    u32 b[COLUMNS / 2][4];
#pragma unroll
    for (int n = 0; n < COLUMNS; n += 2) load_b<true>(b[n / 2], stage.v, s, half_column() + 8 * n, lane);
#pragma unroll
    for (int m = 0; m < TILES; m++) {
      u32 a[4];
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
