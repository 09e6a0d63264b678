// Gradients of the arguments of dplr_attention, and of the delta rule, chunk by chunk, from what dplr_chunk.cu kept.
//
// With U, Y, the states S before and the gradients X after each chunk, and A' for scores' gradients, rows of what comes by
// columns of what was written, A'qb = tril(dO U^T), A'ab = tril(Y U^T, -1), A'qk = tril(dO V^T), A'ak = tril(Y V^T, -1):
//   dq[t] = e^W[t] (S dO[t]) + sum over s of e^(W[t] - W[s]) (A'qb[t, s] b[s] + A'qk[t, s] k[s]), da the same of Y and A'a.
//   db[s] = e^(W[63] - W[s]) (X U[s]) + sum over t of e^(W[t] - W[s]) (A'qb[t, s] q[t] + A'ab[t, s] a[t]), dk of V and A'.k.
// Of what db consists the first is `left` in the state, the second `met` in the chunk; by what of W each depends on,
//   dg[t] = e^W[63] sum over values of S X + sum over s < t of (b db left + k dk left)
//           + sum over s >= t of (q dq + a da - b db met - k dk met),   a EARLY from s > t on,
// all but the state's own part in differences of sums over this chunk alone; what a step reads of itself stays out of both.
//
// A block owns SLICE channels of a chunk. Blocks of 16 steps meet in tensor cores, four warps for the steps times two for the
// channels, with the decays of blocks between them applied as they are summed; steps of one block meet in float32, a thread
// for each block and channel. All is divided by `scale`, which comes last.
//
// Bytes moved: dO, U, Y (and V), S and X for each slice; q, a, b, k, g and their gradients once.
// Limits: none on values and steps; keys as dplr_scores.cu.
#ifndef STORAGE  // the launcher's macros, as the tests compile them
#define STORAGE bfloat16
#define KEYS 128
#define DECAYS 2
#define EARLY 1
#define KEYED 1
#define PACKED 1
#endif
constexpr int WARPS = 8;  // of a block
#include "dplr_back.cuh"

typedef float Part[TILES][4];  // of a warp: 16 steps by HALF channels

// x += a (16 steps by 16) times 16 rows of channels from `column` on.
template <class Row> __device__ __forceinline__ void add(Part& x, const u32 (&a)[4], const Row* rows, int inner, int column, int lane) {
#pragma unroll
  for (int n = 0; n < TILES; n += 2) {
    u32 b[4];
    load_b<true>(b, rows, inner, column + 8 * n, lane);
    mma_pair(x[n], x[n + 1], a, b);
  }
}
__device__ __forceinline__ void fade(Part& x, const float* whole, int lane) {
#pragma unroll
  for (int n = 0; n < TILES; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) x[n][i] *= whole[8 * n + lane % 4 * 2 + i % 2];
}
template <class Row> __device__ __forceinline__ void put_part(Row* to, const Part& x, int first, int column, int lane) {
#pragma unroll
  for (int n = 0; n < TILES; n++)
#pragma unroll
    for (int half = 0; half < 2; half++)
      *reinterpret_cast<float2*>(&to[first + lane / 4 + 8 * half][column + 8 * n + lane % 4 * 2]) = {x[n][2 * half], x[n][2 * half + 1]};
}

// Sees to it that the tile of values from `tile` on is on its way.
__device__ __forceinline__ void bring(Values& to, const Layout& layout, const S* v, const S* flow, const Kept& forth, const Kept& back,
                                      i64 row, i64 chunk, i64 chunks, int count, int corner, i64 tile, i64 values) {
  const i64 t = row * layout.length + chunk * STEPS, state = ((row * chunks + chunk) * forth.wide + tile) * KEYS + corner;
  const int width = static_cast<int>(values - tile < STEPS ? values - tile : STEPS);
  fetch<STEPS>(to.u, forth.steps + t * forth.wide + tile, forth.wide, 0, count, STEPS, STEPS);
  fetch<STEPS>(to.y, back.steps + t * forth.wide + tile, forth.wide, 0, count, STEPS, STEPS);
  fetch<STEPS>(to.flow, flow + t * values + tile, values, 0, count, width, STEPS);
  fetch<STEPS>(to.state, forth.states + state, KEYS, 0, STEPS, STEPS, STEPS);
  fetch<STEPS>(to.after, back.states + state, KEYS, 0, STEPS, STEPS, STEPS);
  if (KEYED) fetch<STEPS>(to.v, v + tile, layout.operand[VALUE].time, 0, count, width, STEPS);
  commit();
}

// Zeros in the place of what is not finite.
__device__ __forceinline__ void clean_values(Shared& shared, Values& x) {
  clean<STEPS>(x.u, shared.bad[0]), clean<STEPS>(x.y, shared.bad[1]), clean<STEPS>(x.flow, shared.bad[2]);
  clean<STEPS>(x.state, shared.bad[3]), clean<STEPS>(x.after, shared.bad[3]);
  if (KEYED) clean<STEPS>(x.v, shared.bad[3]);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
gradients(const __grid_constant__ Layout layout, const S* q, const S* a, const S* b, const S* k, const S* v, const float* beta, const float* g,
          const S* flow, const __grid_constant__ Kept forth, const __grid_constant__ Kept back, S* dq, S* da, S* db, S* dk, float* dbeta,
          float* dg, int keys, i64 values, float scale, float sign) {
  extern __shared__ __align__(16) u8 memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  constexpr int SLICES = KEYS / SLICE;
  const i64 chunks = (layout.length + STEPS - 1) / STEPS, chunk = blockIdx.x / SLICES % chunks, row = blockIdx.x / SLICES / chunks;
  const int slice = blockIdx.x % SLICES, corner = slice * SLICE, lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  const i64 t0 = chunk * STEPS, at = row * layout.length + t0;
  const int count = static_cast<int>(layout.length - t0 < STEPS ? layout.length - t0 : STEPS);
  const int i = warp % 4, first = 16 * i, side = warp / 4, column = side * HALF;
  if (KEYED) v += locate(layout, row).at[VALUE] + t0 * layout.operand[VALUE].time;
  shared.bad[threadIdx.x / STEPS][threadIdx.x % STEPS] = 0;
  Part query, reading, left[1 + KEYED];
  float scores[1 + KEYED][STEPS / 8][4] = {}, met = 0.0f;
#pragma unroll
  for (int n = 0; n < TILES; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) query[n][e] = reading[n][e] = left[0][n][e] = left[KEYED][n][e] = 0.0f;
  const int block = threadIdx.x / SLICE, c = threadIdx.x % SLICE;
  const auto fetch_tile = [&](i64 tile) {
    bring(shared.values[tile / STEPS % 2], layout, v, flow, forth, back, row, chunk, chunks, count, corner, tile, values);
  };
  fetch_tile(0);
#pragma unroll 1
  for (i64 tile = 0; tile < forth.wide; tile += STEPS) {
    Values& x = shared.values[tile / STEPS % 2];
    arrived<0>();
    __syncthreads();
    clean_values(shared, x);
    if (tile + STEPS < forth.wide) fetch_tile(tile + STEPS);
    __syncthreads();
    if (DECAYS)
#pragma unroll
      for (int n = 16 * block; n < 16 * block + 16; n++) met = __fmaf_rn(widen(x.state[n][c]), widen(x.after[n][c]), met);
#pragma unroll
    for (int j = 0; j < STEPS; j += 16) {
      u32 f[4], y[4], w[4], own[4];
      load_a<false>(f, x.flow, first, j, lane);
      load_a<false>(y, x.y, first, j, lane);
      add(query, f, x.state, j, column, lane);
      add(reading, y, x.state, j, column, lane);
      load_a<false>(w, x.u, first, j, lane);
      add(left[0], w, x.after, j, column, lane);
#pragma unroll
      for (int n = 0; n < 4; n++) own[n] = side ? y[n] : f[n];
#pragma unroll
      for (int n = 0; n <= KEYED; n++) {
        if (n) {
          load_a<false>(w, x.v, first, j, lane);
          add(left[KEYED], w, x.after, j, column, lane);
        }
#pragma unroll
        for (int m = 0; m < BLOCKS; m++) {
          if (m > i) continue;
          u32 written[4];
          load_b<false>(written, n ? x.v : x.u, j, 16 * m, lane);
          mma_pair(scores[n][2 * m], scores[n][2 * m + 1], own, written);
        }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int n = 0; n <= KEYED; n++)
#pragma unroll
    for (int m = 0; m < STEPS / 8; m++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int t = first + lane / 4 + 8 * half, s = 8 * m + lane % 4 * 2, end = t + 1 - side;
        const float x = s < end ? scores[n][m][2 * half] : 0.0f, y = s + 1 < end ? scores[n][m][2 * half + 1] : 0.0f;
        *reinterpret_cast<u32*>(&shared.scores[2 * n + side][t][s]) = pair<S>(x, y);
      }
  {
    Arguments x;
    take_arguments(x, layout, row, t0 + 16 * block, corner + c, q, a, b, k, beta, g, keys, sign);
    make_rows(shared, x, block, c);
  }
  shared.dots[block][c] = met;
  __syncthreads();
  Part among[1 + KEYED];
#pragma unroll
  for (int n = 0; n < TILES; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) among[0][n][e] = among[KEYED][n][e] = 0.0f;
#pragma unroll
  for (int j = 0; j < BLOCKS - 1; j++) {
    if (j >= i) continue;
    const float* whole = &shared.whole[j][column];
    if (DECAYS) fade(query, whole, lane), fade(reading, whole, lane);
#pragma unroll
    for (int n = 0; n <= KEYED; n++) {
      u32 x[4], y[4];
      load_a<false>(x, shared.scores[2 * n], first, 16 * j, lane);
      load_a<false>(y, shared.scores[2 * n + 1], first, 16 * j, lane);
      add(query, x, n ? shared.rows.k : shared.rows.b, 16 * j, column, lane);
      add(reading, y, n ? shared.rows.k : shared.rows.b, 16 * j, column, lane);
    }
  }
#pragma unroll
  for (int j = BLOCKS - 1; j > 0; j--) {
    if (j <= i) continue;
    const float* whole = &shared.whole[j][column];
#pragma unroll
    for (int n = 0; n <= KEYED; n++) {
      if (DECAYS) fade(left[n], whole, lane), fade(among[n], whole, lane);
      u32 x[4], y[4];
      load_a<true>(x, shared.scores[2 * n], 16 * j, first, lane);
      load_a<true>(y, shared.scores[2 * n + 1], 16 * j, first, lane);
      add(among[n], x, shared.rows.q, 16 * j, column, lane);
      add(among[n], y, shared.rows.a, 16 * j, column, lane);
    }
  }
  __syncthreads();
  put_part(shared.sums[READ_Q], query, first, column, lane), put_part(shared.sums[READ_A], reading, first, column, lane);
#pragma unroll
  for (int n = 0; n <= KEYED; n++) {
    put_part(shared.sums[LEFT_B + 2 * n], left[n], first, column, lane);
    put_part(shared.sums[MET_B + 2 * n], among[n], first, column, lane);
  }
  __syncthreads();
  const i64 corner_of = at * keys + corner + c, steps = layout.rows * layout.length;
  const Outs to = {dq + corner_of, da ? da + corner_of : nullptr, db + corner_of, KEYED ? dk + corner_of : nullptr, dbeta, DECAYS == 2 ? dg + corner_of : dg, keys};
  Arguments x;
  take_arguments(x, layout, row, t0 + 16 * block, corner + c, q, a, b, k, beta, g, keys, sign);
  finish(shared, x, to, block, c, scale, sign, lane, warp);
  if (!dbeta && DECAYS != 1) return;
  __syncthreads();
  const int t = threadIdx.x;
  if (t >= count) return;
  const bool bad = shared.bad[0][t] || shared.bad[1][t];
  const auto& sum = shared.weight;
  if (dbeta) dbeta[slice * steps + at + t] = bad ? not_a_number() : scale * (sum[0][0][t] + sum[0][1][t]);
  if (DECAYS == 1) dg[slice * steps + at + t] = bad ? not_a_number() : sum[1][0][t] + sum[1][1][t];
}
