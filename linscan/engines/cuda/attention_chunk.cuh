// One chunk of linear attention on tensor cores: its gates, its outputs, and the step of the state. See linear_attention.cu.
#pragma once
#include "numbers.cuh"

// Warps that share out the columns; measured: at 128 keys, two would be slower in 16 bits.
constexpr int HALVES = KEYS == 128 && sizeof(STORAGE) == 2 ? 1 : 2;
constexpr int WARPS = 4 * HALVES;            // of a block: four for the steps, or keys, times those for the columns
#include "attention_tiles.cuh"

constexpr int BLOCKS = KEYS <= 128 && !SINGLE ? 2 : 1;  // of a multiprocessor
constexpr int TILES = KEYS / 64, COLUMNS = SLICE / 8 / HALVES;  // of the state: 16 x 8 tiles of a warp
constexpr float FORGET = -88.0f;  // e^g below the smallest normal number: what was before is no more

struct Stage { S q[STEPS][KEYS + PAD], k[STEPS][KEYS + PAD], v[STEPS][SLICE + PAD_ACROSS]; };
struct Shared {
  Stage stage[2];
  S state[KEYS][SLICE + PAD_ACROSS];
  float sum[STEPS], after[STEPS];  // W, and e^(W[63] - W)
  float rest[STEPS], gate[STEPS];  // of float32 arrays: what W is more than `sum`, and g
  float part[WARPS], until[WARPS][STEPS];  // each warp's own: e^(W[first - 1] - W[s]) for the steps s before its first
  S scores[SINGLE ? STEPS : 1][STEPS + PAD];  // of float32 arrays: each warp of a pair makes half of them for both
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

__device__ __forceinline__ float exponential(float x) { return SINGLE ? expf(x) : __expf(x); }

template <class T> struct Sum { typedef float type; };
template <> struct Sum<float> { typedef double type; };  // differences of W are as exact as their exponential

// Sums of g over the chunk; one warp.
__device__ __forceinline__ void gates(Shared& shared, const float (&g)[2], int lane) {
  typename Sum<S>::type sum[2];
  int cut[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const bool forgets = g[i] < FORGET;
    cut[i] = forgets ? 2 * lane + i : i ? cut[0] : -1;
    if (SINGLE) shared.gate[2 * lane + i] = g[i];
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
    shared.sum[s] = static_cast<float>(sum[i]);
    if (SINGLE) shared.rest[s] = static_cast<float>(sum[i] - shared.sum[s]);
    shared.cut[s] = open ? last : cut[i];
    shared.after[s] = s >= end ? exponential(static_cast<float>(all - sum[i])) : 0.0f;
  }
}

// e^(W[t] - W[s]), zero where step t no longer sees step s. A sum that restarts is below any that went before.
__device__ __forceinline__ float between(const Shared& shared, int t, int s) {
  if (s < shared.cut[t]) return 0.0f;
  const float apart = shared.sum[t] - shared.sum[s];
  return exponential(SINGLE ? apart + (shared.rest[t] - shared.rest[s]) : apart);
}
__device__ __forceinline__ float since_start(const Shared& shared, int t) { return shared.cut[t] < 0 ? exponential(shared.sum[t]) : 0.0f; }

// This warp's part of the steps, or the keys, and of the columns.
__device__ __forceinline__ int quarter() { return threadIdx.x / 32 % 4; }
__device__ __forceinline__ int half_column() { return threadIdx.x / 128 * (8 * COLUMNS); }

// Outputs of this warp's 16 steps and columns.
__device__ __forceinline__ void outputs(float (&o)[COLUMNS][4], Shared& shared, const Stage& stage, int lane) {
  const int first = 16 * quarter(), column = half_column();
  const auto absent = [=](int n) { return 8 * n > first || (SINGLE && n / 2 % HALVES != static_cast<int>(threadIdx.x) / 128); };
  const auto add = [&](const Both(&a)[4], int n) {
#pragma unroll
    for (int c = 0; c < COLUMNS; c += 2) {
      Both b[4];
      load_b<true>(b, stage.v, 8 * n, column + 8 * c, lane);
      mma(o[c], a, b[0], b[1], S());
      mma(o[c + 1], a, b[2], b[3], S());
    }
  };
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
    Both a[4], b[4];
    load_a<false>(a, stage.q, first, j, lane);
#pragma unroll
    for (int n = 0; n < COLUMNS; n += 2) {
      load_b<true>(b, shared.state, j, column + 8 * n, lane);
      mma(o[n], a, b[0], b[1], S());
      mma(o[n + 1], a, b[2], b[3], S());
    }
#pragma unroll
    for (int n = 0; n < STEPS / 8; n += 2) {
      if (absent(n)) continue;
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
    if (absent(n)) continue;
    Both a[4];
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
      for (int i = 0; i < 2 && SINGLE; i++) *reinterpret_cast<Both*>(&shared.scores[SINGLE ? first + g + 8 * i : 0][s]) = a[2 * half + i];
    }
    if (!SINGLE) add(a, n);
  }
  if (!SINGLE) return;
  __syncthreads();
#pragma unroll
  for (int n = 0; n < STEPS / 8; n += 2) {
    if (8 * n > first) continue;
    Both a[4];
    load_a<false>(a, shared.scores, first, 8 * n, lane);
    add(a, n);
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
    Both b[COLUMNS / 2][4];
#pragma unroll
    for (int n = 0; n < COLUMNS; n += 2) load_b<true>(b[n / 2], stage.v, s, half_column() + 8 * n, lane);
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

// Whether this thread finds in float32 arrays what tensor cores would carry to other steps: NaN, inf and near it, or decays
// that grow. 16-bit ones are not asked.
__device__ __forceinline__ u32 full(float x) { return (__float_as_uint(x) & 0x7fffffffu) + 0x01800000u; }  // from 2^126: bit 31
template <int WIDTH, class Row> __device__ __forceinline__ u32 full(const Row* x) {
  u32 odd = 0;
  for (int i = threadIdx.x; i < STEPS * (WIDTH / 4); i += THREADS) {
    const float4 y = *reinterpret_cast<const float4*>(&x[i / (WIDTH / 4)][i % (WIDTH / 4) * 4]);
    odd |= full(y.x) | full(y.y) | full(y.z) | full(y.w);
  }
  return odd;
}
template <bool OUT> __device__ __forceinline__ bool is_wild(State& state, const Shared& shared, const Stage& stage, int lane) {
  u32 odd = full<KEYS>(stage.k) | full<SLICE>(stage.v);
  if (OUT) odd |= full<KEYS>(stage.q);
  each(state, lane, [&](int, int, float& x) { odd |= full(x); });
  return odd >> 31 || (DECAYS && threadIdx.x < STEPS && !(shared.gate[threadIdx.x] <= 1.0f));
}

// The chunk step after step, in shared memory; outputs take the place of the values. A thread owns a column.
__device__ __forceinline__ void step_by_step(State& state, Shared& shared, Stage& stage, int keys, int lane) {
  each(state, lane, [&](int key, int c, float& x) { shared.state[key][c] = Narrow<S>::of(x); });
  __syncthreads();
  for (int c = threadIdx.x; c < SLICE; c += THREADS)
    for (int t = 0; t < STEPS; t++) {
      const float e = DECAYS ? expf(shared.gate[t]) : 1.0f, v = widen(stage.v[t][c]);
      float o = 0.0f;
      for (int key = 0; key < keys; key++) {
        const float before = e == 0.0f ? 0.0f : e * widen(shared.state[key][c]), x = __fmaf_rn(widen(stage.k[t][key]), v, before);
        shared.state[key][c] = Narrow<S>::of(x), o = __fmaf_rn(widen(stage.q[t][key]), x, o);
      }
      stage.v[t][c] = Narrow<S>::of(o);
    }
  __syncthreads();
  each(state, lane, [&](int key, int c, float& x) { x = widen(shared.state[key][c]); });
}
// Outputs of this warp's 16 steps and columns, after that.
__device__ __forceinline__ void done(float (&o)[COLUMNS][4], const Stage& stage, int lane) {
#pragma unroll
  for (int n = 0; n < COLUMNS; n++)
#pragma unroll
    for (int i = 0; i < 4; i++)
      o[n][i] = widen(stage.v[16 * quarter() + lane / 4 + i / 2 * 8][half_column() + 8 * n + lane % 4 * 2 + i % 2]);
}
