// S[t] = diag(e^g[t]) S[t-1] + k[t] v[t]^T,  o[t] = scale S[t]^T q[t], 16-bit arrays, decays by channel, on tensor cores.
//
// Two passes over chunks of 64 steps: gated_states.cu walks them in order and writes down, in 16 bits, what enters each, and
// `outputs` does all of them at once: O = (q e^W) S + P V, W being sums of g and P[t, s] the sum over channels of
// q[t] e^(W[t] - W[s]) k[s] for s <= t, as gated_chunk.cuh says. A block owns SLICE columns of a chunk, a warp 16 steps. What
// products take in is rounded to 16 bits, sums are float32.
//
// dv is the same two passes backwards in time with q and k, and o and v, in each other's role and every decay one step later;
// see gated_attention_back.cu for the rest of the pullback.
//
// Bytes moved: q, k and g once for each slice, v, o and the states (1/64 K V numbers a step) once.
// Limits: keys to 256, any number of values and steps.
#ifndef STORAGE  // the launcher's macros, as the tests compile them
#define STORAGE bfloat16
#define WIDE 128
#define SLICE 128
#define PACKED 1
#endif
constexpr int WARPS = 4;  // of a block
#include "gated_chunk.cuh"

constexpr int COLUMNS = SLICE / 8;  // 16 x 8 tiles of a warp

struct Chunk {
  union {
    struct { S q[STEPS][WIDE + PAD], k[STEPS][WIDE + PAD]; };
    S v[STEPS][SLICE + PAD];  // comes when q and k have gone: three blocks fit a multiprocessor
  };
  S state[WIDE][SLICE + PAD];
  float whole[BLOCKS][WIDE];
};

// The triangle P of this warp's own 16 steps; its q and k become those at the block's start and at its end.
__device__ __forceinline__ void own_block(float (&p)[2][4], Chunk& shared, const float* g, i64 step_g, int begin, int end, int keys,
                                          int lane, int warp) {
  float parts[4][4] = {}, diagonal[2] = {0.0f, 0.0f};
  Tile ahead;
  logarithms(ahead, g, step_g, warp, 0, begin, end, keys, lane);
#pragma unroll 1
  for (int j = 0; j < WIDE; j += 16) {
    Decays d;
    decays(d, ahead);
    if (j + 16 < WIDE) logarithms(ahead, g, step_g, warp, j + 16, begin, end, keys, lane);
    Tile q, k;
    take(q, shared.q, warp, j, lane), take(k, shared.k, warp, j, lane);
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
      for (int i = 0; i < 2; i++) diagonal[n % 2] = __fmaf_rn(q[n][i], k[n][i], diagonal[n % 2]);
    // A step is in the later half, and read, or in the earlier, and written: one tile is both factors.
    const auto product = [&](float (&part)[4], bool later) {
      u32 x[4];
#pragma unroll
      for (int n = 0; n < 4; n++)
        x[n] = pair<S>(later ? q[n][0] * d.from[n][0] : k[n][0] * d.until[n][0], later ? q[n][1] * d.from[n][1] : k[n][1] * d.until[n][1]);
      mma(part, {x[0], 0, x[2], 0}, x[0], x[2], S());
      mma(part, {0, x[1], 0, x[3]}, x[1], x[3], S());
    };
    product(parts[0], lane / 4 & 1), join<1>(d, lane);
    product(parts[1], lane / 4 & 2), join<2>(d, lane);
    product(parts[2], lane / 4 & 4), join<4>(d, lane);
    u32 x[4];
#pragma unroll
    for (int n = 0; n < 4; n++)
      x[n] = n % 2 ? pair<S>(q[n][0] * d.from[n][0], q[n][1] * d.from[n][1]) : pair<S>(k[n][0] * d.until[n][0], k[n][1] * d.until[n][1]);
    mma(parts[3], {0, x[1], 0, x[3]}, x[0], x[2], S());
    join<8>(d, lane);
    __syncwarp();  // all lanes have taken their parts of these tiles
    put(shared.q, q, d.from, warp, j, lane), put(shared.k, k, d.until, warp, j, lane);
    put_whole(shared.whole[warp], d, j, lane);
  }
  const int row = lane / 4;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float& sum = diagonal[half];
    sum += shuffle_xor(sum, 1), sum += shuffle_xor(sum, 2);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int column = lane % 4 * 2 + i, n = 2 * half + i, at = level(row, column);
      const float own = at == 2 ? parts[2][n] : at == 1 ? parts[1][n] : at == 0 ? parts[0][n] : row == column ? sum : 0.0f;
      p[0][n] = half ? parts[3][n] : own, p[1][n] = half ? own : 0.0f;
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, WIDE * SLICE <= 128 * 128 ? 3 : 2)
outputs(const __grid_constant__ Layout layout, const S* q, const S* k, const S* v, const float* g, const S* kept, S* o,
        const __grid_constant__ Pass pass) {
  extern __shared__ __align__(16) u8 memory[];
  Chunk& shared = *reinterpret_cast<Chunk*>(memory);
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, keys = static_cast<int>(pass.keys), late = static_cast<int>(pass.late);
  const Spot x = spot<SLICE>(layout, pass.values, pass.head);
  const Place place = locate(layout, x.row);
  const i64 step_q = layout.operand[Q].time, step_k = layout.operand[K].time, step_v = layout.operand[V].time;
  const i64 step_g = layout.operand[G].time;
  fetch<WIDE>(shared.q, q + place.at[Q] + x.t * step_q, step_q, 0, x.count, keys, STEPS);
  fetch<WIDE>(shared.k, k + place.at[K] + x.t * step_k, step_k, 0, x.count, keys, STEPS);
  commit();
  fetch<SLICE>(shared.state, kept + (x.row * x.chunks + x.chunk) * keys * pass.values + x.column, pass.values, 0, keys, x.width, WIDE);
  commit();
  arrived<1>();
  __syncthreads();
  float p[BLOCKS][2][4] = {}, own[2][4], out[COLUMNS][4] = {};
  own_block(own, shared, g + place.at[G] + (x.t - late) * step_g, step_g, x.t ? 0 : late, x.count, keys, lane, warp);
  arrived<0>();
  __syncthreads();
#pragma unroll 1
  for (int j = 0; j < WIDE; j += 16) {
    u32 a[4], b[4];
    Tile y;
    load_a<false>(a, shared.q, 16 * warp, j, lane);
    unpack(y, a);
#pragma unroll
    for (int block = BLOCKS - 2; block >= 0; block--) {
      if (block >= warp) continue;
      if (block + 1 < warp) fade(a, y, shared.whole[block + 1], j, lane);
      load_b<false>(b, shared.k, j, 16 * block, lane);
      mma(p[block][0], a, b[0], b[1], S());
      mma(p[block][1], a, b[2], b[3], S());
    }
    if (warp) fade(a, y, shared.whole[0], j, lane);
#pragma unroll
    for (int n = 0; n < COLUMNS; n += 2) {
      load_b<true>(b, shared.state, j, 8 * n, lane);
      mma(out[n], a, b[0], b[1], S());
      mma(out[n + 1], a, b[2], b[3], S());
    }
  }
  __syncthreads();
  fetch<SLICE>(shared.v, v + place.at[V] + x.column + x.t * step_v, step_v, 0, x.count, x.width, STEPS);
  commit();
  arrived<0>();
  __syncthreads();
#pragma unroll
  for (int block = 0; block < BLOCKS; block++) {
    if (block > warp) continue;
    u32 a[4], b[4];
#pragma unroll
    for (int n = 0; n < 4; n++) {
      const float(&part)[4] = p[block][n / 2];
      const float(&mine)[4] = own[n / 2];
      const int i = n % 2 * 2;
      a[n] = block == warp ? pair<S>(mine[i], mine[i + 1]) : pair<S>(part[i], part[i + 1]);
    }
#pragma unroll
    for (int n = 0; n < COLUMNS; n += 2) {
      load_b<true>(b, shared.v, 16 * block, 8 * n, lane);
      mma(out[n], a, b[0], b[1], S());
      mma(out[n + 1], a, b[2], b[3], S());
    }
  }
  const i64 step = pass.backwards ? -pass.values : pass.values, t = pass.backwards ? layout.length - 1 - x.t : x.t;
  o += (x.row * layout.length + t) * pass.values + x.column;
#pragma unroll
  for (int n = 0; n < COLUMNS; n++)
    write(o, step, out[n], 16 * warp, 8 * n, x.count, x.width, lane, static_cast<float>(pass.scale));
}
