// One chunk of linear attention on tensor cores: its gates, its outputs, and the step of the state. See linear_attention.cu.
#pragma once
#include "numbers.cuh"

constexpr int SHARES = KEYS == 128 ? 1 : 2;  // warps that share out the columns; measured: at 128 keys, two would be slower
constexpr int WARPS = 4 * SHARES;  // of a block: four for the steps, or keys, times those for the columns
#include "attention_tiles.cuh"
#include "attention_decays.cuh"
#include "attention_flow.cuh"

constexpr int BLOCKS = KEYS <= 128 ? 2 : 1;  // of a multiprocessor
constexpr int TILES = KEYS / 64, COLUMNS = SLICE / 8 / SHARES;  // of the state: 16 x 8 tiles of a warp

struct Stage { S k[STEPS][KEYS + PAD], v[STEPS][SLICE + PAD]; };
struct Shared {
  Stage stage[2];
  Gates gates[2];  // all that `reduce` has memory for
  S q[2][STEPS][KEYS + PAD];
  S state[KEYS][SLICE + PAD];
  float part[WARPS], until[WARPS][STEPS];  // each warp's own: e^(W[first - 1] - W[s]) for the steps s before its first
};

// Which of the two chunks in shared memory this is.
__device__ __forceinline__ int turn(const Shared& shared, const Stage& stage) { return &stage == &shared.stage[1]; }

constexpr int IDLE = WARPS - 4;  // the warp with the least to do makes the next chunk's gates

// This warp's part of the steps, or the keys, and of the columns.
__device__ __forceinline__ int quarter() { return threadIdx.x / 32 % 4; }
__device__ __forceinline__ int share() { return threadIdx.x / 128; }
__device__ __forceinline__ int first_column() { return share() * (8 * COLUMNS); }

// Outputs of this warp's 16 steps and columns.
__device__ __forceinline__ void outputs(float (&o)[COLUMNS][4], Shared& shared, const Stage& stage, const Gates& gates, int lane) {
  const int first = 16 * quarter(), column = first_column();
  const auto add = [&](const Both(&a)[4], int s) {
#pragma unroll
    for (int c = 0; c < COLUMNS; c += 2) {
      Both b[4];
      load_b<true>(b, stage.v, s, column + 8 * c, lane);
      mma(o[c], a, b[0], b[1], S());
      mma(o[c + 1], a, b[2], b[3], S());
    }
  };
  float(&until)[STEPS] = shared.until[threadIdx.x / 32];
  if (DECAYS)
    for (int s = lane; s < first; s += 32) until[s] = between(gates, first - 1, s);
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
    Both a[4], b[4];
    load_a<false>(a, shared.q[turn(shared, stage)], first, j, lane);
#pragma unroll
    for (int n = 0; n < COLUMNS; n += 2) {
      load_b<true>(b, shared.state, j, column + 8 * n, lane);
      mma(o[n], a, b[0], b[1], S());
      mma(o[n + 1], a, b[2], b[3], S());
    }
#pragma unroll
    for (int m = 0; m < STEPS / 16; m++) {
      if (16 * m > first) continue;
      load_b<false>(b, stage.k, j, 16 * m, lane);
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
  for (int m = 0; m < STEPS / 16; m++) {
    if (16 * m > first) continue;
    Both a[4];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int s = 16 * m + 8 * half + 2 * t;
      float(&x)[4] = p[2 * m + half];
      if (16 * m < first) {
        float2 left = {1.0f, 1.0f};
        if (DECAYS) left = *reinterpret_cast<const float2*>(&until[s]);
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
    }
    add(a, 16 * m);
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
  each(state, lane, [=](int, int, float& x) { x *= kept; });
  if (kept == 0.0f) each(state, lane, [](int, int, float& x) { x = 0.0f; });
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
