// States of linear attention with decays by channel before every chunk, and the last: the first pass of gated_attention.cu.
//
// A block owns 64 keys x SLICE values of one head and walks its chunks, the state in float32 registers, while the next chunk's
// arrays come: S' = e^W[63] S + (e^(W[63] - W) k)^T v, W being sums of g. A warp owns 16 keys.
//
// Long sequences are cut into segments: `states` makes each one's state from zero, `carry` hands the state on, and `states`
// goes again from the true one. Whether a sequence is cut follows from its length alone, and so do its bits.
//
// Bytes moved: k and g once, v once for each 64 keys, the states once, in 16 bits; k, v and g once more if cut.
// Limits: none on keys, values and steps.
#ifndef STORAGE  // the launcher's macros, as the tests compile them
#define STORAGE bfloat16
#define SLICE 128
#define PACKED 1
#endif
constexpr int WARPS = 4;  // of a block
#include "gated_chunk.cuh"

constexpr int TILE = 16 * WARPS, COLUMNS = SLICE / 8;  // keys of a block of `states`; 16 x 8 tiles of a warp

struct Stage {
  S k[STEPS][TILE + PAD], v[STEPS][SLICE + PAD];
  float g[STEPS][TILE];
};
struct Walk {
  Stage stage[2];
  float part[WARPS][TILE];  // products of 16 steps' decays
};

// k becomes k times what is left of it at the chunk's end. Two channels and 16 steps a thread.
__device__ __forceinline__ void fade(Stage& stage, float (&part)[WARPS][TILE], int lane, int warp) {
  float d[16][2], left[2] = {1.0f, 1.0f};
#pragma unroll
  for (int t = 0; t < 16; t++) {
    const float2 g = *reinterpret_cast<const float2*>(&stage.g[16 * warp + t][2 * lane]);
    d[t][0] = __expf(g.x), d[t][1] = __expf(g.y);
    left[0] *= d[t][0], left[1] *= d[t][1];
  }
  part[warp][2 * lane] = left[0], part[warp][2 * lane + 1] = left[1];
  __syncthreads();
  left[0] = left[1] = 1.0f;
  for (int w = WARPS - 1; w > warp; w--) left[0] *= part[w][2 * lane], left[1] *= part[w][2 * lane + 1];
#pragma unroll
  for (int t = 15; t >= 0; t--) {
    u32* at = reinterpret_cast<u32*>(&stage.k[16 * warp + t][2 * lane]);
    *at = pair<S>(low(*at, S()) * left[0], high(*at, S()) * left[1]);
    left[0] *= d[t][0], left[1] *= d[t][1];
  }
}

// With `ends`, what each segment makes of a state of zero, and the products of its decays. Otherwise `kept`, the states before
// each chunk, and the last one, from `starts`, what enters each segment, or from `first` in a single one; with `other`, the
// states kept by the pass the other way round, the sums over values of what leaves a chunk times them.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
states(const __grid_constant__ Layout layout, const S* k, const S* v, const float* g, const float* first, const float* starts,
       S* kept, float* last, float* ends, float* decays, const S* other, float* dots, const __grid_constant__ Pass pass) {
  extern __shared__ __align__(16) u8 memory[];
  Walk& shared = *reinterpret_cast<Walk*>(memory);
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  const i64 slices = (pass.values + SLICE - 1) / SLICE, tiles = (pass.keys + TILE - 1) / TILE;
  const i64 slice = blockIdx.x % slices, tile = blockIdx.x / slices % tiles, rest = blockIdx.x / slices / tiles;
  const i64 row = rest % layout.rows, segment = rest / layout.rows;
  const i64 chunks = (layout.length - pass.head + STEPS - 1) / STEPS + 1, end = (segment + 1) * pass.segment;
  const i64 size = pass.keys * pass.values, slot = segment * layout.rows + row;
  const int width = static_cast<int>(pass.values - slice * SLICE < SLICE ? pass.values - slice * SLICE : SLICE);
  const int height = static_cast<int>(pass.keys - tile * TILE < TILE ? pass.keys - tile * TILE : TILE);
  const i64 corner = tile * TILE * pass.values + slice * SLICE;
  const Place place = locate(layout, row);
  k += place.at[K] + tile * TILE, v += place.at[V] + slice * SLICE, g += place.at[G] + tile * TILE;
  const i64 step_k = layout.operand[K].time, step_v = layout.operand[V].time, step_g = layout.operand[G].time;

  const auto bring = [&](Stage& stage, i64 c) {
    const i64 t = begin(c, pass.head, layout.length);
    const int count = static_cast<int>(begin(c + 1, pass.head, layout.length) - t), late = static_cast<int>(pass.late);
    fetch<TILE>(stage.k, k + t * step_k, step_k, 0, count, height, STEPS);
    fetch<SLICE>(stage.v, v + t * step_v, step_v, 0, count, width, STEPS);
    fetch<TILE>(stage.g, g + (t - late) * step_g, step_g, t ? 0 : late, count, height, STEPS);
    commit();
  };
  float state[COLUMNS][4];
  const auto each = [&](auto f) {
#pragma unroll
    for (int n = 0; n < COLUMNS; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int key = 16 * warp + lane / 4 + i / 2 * 8, c = 8 * n + lane % 4 * 2 + i % 2;
        f(state[n][i], key < height && c < width, corner + key * pass.values + c, i);
      }
  };
  const float* from = starts ? starts + slot * size : first ? first + place.at[STATE] : nullptr;
  each([=](float& x, bool inside, i64 at, int) { x = from && inside ? from[at] : 0.0f; });
  float product[2] = {1.0f, 1.0f};
  i64 c = segment * pass.segment;
  bring(shared.stage[c % 2], c);
#pragma unroll 1
  for (; c < end && c < chunks; c++) {
    Stage& stage = shared.stage[c % 2];
    const bool more = c + 1 < end && c + 1 < chunks;
    if (more) bring(shared.stage[(c + 1) % 2], c + 1), arrived<1>();
    else arrived<0>();
    __syncthreads();
    if (kept) {
      S* to = kept + (row * chunks + c) * size + corner;
#pragma unroll
      for (int n = 0; n < COLUMNS; n++) write(to, pass.values, state[n], 16 * warp, 8 * n, height, width, lane, 1.0f);
    }
    fade(stage, shared.part, lane, warp);
    __syncthreads();
    float left[2] = {1.0f, 1.0f};
#pragma unroll
    for (int w = 0; w < WARPS; w++)
#pragma unroll
      for (int half = 0; half < 2; half++) left[half] *= shared.part[w][16 * warp + lane / 4 + 8 * half];
#pragma unroll
    for (int half = 0; half < 2; half++) product[half] *= left[half];
    each([=](float& x, bool, i64, int i) { x = left[i / 2] == 0.0f ? 0.0f : x * left[i / 2]; });
#pragma unroll
    for (int s = 0; s < STEPS; s += 16) {
      u32 a[4], b[4];
      load_a<true>(a, stage.k, s, 16 * warp, lane);
#pragma unroll
      for (int n = 0; n < COLUMNS; n += 2) {
        load_b<true>(b, stage.v, s, 8 * n, lane);
        mma(state[n], a, b[0], b[1], S());
        mma(state[n + 1], a, b[2], b[3], S());
      }
    }
    if (other) {
      const S* before = other + (row * chunks + chunks - 1 - c) * size;
      float sum[2] = {0.0f, 0.0f};
#pragma unroll
      for (int n = 0; n < COLUMNS; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int key = 16 * warp + lane / 4 + 8 * half, at = 8 * n + lane % 4 * 2;
          const u32 both = key < height ? two(before + corner + key * pass.values + at, at, width) : 0;
          sum[half] = __fmaf_rn(state[n][2 * half], low(both, S()), sum[half]);
          sum[half] = __fmaf_rn(state[n][2 * half + 1], high(both, S()), sum[half]);
        }
#pragma unroll
      for (int half = 0; half < 2; half++) {
        sum[half] += shuffle_xor(sum[half], 1), sum[half] += shuffle_xor(sum[half], 2);
        const int key = 16 * warp + lane / 4 + 8 * half;
        if (lane % 4 == 0 && key < height)
          dots[((slice * layout.rows + row) * chunks + chunks - 1 - c) * pass.keys + tile * TILE + key] = sum[half];
      }
    }
    __syncthreads();
  }
  if (pass.late && !ends && end >= chunks) {
    float left[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int key = 16 * warp + lane / 4 + 8 * half;
      left[half] = key < height ? __expf(g[(layout.length - 1) * step_g + key]) : 0.0f;
    }
    const float scale = static_cast<float>(pass.scale);
    each([=](float& x, bool, i64, int i) { x = left[i / 2] == 0.0f ? 0.0f : left[i / 2] * (scale * x); });
  }
  float* to = ends ? ends + slot * size : end >= chunks ? last + row * size : nullptr;
  each([=](float& x, bool inside, i64 at, int) {
    if (to && inside) to[at] = x;
  });
  for (int half = 0; half < 2; half++) {
    const int key = 16 * warp + lane / 4 + 8 * half;
    if (ends && slice == 0 && lane % 4 == 0 && key < height) decays[slot * pass.keys + tile * TILE + key] = product[half];
  }
}

constexpr int TOGETHER = 8;  // segments read before any is written

// From segment to segment: `ends`, of all but the last, becomes what enters each.
extern "C" __global__ void carry(const __grid_constant__ Layout layout, float* ends, const float* decays, const float* first,
                                 i64 segments, i64 size, i64 values) {
  const i64 index = blockIdx.x * i64(blockDim.x) + threadIdx.x;
  if (index >= layout.rows * size) return;
  const i64 row = index / size, n = index % size;
  float state = first ? first[locate(layout, row).at[STATE] + n] : 0.0f;
  for (i64 k = 0; k < segments; k += TOGETHER) {
    float end[TOGETHER], decay[TOGETHER];
#pragma unroll
    for (int i = 0; i < TOGETHER; i++) {
      const bool more = k + i + 1 < segments;
      const i64 slot = (k + i) * layout.rows + row;
      end[i] = more ? ends[slot * size + n] : 0.0f, decay[i] = more ? decays[slot * (size / values) + n / values] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < TOGETHER; i++) {
      if (k + i < segments) ends[((k + i) * layout.rows + row) * size + n] = state;
      state = decay[i] == 0.0f ? end[i] : __fmaf_rn(decay[i], state, end[i]);
    }
  }
}
