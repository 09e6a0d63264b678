// What the gradients of a chunk of the delta rule are made with: its arrays in shared memory, and a warp's share of the keys.
// See delta_chunk_back.cu.
#pragma once
#include "delta_chunk.cuh"

constexpr int SHARES = WARPS / 4, SHARE = KEYS / SHARES;  // of the keys
constexpr int QUARTERS = THREADS / STEPS;                 // threads to a step

// What belongs to 64 values.
struct Tile {
  S e[STEPS][WIDTH], y[STEPS][WIDTH], flow[STEPS][WIDTH];  // E, then U, and dP of the chunk at last; Y, then R, and dL; dO
  S state[STEPS][KEYS + PAD], after[STEPS][KEYS + PAD];    // S and X, a row for each value
};
struct Shared {
  Tile tile[TILES];  // with two the next one is on its way
  S q[STEPS][KEYS + PAD], k[STEPS][KEYS + PAD];
  Gates gates;
  float sums[4][SHARES][STEPS], part[WARPS];
  int bad[3][STEPS], other[STEPS];  // steps that are not finite in E, Y and dO; of q, k, S and X it is not asked which
};
enum { LEFT, READING, QUERY, MET };  // of k and q with parts of their gradients
enum { ERROR, FLOW, OUT_FLOW };      // E, Y, dO

typedef float Sums[SHARE / 8][4];  // of a warp: 16 steps by its share of the keys

// Whether what depends on E and on another one is not finite at step t.
__device__ __forceinline__ bool spoilt(const Shared& shared, int t, int other) { return shared.bad[ERROR][t] || shared.bad[other][t]; }
__device__ __forceinline__ void spoil_rows(Sums& x, const Shared& shared, int first, int other, int lane) {
#pragma unroll
  for (int r = 0; r < 2; r++)
    if (spoilt(shared, first + lane / 4 + 8 * r, other))
#pragma unroll
      for (int n = 0; n < SHARE / 8; n++) x[n][2 * r] = x[n][2 * r + 1] = not_a_number();
}

// The sums over keys of rows of numbers times `x`; the shares of the keys are added where they are used.
template <class Row>
__device__ __forceinline__ void dots(float (&to)[SHARES][STEPS], const Sums& x, const Row* rows, int first, int share, int lane) {
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int t = first + lane / 4 + 8 * r;
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < SHARE / 8; n++) {
      const u32 word = *reinterpret_cast<const u32*>(&rows[t][share * SHARE + 8 * n + lane % 4 * 2]);
      sum = __fmaf_rn(x[n][2 * r], low(word, S()), sum);
      sum = __fmaf_rn(x[n][2 * r + 1], high(word, S()), sum);
    }
    sum += shuffle_xor(sum, 1), sum += shuffle_xor(sum, 2);
    if (lane % 4 == 0) to[share][t] = sum;
  }
}

// x += a (16 steps by 16) times 16 rows of keys.
template <class Row> __device__ __forceinline__ void add_keys(Sums& x, const u32 (&a)[4], const Row* rows, int inner, int share, int lane) {
#pragma unroll
  for (int n = 0; n < SHARE / 8; n += 2) {
    u32 b[4];
    load_b<true>(b, rows, inner, share * SHARE + 8 * n, lane);
    mma_pair(x[n], x[n + 1], a, b);
  }
}

__device__ __forceinline__ void scale_rows(Sums& x, float upper, float lower) {
#pragma unroll
  for (int n = 0; n < SHARE / 8; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) x[n][i] = times(i < 2 ? upper : lower, x[n][i]);
}

__device__ __forceinline__ void store_keys(S* to, const Sums& x, int first, int share, int count, int keys, int lane) {
#pragma unroll
  for (int n = 0; n < SHARE / 8; n++)
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int t = first + lane / 4 + 8 * r, key = share * SHARE + 8 * n + lane % 4 * 2;
      S* at = to + t * i64(keys) + key;
      if (t >= count) continue;
      if (keys % 2 == 0) {
        if (key < keys) *reinterpret_cast<u32*>(at) = pair<S>(x[n][2 * r], x[n][2 * r + 1]);
      } else {
        if (key < keys) at[0] = Narrow<S>::of(x[n][2 * r]);
        if (key + 1 < keys) at[1] = Narrow<S>::of(x[n][2 * r + 1]);
      }
    }
}

// In place of E and Y what is written, U, and the gradient of v, R, which goes out; a thread has a part of a step.
// Returns its part of dbeta.
__device__ __forceinline__ float weigh(const Shared& shared, Tile& tile, S* dv, i64 values, int count, int width, bool careful) {
  const int t = threadIdx.x / QUARTERS, c = threadIdx.x % QUARTERS * (STEPS / QUARTERS);
  const float beta = shared.gates.beta[t];
  const bool bad = careful && shared.bad[FLOW][t];
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < STEPS / QUARTERS; j += 8) {
    u32 *errors = reinterpret_cast<u32*>(&tile.e[t][c + j]), *flows = reinterpret_cast<u32*>(&tile.y[t][c + j]);
    Half8 y;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const u32 e = errors[i], f = flows[i];
      sum = __fmaf_rn(low(e, S()), low(f, S()), sum), sum = __fmaf_rn(high(e, S()), high(f, S()), sum);
      errors[i] = pair<S>(beta * low(e, S()), beta * high(e, S()));
      flows[i] = reinterpret_cast<u32*>(&y)[i] = pair<S>(beta * low(f, S()), beta * high(f, S()));
    }
    if (t >= count) continue;
    if (bad)
#pragma unroll
      for (int i = 0; i < 8; i++) y.item[i] = Narrow<S>::of(not_a_number());
    if (values % 8 == 0) {
      if (c + j < width) *reinterpret_cast<Half8*>(dv + t * values + c + j) = y;
    } else {
#pragma unroll
      for (int i = 0; i < 8; i++)
        if (c + j + i < width) dv[t * values + c + j + i] = y.item[i];
    }
  }
  return sum;
}

// dg of the chunk, two steps a lane; one warp.
__device__ __forceinline__ void gate_gradients(const Shared& shared, float* dg, int count, bool careful, int lane) {
  float flow[2], left[2], last = 0.0f;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int t = 2 * lane + i;
    const auto& sums = shared.sums;
    flow[i] = left[i] = 0.0f;
#pragma unroll
    for (int n = 0; n < SHARES; n++) {
      flow[i] += sums[QUERY][n][t] + sums[READING][n][t] - sums[MET][n][t];
      left[i] += sums[LEFT][n][t];
    }
  }
  for (int w = 0; w < WARPS; w++) last += shared.part[w];
  last = times(shared.gates.start[STEPS - 1], last);
  float before = left[0] + left[1], behind = flow[0] + flow[1];
#pragma unroll
  for (int by = 1; by < 32; by *= 2) {
    const float x = shuffle_up(before, by), y = shuffle_down(behind, by);
    if (lane >= by) before += x;
    if (lane + by < 32) behind += y;
  }
  before = shuffle_up(before, 1), behind = shuffle_down(behind, 1);
  if (lane == 0) before = 0.0f;
  if (lane == 31) behind = 0.0f;
  before += last;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int t = 2 * lane + i;
    const float sum = i ? before + left[0] + (behind + flow[1]) : before + (behind + flow[1] + flow[0]);
    const bool bad = careful && spoilt(shared, t, FLOW);
    if (t < count) dg[t] = shared.gates.cut[t] == t ? 0.0f : bad ? not_a_number() : sum;
  }
}

// Takes out what is not finite: whole rows of steps; of S and X everything, since E and Y then say which steps see it.
__device__ __forceinline__ void take_out(Shared& shared, Tile& tile) {
  clear_rows<STEPS>(tile.e, shared.bad[ERROR]), clear_rows<STEPS>(tile.y, shared.bad[FLOW]);
  clear_rows<STEPS>(tile.flow, shared.bad[OUT_FLOW]);
  for (int i = threadIdx.x; i < STEPS * KEYS; i += THREADS) {
    S *rows[2] = {&shared.q[i / KEYS][i % KEYS], &shared.k[i / KEYS][i % KEYS]};
    S *states[2] = {&tile.state[i / KEYS][i % KEYS], &tile.after[i / KEYS][i % KEYS]};
    for (int j = 0; j < 2; j++) {
      if (not_finite<S>(rows[j]->bits)) *rows[j] = Narrow<S>::of(0.0f);
      if (not_finite<S>(states[j]->bits)) *states[j] = Narrow<S>::of(0.0f);
    }
  }
  __syncthreads();
}

// Sees to it that the tile of values from v on is on its way.
__device__ __forceinline__ void fetch(Tile& to, const Layout& layout, const Place& place, const S* flow, const Kept& forth, const Kept& back,
                                      u32 row, u32 chunk, i64 v, i64 values) {
  const i64 t = i64(chunk) * STEPS, wide = forth.wide, steps = (row * layout.length + t) * wide + v, step = layout.operand[V].time;
  const i64 state = ((row * ((layout.length + STEPS - 1) / STEPS) + chunk) * wide + v) * KEYS;
  const int count = at_most_steps(layout.length - t), width = static_cast<int>(values - v < STEPS ? values - v : STEPS);
  load<STEPS, true>(to.e, forth.steps + steps, wide, count, STEPS);
  load<STEPS, true>(to.y, back.steps + steps, wide, count, STEPS);
  load<STEPS, PACKED>(to.flow, flow + place.at[V] + v + t * step, step, count, width);
  load<KEYS, true>(to.state, forth.states + state, KEYS, STEPS, KEYS);
  load<KEYS, true>(to.after, back.states + state, KEYS, STEPS, KEYS);
  commit();
}
