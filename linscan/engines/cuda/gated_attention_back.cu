// The pullback of gated_attention.cu: gradients of q and k, and of g from them.
//
// With S the states before chunks, A[t, s] = do[t] . v[s] for s <= t and W the sums of g,
//   dq = e^W (do S^T) + sum over s of A[t, s] e^(W[t] - W[s]) k[s],  times scale,
// where the decay belongs to a column of the output, not to what is summed over: what blocks of 16 steps add is multiplied with
// the decays of the blocks after them as it is summed, and that of halves of a block with the decays from their start. dk is the
// same backwards in time, of (v, do, q) in the place of (do, v, k), every decay one step later, and the gradients of the states.
//
// `slopes` makes dq or dk of a chunk, SLICE columns of them a block, half of them for 16 steps a warp, with WIDE values summed over.
// `gates` makes dg: dg[t+1] = dg[t] + k[t] dk[t] - q[t] dq[t], anew in each chunk, which begins with dg = e^g <S, dS>: over a
// whole sequence it would be small differences of large numbers. What s = t adds to both products is the same, and left out:
// under strong decays it is nearly all of them. One thread a chunk and channel.
//
// Bytes moved: do, v, k, g, dq, dq without the diagonal and the states once, twice over; then q, k, what is off the diagonal of
// dq and dk, g and dg.
#ifndef STORAGE  // the launcher's macros, as the tests compile them
#define STORAGE bfloat16
#define WIDE 128
#define SLICE 128
#define PACKED 1
#endif
constexpr int WARPS = 8;  // of a block: four for the steps times two for the columns
#include "gated_chunk.cuh"

struct Chunk {
  S q[STEPS][WIDE + PAD], k[STEPS][WIDE + PAD], v[STEPS][SLICE + PAD], last[STEPS][SLICE + PAD], state[SLICE][WIDE + PAD];
  float whole[BLOCKS][SLICE];
};

// A of this warp's 16 steps, and what it is on the diagonal for steps lane / 4 and lane / 4 + 8.
__device__ __forceinline__ void scores(u32 (&a)[BLOCKS][4], float (&diagonal)[2], const Chunk& shared, int lane, int warp) {
  float p[BLOCKS][2][4] = {};
#pragma unroll 2
  for (int j = 0; j < WIDE; j += 16) {
    u32 x[4], y[4];
    load_a<false>(x, shared.q, 16 * warp, j, lane);
#pragma unroll
    for (int block = 0; block < BLOCKS; block++) {
      if (block > warp) continue;
      load_b<false>(y, shared.k, j, 16 * block, lane);
      mma(p[block][0], x, y[0], y[1], S());
      mma(p[block][1], x, y[2], y[3], S());
    }
  }
#pragma unroll
  for (int block = 0; block < BLOCKS; block++) {
#pragma unroll
    for (int n = 0; n < 4; n++) a[block][n] = pair<S>(p[block][n / 2][n % 2 * 2], p[block][n / 2][n % 2 * 2 + 1]);
    if (block == warp)
#pragma unroll
      for (int half = 0; half < 2; half++)
        diagonal[half] = shuffle(lane / 4 % 2 ? p[block][half][2 * half + 1] : p[block][half][2 * half], lane / 4 * 4 + lane / 8);
  }
}

// The pairs of one 8 x 8 tile whose steps part at this level, zeros elsewhere.
__device__ __forceinline__ u32 parting(u32 x, int at, int lane) {
  const int row = lane / 4, column = lane % 4 * 2;
  return x & ((level(row, column) == at ? 0xffffu : 0) | (level(row, column + 1) == at ? 0xffff0000u : 0));
}

// What halves of this warp's block add to 16 columns of it, through `a`, its own A.
template <int H> __device__ __forceinline__ void halves(Tile& sum, const u32 (&a)[4], const Tile& k, Decays& d, int lane) {
  constexpr int AT = H == 4 ? 2 : H == 2 ? 1 : 0;
  u32 part[4] = {0, 0, 0, 0}, x[4];
  if (H == 8) part[1] = a[1];
  else part[0] = parting(a[0], AT, lane), part[3] = parting(a[3], AT, lane);
#pragma unroll
  for (int n = 0; n < 4; n++) x[n] = transposed(pair<S>(k[n][0] * d.until[n][0], k[n][1] * d.until[n][1]));
#pragma unroll
  for (int c = 0; c < 2; c++) {
    float y[4] = {};
    mma(y, part, x[2 * c], x[2 * c + 1], S());
#pragma unroll
    for (int i = 0; i < 4; i++) sum[2 * c + i / 2][i % 2] = __fmaf_rn(d.from[2 * c + i / 2][i % 2], y[i], sum[2 * c + i / 2][i % 2]);
  }
  join<H>(d, lane);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
slopes(const __grid_constant__ Layout layout, const S* q, const S* k, const S* v, const float* g, const S* kept, S* o, S* rest,
       const __grid_constant__ Pass pass) {
  extern __shared__ __align__(16) u8 memory[];
  Chunk& shared = *reinterpret_cast<Chunk*>(memory);
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32 % 4, values = static_cast<int>(pass.values);
  const Spot x = spot<SLICE>(layout, pass.keys, pass.head);
  const Place place = locate(layout, x.row);
  const i64 step_q = layout.operand[Q].time, step_k = layout.operand[K].time, step_v = layout.operand[V].time;
  const i64 step_g = layout.operand[G].time;
  const int late = static_cast<int>(pass.late), begin = x.t ? 0 : late;
  const int start = threadIdx.x / 128 * (SLICE / 2), stop = start + SLICE / 2;
  fetch<SLICE>(shared.v, v + place.at[V] + x.column + x.t * step_v, step_v, 0, x.count, x.width, STEPS);
  commit();
  fetch<WIDE>(shared.q, q + place.at[Q] + x.t * step_q, step_q, 0, x.count, values, STEPS);
  fetch<WIDE>(shared.k, k + place.at[K] + x.t * step_k, step_k, 0, x.count, values, STEPS);
  fetch<WIDE>(shared.state, kept + ((x.row * x.chunks + x.chunk) * pass.keys + x.column) * values, values, 0, x.width, values, SLICE);
  commit();
  g += place.at[G] + x.column + (x.t - late) * step_g;
  Tile y;
  logarithms(y, g, step_g, warp, start, begin, x.count, x.width, lane);
  arrived<1>();
  __syncthreads();
#pragma unroll 1
  for (int j = start; j < stop; j += 16) {
    Decays d;
    decays(d, y);
    if (j + 16 < stop) logarithms(y, g, step_g, warp, j + 16, begin, x.count, x.width, lane);
    join<1>(d, lane), join<2>(d, lane), join<4>(d, lane), join<8>(d, lane);
    Tile part;
    take(part, shared.v, warp, j, lane);
    put(shared.last, part, d.until, warp, j, lane);
    put_whole(shared.whole[warp], d, j, lane);
  }
  arrived<0>();
  __syncthreads();
  u32 a[BLOCKS][4], own[4];
  float diagonal[2];
  scores(a, diagonal, shared, lane, warp);
#pragma unroll
  for (int n = 0; n < 4; n++) own[n] = warp == 0 ? a[0][n] : warp == 1 ? a[1][n] : warp == 2 ? a[2][n] : a[3][n];
  const i64 step = pass.backwards ? -pass.keys : pass.keys, t = pass.backwards ? layout.length - 1 - x.t : x.t;
  o += (x.row * layout.length + t) * pass.keys + x.column, rest += (x.row * layout.length + t) * pass.keys + x.column;
  logarithms(y, g, step_g, warp, start, begin, x.count, x.width, lane);
#pragma unroll 1
  for (int j = start; j < stop; j += 16) {
    Decays d;
    decays(d, y);
    if (j + 16 < stop) logarithms(y, g, step_g, warp, j + 16, begin, x.count, x.width, lane);
    float out[2][4] = {};
    u32 b[4];
#pragma unroll 4
    for (int n = 0; n < WIDE; n += 16) {
      u32 row[4];
      load_a<false>(row, shared.q, 16 * warp, n, lane);
      load_b<false>(b, shared.state, n, j, lane);
      mma(out[0], row, b[0], b[1], S());
      mma(out[1], row, b[2], b[3], S());
    }
#pragma unroll
    for (int block = 0; block < BLOCKS - 1; block++) {
      if (block >= warp) continue;
#pragma unroll
      for (int c = 0; c < 2; c++)
#pragma unroll
        for (int i = 0; i < 4; i++) out[c][i] *= shared.whole[block][j + 8 * c + lane % 4 * 2 + i % 2];
      load_b<true>(b, shared.last, 16 * block, j, lane);
      mma(out[0], a[block], b[0], b[1], S());
      mma(out[1], a[block], b[2], b[3], S());
    }
    Tile part, sum = {};
    take(part, shared.v, warp, j, lane);
    halves<1>(sum, own, part, d, lane);
    halves<2>(sum, own, part, d, lane);
    halves<4>(sum, own, part, d, lane);
    halves<8>(sum, own, part, d, lane);
#pragma unroll
    for (int c = 0; c < 2; c++) {
#pragma unroll
      for (int i = 0; i < 4; i++) out[c][i] = __fmaf_rn(d.from[2 * c + i / 2][i % 2], out[c][i], sum[2 * c + i / 2][i % 2]);
      write(rest, step, out[c], 16 * warp, j + 8 * c, x.count, x.width, lane, static_cast<float>(pass.scale));
#pragma unroll
      for (int i = 0; i < 4; i++) out[c][i] = __fmaf_rn(diagonal[i / 2], part[2 * c + i / 2][i % 2], out[c][i]);
      write(o, step, out[c], 16 * warp, j + 8 * c, x.count, x.width, lane, static_cast<float>(pass.scale));
    }
  }
}

// `dots`, (part, row, chunk, key), parts to be added: <S, dS> where chunks begin, times `scale` what they are. dq and dk are those
// without s = t. A thread owns two channels where their places are whole words.
extern "C" __global__ void gates(const __grid_constant__ Layout layout, const S* q, const S* k, const float* g, const S* dq,
                                 const S* dk, const float* dots, float* dg, int keys, i64 parts, double scale) {
  constexpr int OWN = PACKED ? 2 : 1;
  const i64 chunks = (layout.length + STEPS - 1) / STEPS, index = (blockIdx.x * i64(blockDim.x) + threadIdx.x) * OWN;
  if (index >= layout.rows * chunks * keys) return;
  const int key = static_cast<int>(index % keys);
  const i64 chunk = index / keys % chunks, row = index / keys / chunks, t0 = chunk * STEPS, first = row * layout.length + t0;
  const Place place = locate(layout, row);
  const i64 step_q = layout.operand[Q].time, step_k = layout.operand[K].time, step_g = layout.operand[G].time;
  q += place.at[Q] + t0 * step_q + key, k += place.at[K] + t0 * step_k + key, g += place.at[G] + t0 * step_g + key;
  dq += first * keys + key, dk += first * keys + key, dg += first * keys + key;
  const int count = static_cast<int>(layout.length - t0 < STEPS ? layout.length - t0 : STEPS);
  float sum[2] = {0.0f, 0.0f};
  for (i64 n = 0; n < parts; n++)
    for (int i = 0; i < OWN; i++) sum[i] += dots[n * layout.rows * chunks * keys + index + i];
  for (int i = 0; i < OWN; i++) sum[i] *= __expf(g[i]) * static_cast<float>(scale);
#pragma unroll 8
  for (int t = 0; t < count; t++) {
    const u32 x = two(k + t * step_k, 0, OWN), dx = two(dk + t * keys, 0, OWN);
    const u32 y = two(q + t * step_q, 0, OWN), dy = two(dq + t * keys, 0, OWN);
    float gate[2], out[2];
    for (int i = 0; i < OWN; i++) gate[i] = __expf(g[t * step_g + i]), out[i] = gate[i] == 0.0f ? 0.0f : sum[i];
    if (OWN == 2) *reinterpret_cast<float2*>(dg + t * keys) = {out[0], out[1]};
    else dg[t * keys] = out[0];
    sum[0] = __fmaf_rn(-low(y, S()), low(dy, S()), __fmaf_rn(low(x, S()), low(dx, S()), sum[0]));
    sum[1] = __fmaf_rn(-high(y, S()), high(dy, S()), __fmaf_rn(high(x, S()), high(dx, S()), sum[1]));
  }
}
