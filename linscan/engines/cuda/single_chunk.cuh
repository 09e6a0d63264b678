// One chunk of float32 matrix states on tensor cores: its arrays, its outputs, and the step of the state. See single_attention.cu.
#pragma once
#include "numbers.cuh"

#ifndef DELTA  // 1: the delta rule, single_delta.cu
#define DELTA 0
#endif
constexpr int WARPS = SLICE / 16;
#include "attention_tiles.cuh"
#include "attention_decays.cuh"
#include "split.cuh"

constexpr int BLOCKS_OF_STEPS = STEPS / 16, ACROSS = SLICE + 4;  // rows so far apart that what lanes read lies in different banks
constexpr float LARGE = 0x1p80f;  // units above might make sums overflow that are not too large in the end

// Rows as sums of two float16 numbers.
template <int WIDTH> struct Rows { u16 most[STEPS][WIDTH + PAD], rest[STEPS][WIDTH + PAD]; };
struct Shared {
  Rows<KEYS> queries, keys;
  Rows<STEPS> scores;
  Rows<16> inverse;  // of the delta rule's diagonal blocks, whose units are in unit_v
  float q[STEPS][KEYS], k[STEPS][KEYS], v[2][STEPS][ACROSS];  // as they came
  Gates gates[2];
  float unit_q[STEPS], unit_k[STEPS], unit_v[STEPS], weight[STEPS], since[STEPS];  // `weight` is what a score is times
  float unit_p[BLOCKS_OF_STEPS][STEPS], part[WARPS];
  Place place;
};
typedef float Values[STEPS][ACROSS];
typedef float State[KEYS / 8][4];  // transposed, 16 x 8 tiles: a warp has 16 columns, all keys
typedef float Outputs[STEPS / 8][4];  // transposed likewise

__device__ __forceinline__ int column(int half) { return threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + 8 * half; }

// Calls f(number, its place, whether it is inside) for this thread's part of the state, or of the outputs, whose rows of `width`
// numbers are `stride` apart.
template <int TILES, class T, class F>
__device__ __forceinline__ void each(float (&x)[TILES][4], T* at, i64 stride, int rows, int width, F f) {
  const int first = threadIdx.x % 4 * 2;
  const bool mine[2] = {column(0) < width, column(1) < width};
  at += first * stride + column(0);
#pragma unroll
  for (int n = 0; n < TILES; n++, at += 8 * stride)
#pragma unroll
    for (int i = 0; i < 4; i++) f(x[n][i], at + i % 2 * stride + i / 2 * 8, 8 * n + first + i % 2 < rows && mine[i / 2]);
}
__device__ __forceinline__ void put(State& state, float* to, int keys, i64 values, int width) {
  each(state, to, values, keys, width, [](float x, float* to, bool inside) {
    if (inside) *to = x;
  });
}

// Eight lanes share a row; the larger of what they hold of it, as bits, which order NaN above all numbers.
template <int PACKS> __device__ __forceinline__ u32 largest(const float4 (&x)[PACKS]) {
  u32 most = 0;
#pragma unroll
  for (int n = 0; n < PACKS; n++) most = larger(larger(most, larger(size(x[n].x), size(x[n].y))), larger(size(x[n].z), size(x[n].w)));
#pragma unroll
  for (int by = 1; by < 8; by *= 2) most = larger(most, shuffle_xor(most, by));
  return most;
}
template <int PACKS, int STRIDE> __device__ __forceinline__ void look(float4 (&x)[PACKS], const float (*from)[STRIDE], int row, int lane) {
#pragma unroll
  for (int n = 0; n < PACKS; n++) x[n] = *reinterpret_cast<const float4*>(&from[row][32 * n + lane % 8 * 4]);
}
template <int WIDTH, int PACKS> __device__ __forceinline__ void keep(Rows<WIDTH>& to, const float4 (&x)[PACKS], float factor, int row, int lane) {
#pragma unroll
  for (int n = 0; n < PACKS; n++) {
    u32 most[2], rest[2];
    split(most[0], rest[0], x[n].x * factor, x[n].y * factor), split(most[1], rest[1], x[n].z * factor, x[n].w * factor);
    *reinterpret_cast<uint2*>(&to.most[row][32 * n + lane % 8 * 4]) = {most[0], most[1]};
    *reinterpret_cast<uint2*>(&to.rest[row][32 * n + lane % 8 * 4]) = {rest[0], rest[1]};
  }
}

// Splits the chunk's queries and keys, each row in a unit of its own; returns whether some number forbids it. In `beta` are
// those of this lane's rows.
constexpr int PASSES = STEPS / (4 * WARPS);
template <bool OUT>
__device__ __forceinline__ bool halve(Shared& shared, const Values& v, const Gates& gates, const float (&beta)[PASSES], int lane) {
  bool wild = false;
#pragma unroll
  for (int n = 0; n < PASSES; n++) {
    const int row = threadIdx.x / 8 + 4 * WARPS * n;
    float4 x[KEYS / 32], y[KEYS / 32], z[SLICE / 32];
    look(x, shared.k, row, lane), look(z, v, row, lane);
    if (OUT) look(y, shared.q, row, lane);
    const u32 most_k = largest(x), most_v = largest(z), most_q = OUT ? largest(y) : 0;
    const float unit_k = unit(most_k), unit_v = unit(most_v), unit_q = unit(most_q);
    const float weight = unit_k * (DELTA ? beta[n] : unit_v);
    wild |= !(unit_q < INFINITY && fabsf(weight) < LARGE && unit_v < INFINITY);
    keep(shared.keys, x, over(unit_k), row, lane);
    if (OUT) keep(shared.queries, y, over(unit_q), row, lane);
    if (lane % 8) continue;
    shared.unit_k[row] = unit_k, shared.unit_q[row] = unit_q, shared.weight[row] = weight, shared.since[row] = since_start(gates, row);
    if (!DELTA) shared.unit_v[row] = unit_v;
  }
  return wild;
}

// Of each of this thread's two columns of the state; whether one is too large.
__device__ __forceinline__ bool units(float (&to)[2], State& state) {
  u32 most[2] = {0, 0};
#pragma unroll
  for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) most[i / 2] = larger(most[i / 2], size(state[n][i]));
#pragma unroll
  for (int half = 0; half < 2; half++) to[half] = unit(over_lanes(most[half]));
  return !(to[0] < LARGE && to[1] < LARGE);
}

// Of this lane's two steps of a tile.
__device__ __forceinline__ float2 two_of(const float (&x)[STEPS], int first, int lane) {
  return *reinterpret_cast<const float2*>(&x[first + lane % 4 * 2]);
}

// What the state before the chunk gives the queries, and, for the delta rule, the keys: this is taken off the values.
__device__ __forceinline__ void from_state(Outputs& o, Values& v, State& state, const float (&units)[2], Shared& shared, int lane) {
  Outputs read = {};
  const float factor[2] = {over(units[0]), over(units[1])}, back[2] = {units[0] * BACK, units[1] * BACK};
#pragma unroll
  for (int j = 0; j < KEYS / 16; j++) {
    Parts a, b[STEPS / 16];
#pragma unroll
    for (int n = 0; n < 4; n++) {
      const float(&x)[4] = state[2 * j + n / 2];
      split(a.most[n], a.rest[n], x[n % 2 * 2] * factor[n % 2], x[n % 2 * 2 + 1] * factor[n % 2]);
    }
#pragma unroll
    for (int n = 0; n < STEPS / 16; n++) load_parts<false>(b[n], shared.queries, 16 * j, 16 * n, lane);
    multiply_rest<STEPS / 8>(o, a, b), multiply_most<STEPS / 8>(o, a, b);
#pragma unroll
    for (int n = 0; DELTA && n < STEPS / 16; n++) {
      float sum[2][4] = {};
      load_parts<false>(b[n], shared.keys, 16 * j, 16 * n, lane);
      multiply_rest<2>(sum, a, &b[n]), multiply_most<2>(sum, a, &b[n]);
#pragma unroll
      for (int i = 0; i < 8; i++) read[2 * n + i / 4][i % 4] += sum[i / 4][i % 4];
    }
  }
#pragma unroll
  for (int n = 0; n < STEPS / 8; n++) {
    const float2 since = two_of(shared.since, 8 * n, lane);
#pragma unroll
    for (int i = 0; i < 4; i++) o[n][i] *= back[i / 2] * (i % 2 ? since.y : since.x);
    const float2 unit = two_of(shared.unit_k, 8 * n, lane);
#pragma unroll
    for (int i = 0; DELTA && i < 4; i++) {
      float& x = v[8 * n + lane % 4 * 2 + i % 2][column(i / 2)];
      x = __fmaf_rn(-read[n][i], back[i / 2] * (i % 2 ? since.y * unit.y : since.x * unit.x), x);
    }
  }
}

// The values of 16 steps as the A of a product, each times what f gives for its step.
template <class F> __device__ __forceinline__ void columns(float2 (&x)[4], const Values& v, int s, int lane, F f) {
#pragma unroll
  for (int n = 0; n < 4; n++) {
    const int step = s + lane % 4 * 2 + n / 2 * 8;
    x[n] = {v[step][column(n % 2)] * f(step), v[step + 1][column(n % 2)] * f(step + 1)};
  }
}

// Outputs get what 16 steps of the chunk give, the A of a product: `units` of its columns.
__device__ __forceinline__ void from_block(Outputs& o, const Parts& a, const float (&units)[2], int j, Shared& shared, int lane) {
#pragma unroll
  for (int m = j; m < BLOCKS_OF_STEPS; m++) {
    float sum[2][4] = {};
    Parts b;
    load_parts<false>(b, shared.scores, 16 * j, 16 * m, lane);
    multiply_rest<2>(sum, a, &b), multiply_most<2>(sum, a, &b);
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const float2 back = two_of(shared.unit_p[j], 16 * m + 8 * n, lane);
#pragma unroll
      for (int i = 0; i < 4; i++) o[2 * m + n][i] = __fmaf_rn(sum[n][i], (i % 2 ? back.y : back.x) * units[i / 2], o[2 * m + n][i]);
    }
  }
}
__device__ __forceinline__ void times_unit(Outputs& o, Shared& shared, int lane) {
#pragma unroll
  for (int n = 0; n < STEPS / 8; n++) {
    const float2 unit = two_of(shared.unit_q, 8 * n, lane);
#pragma unroll
    for (int i = 0; i < 4; i++) o[n][i] *= i % 2 ? unit.y : unit.x;
  }
}
__device__ __forceinline__ void from_chunk(Outputs& o, const Values& v, Shared& shared, int lane) {
  const float ones[2] = {1.0f, 1.0f};
#pragma unroll
  for (int j = 0; j < BLOCKS_OF_STEPS; j++) {
    float2 x[4];
    Parts a;
    columns(x, v, 16 * j, lane, [&](int s) { return over(shared.unit_v[s]); });
#pragma unroll
    for (int n = 0; n < 4; n++) split(a.most[n], a.rest[n], x[n].x, x[n].y);
    from_block(o, a, ones, j, shared, lane);
  }
  times_unit(o, shared, lane);
}

// S' = e^W[63] S + (e^(W[63] - W) K)^T V.
__device__ __forceinline__ void advance(State& state, const Values& v, Shared& shared, const Gates& gates, int lane) {
  constexpr int GROUP = 4;
  const float kept = since_start(gates, STEPS - 1);
  float2 x[BLOCKS_OF_STEPS][4];
  Parts a[BLOCKS_OF_STEPS];
  u32 most[2] = {0, 0};
#pragma unroll
  for (int j = 0; j < BLOCKS_OF_STEPS; j++) {
    columns(x[j], v, 16 * j, lane, [&](int s) { return gates.after[s] * (DELTA ? shared.weight : shared.unit_k)[s]; });
#pragma unroll
    for (int n = 0; n < 4; n++) most[n % 2] = larger(most[n % 2], larger(size(x[j][n].x), size(x[j][n].y)));
  }
  const float units[2] = {unit(over_lanes(most[0])), unit(over_lanes(most[1]))};
  const float factor[2] = {over(units[0]), over(units[1])}, back[2] = {units[0] * BACK, units[1] * BACK};
  if (kept == 0.0f)
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) state[n][i] = 0.0f;
#pragma unroll
  for (int j = 0; j < BLOCKS_OF_STEPS; j++)
#pragma unroll
    for (int n = 0; n < 4; n++) split(a[j].most[n], a[j].rest[n], x[j][n].x * factor[n % 2], x[j][n].y * factor[n % 2]);
#pragma unroll
  for (int m = 0; m < KEYS / 8; m += GROUP) {
    float sum[GROUP][4] = {};
#pragma unroll
    for (int j = 0; j < BLOCKS_OF_STEPS; j++) {
      Parts b[GROUP / 2];
#pragma unroll
      for (int n = 0; n < GROUP / 2; n++) load_parts<true>(b[n], shared.keys, 16 * j, 8 * m + 16 * n, lane);
      multiply_rest<GROUP>(sum, a[j], b), multiply_most<GROUP>(sum, a[j], b);
    }
#pragma unroll
    for (int n = 0; n < GROUP; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) state[m + n][i] = __fmaf_rn(sum[n][i], back[i / 2], kept * state[m + n][i]);
  }
}

// A chunk with NaN or inf, or with numbers that might grow to it, is made step after step in float32: these would reach other
// steps and columns otherwise. A thread owns a column; outputs take the place of the values, `write` is given what is written.
template <bool OUT, class F>
__device__ __forceinline__ void step_by_step(float (*memory)[SLICE], Values& out, const Gates& gates, const float* q, const float* k,
                                             const float* v, const float* beta, const i64 (&step)[4], int count, int keys,
                                             int width, F write) {
  for (int c = threadIdx.x; c < width; c += THREADS)
    for (int t = 0; t < count; t++) {
      const float e = DECAYS ? expf(gates.gate[t]) : 1.0f, strength = DELTA ? beta[t * step[3]] : 1.0f;
      float o = 0.0f, value = v[t * step[2] + c];
      for (int key = 0; DELTA && e != 0.0f && key < keys; key++) value = __fmaf_rn(-e * k[t * step[1] + key], memory[key][c], value);
      for (int key = 0; key < keys; key++) {
        float& x = memory[key][c];
        x = __fmaf_rn(strength * k[t * step[1] + key], value, e == 0.0f ? 0.0f : e * x);
        if (OUT) o = __fmaf_rn(q[t * step[0] + key], x, o);
      }
      out[t][c] = o;
      write(t, c, value);
    }
}
