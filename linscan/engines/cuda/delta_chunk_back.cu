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
#include "delta_back.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
gradients(const __grid_constant__ Layout layout, const S* q, const S* k, const S* flow, const float* beta, const float* g,
          const __grid_constant__ Kept forth, const __grid_constant__ Kept back, S* dq, S* dk, S* dv, float* dbeta, float* dg,
          int keys, i64 values, float scale) {
  extern __shared__ __align__(16) u8 memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const u32 chunks = static_cast<u32>((layout.length + STEPS - 1) / STEPS), row = blockIdx.x / chunks;
  const u32 chunk = blockIdx.x % chunks;
  const i64 t0 = i64(chunk) * STEPS, at = row * layout.length + t0;
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
