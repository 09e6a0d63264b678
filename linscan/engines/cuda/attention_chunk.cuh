// One chunk of linear attention on tensor cores: its gates, its outputs, and the step of the state. See linear_attention.cu.
#pragma once
#include "attention_tiles.cuh"

constexpr int TILES = KEYS / 16 / WARPS, COLUMNS = SLICE / 8;  // of the state: 16 x 8 tiles of a warp
constexpr float FORGET = -88.0f;  // e^g below the smallest normal number: what was before is no more

struct Shared {
  S q[STEPS][KEYS + PAD], k[STEPS][KEYS + PAD], v[STEPS][SLICE + PAD], scaled[STEPS][SLICE + PAD], state[KEYS][SLICE + PAD];
  float sum[STEPS];  // W
  float part[WARPS];
  int cut[STEPS];    // the last step up to here that forgets, -1 if the state before the chunk is still seen
};

enum { Q, K, V, G, MATE, STATE };  // operands of the layout
enum { NOTHING, WRITE, MULTIPLY };  // what is done with the states between chunks

// What is asked for besides outputs and final state.
struct Extras {
  float* kept;    // (row, chunk, key, value): states before each chunk, written, or multiplied with those after it
  float* dots;    // (slice, row, chunk): the sums of those products
  const S* mate;  // (…, time, value), multiplied with the outputs
  float* sums;    // (slice, row, time): the sums of those products over values
  i64 head;       // steps of the first chunk
};

// Sums of g over the chunk, two steps a lane; one warp.
__device__ __forceinline__ void gates(Shared& shared, const float* g, i64 time, int count, int lane) {
  float sum[2];
  int cut[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int t = 2 * lane + i;
    const float x = DECAYS && t < count ? g[t * time] : 0.0f;
    const bool forgets = x < FORGET;
    cut[i] = forgets ? t : i ? cut[0] : -1;
    sum[i] = forgets ? 0.0f : i ? sum[0] + x : x;
  }
  float before = sum[1];
  int last = cut[1];
#pragma unroll
  for (int by = 1; by < 32; by *= 2) {
    const float left = shuffle_up(before, by);
    const int cut_left = shuffle_up(last, by);
    if (lane >= by && last < 0) before += left, last = cut_left;
  }
  before = shuffle_up(before, 1), last = shuffle_up(last, 1);
  if (!lane) before = 0.0f, last = -1;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const bool open = cut[i] < 0;
    shared.sum[2 * lane + i] = open ? before + sum[i] : sum[i];
    shared.cut[2 * lane + i] = open ? last : cut[i];
  }
}

// e^(W[t] - W[s]), zero where step t no longer sees step s. A sum that restarts is below any that went before.
__device__ __forceinline__ float between(const Shared& shared, int t, int s) {
  return s >= shared.cut[t] ? expf(shared.sum[t] - shared.sum[s]) : 0.0f;
}
__device__ __forceinline__ float since_start(const Shared& shared, int t) { return shared.cut[t] < 0 ? expf(shared.sum[t]) : 0.0f; }

// Outputs of 16 steps from `first` on.
__device__ __forceinline__ void outputs(float (&o)[COLUMNS][4], const Shared& shared, int first, int lane) {
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
    load_a<false>(a, shared.q, first, j, lane);
#pragma unroll
    for (int n = 0; n < COLUMNS; n += 2) {
      load_b<true>(b, shared.state, j, 8 * n, lane);
      mma(o[n], a, b[0], b[1], S());
      mma(o[n + 1], a, b[2], b[3], S());
    }
#pragma unroll
    for (int n = 0; n < STEPS / 8; n += 2) {
      if (8 * n > first) continue;
      load_b<false>(b, shared.k, j, 8 * n, lane);
      mma(p[n], a, b[0], b[1], S());
      mma(p[n + 1], a, b[2], b[3], S());
    }
  }
  const int g = lane / 4, t = lane % 4;
  const float seen[2] = {since_start(shared, first + g), since_start(shared, first + g + 8)};
#pragma unroll
  for (int n = 0; n < COLUMNS; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) o[n][i] = seen[i / 2] == 0.0f ? 0.0f : o[n][i] * seen[i / 2];
#pragma unroll
  for (int n = 0; n < STEPS / 8; n += 2) {
    if (8 * n > first) continue;
    u32 a[4], b[4];
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int row = 0; row < 2; row++) {
        float pair[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const int step = first + g + 8 * row, s = 8 * (n + half) + 2 * t + i;
          pair[i] = s <= step ? p[n + half][2 * row + i] * between(shared, step, s) : 0.0f;
        }
        a[2 * half + row] = ::pair<S>(pair[0], pair[1]);
      }
#pragma unroll
    for (int c = 0; c < COLUMNS; c += 2) {
      load_b<true>(b, shared.v, 8 * n, 8 * c, lane);
      mma(o[c], a, b[0], b[1], S());
      mma(o[c + 1], a, b[2], b[3], S());
    }
  }
}

typedef float State[TILES][COLUMNS][4];

// Calls f(key, column, value) for each number of this thread's part of the state.
template <class F> __device__ __forceinline__ void each(State& state, int warp, int lane, F f) {
#pragma unroll
  for (int m = 0; m < TILES; m++)
#pragma unroll
    for (int n = 0; n < COLUMNS; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) f((warp * TILES + m) * 16 + lane / 4 + i / 2 * 8, 8 * n + lane % 4 * 2 + i % 2, state[m][n][i]);
}

__device__ __forceinline__ void advance(State& state, const Shared& shared, int warp, int lane) {
  const float kept = since_start(shared, STEPS - 1);
  each(state, warp, lane, [=](int, int, float& x) { x = kept == 0.0f ? 0.0f : x * kept; });
#pragma unroll
  for (int s = 0; s < STEPS; s += 16)
#pragma unroll
    for (int m = 0; m < TILES; m++) {
      u32 a[4], b[4];
      load_a<true>(a, shared.k, s, (warp * TILES + m) * 16, lane);
#pragma unroll
      for (int n = 0; n < COLUMNS; n += 2) {
        load_b<true>(b, shared.scaled, s, 8 * n, lane);
        mma(state[m][n], a, b[0], b[1], S());
        mma(state[m][n + 1], a, b[2], b[3], S());
      }
    }
}
