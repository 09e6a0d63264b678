// The gradients of the delta rule's arguments, chunk by chunk, from what the two passes of delta_chunk.cu kept.
//
// A block owns one chunk of one head. With E, the state S before the chunk, Y, and the gradient X of the state after it,
// U = beta E, R = beta Y, and scores under their decays e^(W[t] - W[s]):
//   dP = scale tril(dO U^T),  dL = -tril(R U^T, -1),  dv = R,  dbeta = rows of E Y,
//   dq = scale e^W (dO S^T) + dP K,   dk = [-e^W (R S^T) + dL K] + [e^(W[63] - W) (U X^T)] + [dP^T Q + dL^T K].
// The parts of dk in brackets are those of k[t] reading, of k[t] left in the state, and of k[t] met in the chunk. By what of
// W each of these depends on,
//   dg[t] = e^W[63] <S, X> + sum over s < t of k·dk left + sum over s >= t of (q·dq + k·dk reading - k·dk met).
//
// A warp has 16 steps and a share of the keys; values come in tiles of 64. All sums are float32.
// Bytes moved: q, k, do, E, Y and dq, dk, dv once, S and X once a chunk.
#ifndef STORAGE
#define STORAGE bfloat16
#define KEYS 128
#define WARPS 16
#define DECAYS 1
#define PACKED 1
#define TILES 2
#endif
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
      if (not_finite(rows[j]->bits)) *rows[j] = Narrow<S>::of(0.0f);
      if (not_finite(states[j]->bits)) *states[j] = Narrow<S>::of(0.0f);
    }
  }
  __syncthreads();
}

// Sees to it that the tile of values from v on is on its way.
__device__ __forceinline__ void fetch(Tile& to, const Layout& layout, const Place& place, const S* flow, const Kept& forth, const Kept& back,
                                      i64 row, i64 chunk, i64 v, i64 values) {
  const i64 t = chunk * STEPS, wide = forth.wide, steps = (row * layout.length + t) * wide + v, step = layout.operand[V].time;
  const i64 state = ((row * ((layout.length + STEPS - 1) / STEPS) + chunk) * wide + v) * KEYS;
  const int count = at_most_steps(layout.length - t), width = static_cast<int>(values - v < STEPS ? values - v : STEPS);
  load<STEPS, true>(to.e, forth.steps + steps, wide, count, STEPS);
  load<STEPS, true>(to.y, back.steps + steps, wide, count, STEPS);
  load<STEPS, PACKED>(to.flow, flow + place.at[V] + v + t * step, step, count, width);
  load<KEYS, true>(to.state, forth.states + state, KEYS, STEPS, KEYS);
  load<KEYS, true>(to.after, back.states + state, KEYS, STEPS, KEYS);
  commit();
}

extern "C" __global__ void __launch_bounds__(THREADS)
gradients(const __grid_constant__ Layout layout, const S* q, const S* k, const S* flow, const float* beta, const float* g,
          const __grid_constant__ Kept forth, const __grid_constant__ Kept back, S* dq, S* dk, S* dv, float* dbeta, float* dg,
          int keys, i64 values, float scale) {
  extern __shared__ __align__(16) u8 memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const i64 chunks = (layout.length + STEPS - 1) / STEPS, row = blockIdx.x / chunks, chunk = blockIdx.x % chunks;
  const i64 t0 = chunk * STEPS, at = row * layout.length + t0;
  const Place place = locate(layout, row);
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, i = warp % 4, share = warp / 4, first = 16 * i;
  const int count = at_most_steps(layout.length - t0);
  const i64 step_q = layout.operand[Q].time, step_k = layout.operand[K].time;
  load<KEYS, PACKED>(shared.q, q + place.at[Q] + t0 * step_q, step_q, count, keys);
  load<KEYS, PACKED>(shared.k, k + place.at[K] + t0 * step_k, step_k, count, keys);
  fetch(shared.tile[0], layout, place, flow, forth, back, row, chunk, 0, values);
  bool odd = warp == 0 && gates(shared.gates, steep(layout, place, g, beta, chunk, lane), lane), careful = false;
  for (int n = threadIdx.x; n < 3 * STEPS; n += THREADS) shared.bad[n / STEPS][n % STEPS] = 0;
  __syncthreads();

  const bool outer = share % 2 == 0;  // this warp's tiles are of dP, not of dL
  Sums query, reading, left;
  clear(query), clear(reading), clear(left);
  float scores[STEPS / 4 / SHARES][4], met = 0.0f, weight = 0.0f;
  clear(scores);
#pragma unroll 1
  for (i64 v = 0; v < forth.wide; v += STEPS) {
    const int width = static_cast<int>(values - v < STEPS ? values - v : STEPS);
    Tile& tile = shared.tile[v / STEPS % TILES];
    arrived<0>();
    odd |= inspect<STEPS, true>(tile.e, shared.bad[ERROR]) | inspect<STEPS, true>(tile.y, shared.bad[FLOW]);
    odd |= inspect<STEPS, PACKED>(tile.flow, shared.bad[OUT_FLOW]);
    odd |= inspect<KEYS, true>(tile.state, shared.other) | inspect<KEYS, true>(tile.after, shared.other);
    if (v == 0) odd |= inspect<KEYS, PACKED>(shared.q, shared.other) | inspect<KEYS, PACKED>(shared.k, shared.other);
    careful |= __syncthreads_or(odd);
    if (careful) take_out(shared, tile);
    const bool more = v + STEPS < forth.wide;
    Tile& other = shared.tile[(v / STEPS + 1) % TILES];
    if (TILES == 2 && more) fetch(other, layout, place, flow, forth, back, row, chunk, v + STEPS, values);
    weight += weigh(shared, tile, dv + at * values + v, values, count, width, careful);
    if (DECAYS)
      for (int n = threadIdx.x * 8; n < STEPS * KEYS; n += THREADS * 8) {
        const Half8 x = *reinterpret_cast<const Half8*>(&tile.state[n / KEYS][n % KEYS]);
        const Half8 y = *reinterpret_cast<const Half8*>(&tile.after[n / KEYS][n % KEYS]);
#pragma unroll
        for (int j = 0; j < 8; j++) met = __fmaf_rn(widen(x.item[j]), widen(y.item[j]), met);
      }
    __syncthreads();
#pragma unroll
    for (int c = 0; c < STEPS; c += 16) {
      u32 a[4], r[4], b[4];
      load_a<false>(a, tile.flow, first, c, lane);
      load_a<false>(r, tile.y, first, c, lane);
#pragma unroll
      for (int n = 0; n < 2 * BLOCKS / SHARES; n++) {
        const int j = share / 2 + n * (SHARES / 2);
        if (j > i) continue;
        load_b<false>(b, tile.e, c, 16 * j, lane);
        if (outer) mma_pair(scores[2 * n], scores[2 * n + 1], a, b);
        else mma_pair(scores[2 * n], scores[2 * n + 1], r, b);
      }
#pragma unroll
      for (int n = 0; n < SHARE / 8; n += 2) {
        load_b<true>(b, tile.state, c, share * SHARE + 8 * n, lane);
        mma_pair(query[n], query[n + 1], a, b);
        mma_pair(reading[n], reading[n + 1], r, b);
      }
      load_a<false>(a, tile.e, first, c, lane);
      add_keys(left, a, tile.after, c, share, lane);
    }
    __syncthreads();
    if (TILES == 1 && more) fetch(other, layout, place, flow, forth, back, row, chunk, v + STEPS, values);
  }
  Tile& last = shared.tile[0];
#pragma unroll
  for (int m = 0; m < 2 * BLOCKS / SHARES; m++) {
    const int j = share / 2 + m * (SHARES / 2);
    if (j > i) continue;
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const int t = first + lane / 4 + 8 * r, s = 16 * j + 8 * n + lane % 4 * 2;
        float x[2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const float y = (outer ? scale : -1.0f) * scores[2 * m + n][2 * r + e];
          x[e] = s + e < t + outer ? y * between(shared.gates, t, s + e) : 0.0f;
        }
        *reinterpret_cast<u32*>(outer ? &last.e[t][s] : &last.y[t][s]) = pair<S>(x[0], x[1]);
      }
  }
#pragma unroll
  for (int by = 1; by < QUARTERS; by *= 2) weight += shuffle_xor(weight, by);
  const int own = threadIdx.x / QUARTERS;
  if (lane % QUARTERS == 0 && own < count) dbeta[at + own] = careful && spoilt(shared, own, FLOW) ? not_a_number() : weight;
#pragma unroll
  for (int by = 16; by > 0; by /= 2) met += shuffle_xor(met, by);
  if (lane == 0) shared.part[warp] = met;
  __syncthreads();
  const Gates& gate = shared.gates;
  const int upper = first + lane / 4, lower = upper + 8;
  const float start[2] = {DECAYS ? gate.start[upper] : 1.0f, DECAYS ? gate.start[lower] : 1.0f};
  scale_rows(query, scale * start[0], scale * start[1]);
  scale_rows(reading, -start[0], -start[1]);
  if (DECAYS) {
    scale_rows(left, gate.end[upper], gate.end[lower]);
    dots(shared.sums[LEFT], left, shared.k, first, share, lane);
  }
#pragma unroll
  for (int j = 0; j < BLOCKS; j++) {
    if (j > i) continue;
    u32 a[4], r[4], b[4];
    load_a<false>(a, last.e, first, 16 * j, lane);
    load_a<false>(r, last.y, first, 16 * j, lane);
#pragma unroll
    for (int n = 0; n < SHARE / 8; n += 2) {
      load_b<true>(b, shared.k, 16 * j, share * SHARE + 8 * n, lane);
      mma_pair(query[n], query[n + 1], a, b);
      mma_pair(reading[n], reading[n + 1], r, b);
    }
  }
  if (DECAYS) {
    dots(shared.sums[QUERY], query, shared.q, first, share, lane);
    dots(shared.sums[READING], reading, shared.k, first, share, lane);
  }
  if (careful) spoil_rows(query, shared, first, OUT_FLOW, lane);
  store_keys(dq + at * keys, query, first, share, count, keys, lane);
#pragma unroll
  for (int n = 0; n < SHARE / 8; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) {
      left[n][e] += reading[n][e];
      reading[n][e] = 0.0f;
    }
#pragma unroll
  for (int j = 0; j < BLOCKS; j++) {
    if (j < i) continue;
    u32 a[4];
    load_a<true>(a, last.e, 16 * j, first, lane);
    add_keys(reading, a, shared.q, 16 * j, share, lane);
    load_a<true>(a, last.y, 16 * j, first, lane);
    add_keys(reading, a, shared.k, 16 * j, share, lane);
  }
  if (DECAYS) dots(shared.sums[MET], reading, shared.k, first, share, lane);
#pragma unroll
  for (int n = 0; n < SHARE / 8; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) left[n][e] += reading[n][e];
  if (careful) spoil_rows(left, shared, first, FLOW, lane);
  store_keys(dk + at * keys, left, first, share, count, keys, lane);
  if (!DECAYS) return;
  __syncthreads();
  if (warp == 0) gate_gradients(shared, dg + at, count, careful, lane);
}
