// o[t] = Σ_s softmax_s(scale q[t]·k[s] + Σ g) v[s] over the keys of a window, for 16-bit arrays on tensor cores.
//
// See local_attention.cuh. A warp has 16 of the block's 64 queries; of the next 64 keys, whose numbers come through shared
// memory while this tile is worked on, it makes scores, their weights and the weighted sum of values without leaving its
// registers. Weights are powers of two, rounded to the dtype; sums are float32.
// A product cannot leave out values that are not finite: a block whose sums are not marks itself in `failed`, and is run
// again by local_attention.cu.
// Bytes moved: q and o once, k and v once for every block that sees them (out of the cache but for the first).
// Limits: KEYS and VALUES, the widths rounded up to multiples of 64, to 256; below 2^31 blocks; cards from sm_80 on.
#ifndef STORAGE  // the launcher's macros, as the tests compile them
#define STORAGE bfloat16
#define QUERIES 64
#define KEYS 64
#define VALUES 64
#define GATED 1
#define MARKED 1
#define PACKED 1
#endif
#include "local_attention_mma.cuh"

constexpr int COLUMNS = VALUES / 8;
constexpr float LN_2 = 0.6931471805599453f;

struct Tiles {
  S q[QUERIES][KEYS + PAD], k[2][BLOCK][KEYS + PAD], v[2][BLOCK][VALUES + PAD];
};

extern "C" __global__ void __launch_bounds__(THREADS)
forward(const __grid_constant__ Layout layout, const __grid_constant__ Sizes sizes, const S* q, const S* k, const S* v,
        const S* g, const int* own, const int* seen, S* out, float* total, u8* failed) {
  extern __shared__ __align__(16) u8 memory[];
  __shared__ Marks marks;
  Tiles& tiles = *reinterpret_cast<Tiles*>(memory);
  const Span x = span(layout, sizes);
  const Pointers from = pointers(layout, sizes, locate(layout, x.row), q, k, v, g, own, seen);
  const int lane = threadIdx.x & 31, row = threadIdx.x / 32 * 16, mine = row + lane / 4;
  const Visits visits(x);
  const i64 step_k = layout.operand[K].time, step_v = layout.operand[V].time;
  const float scale = static_cast<float>(sizes.scale) * LOG2_E;
  fetch_tile<KEYS>(tiles.q, from.q, layout.operand[Q].time, x.first, x.first, x.last, sizes.keys);
  fetch_tile<KEYS>(tiles.k[0], from.k, step_k, x.first, x.low, x.high, sizes.keys);
  fetch_tile<VALUES>(tiles.v[0], from.v, step_v, x.first, x.low, x.high, sizes.values);
  commit();
  mark_rows(marks, layout, sizes, from, x, from.own, layout.operand[OWN].time);
  float o[COLUMNS][4], top[2] = {-INFINITY, -INFINITY}, weight[2] = {0.0f, 0.0f};
#pragma unroll
  for (int n = 0; n < COLUMNS; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) o[n][i] = 0.0f;
  double edge = 0.0;
#pragma unroll 1
  for (i64 n = 0; n < visits.count; n++) {
    const i64 first = visits.first(x, n);
    const int now = static_cast<int>(n) & 1;
    if (n == visits.ahead) edge = 0.0;
    mark<BLOCK>(marks, edge, layout, sizes, from, x, first, n < visits.ahead, from.seen, layout.operand[SEEN].time);
    if (n + 1 < visits.count) {
      const i64 next = visits.first(x, n + 1);
      fetch_tile<KEYS>(tiles.k[1 - now], from.k, step_k, next, x.low, x.high, sizes.keys);
      fetch_tile<VALUES>(tiles.v[1 - now], from.v, step_v, next, x.low, x.high, sizes.values);
    }
    commit();
    arrived<1>();
    __syncthreads();
    float s[BLOCK / 8][4];
    products<KEYS>(s, tiles.q, tiles.k[now], row, lane);
    const bool all = all_see(sizes, x, first, BLOCK);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float most = top[half];
#pragma unroll
      for (int m = 0; m < BLOCK / 8; m++)
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; i++) {
          if (GATED || MARKED || !all) {
            const float more = bias<false>(marks, sizes, x, first, mine + 8 * half, 8 * m + lane % 4 * 2 + i % 2, all);
            s[m][i] = more == -INFINITY ? more : __fmaf_rn(scale, s[m][i], LOG2_E * more);
          } else {
            s[m][i] = scale * s[m][i];
          }
          most = larger(most, s[m][i]);
        }
      most = larger(most, shuffle_xor(most, 1)), most = larger(most, shuffle_xor(most, 2));
      const float base = most == -INFINITY ? 0.0f : most, old = exp2f(top[half] - base);
      float sum = 0.0f;
#pragma unroll
      for (int m = 0; m < BLOCK / 8; m++)
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; i++) s[m][i] = exp2f(s[m][i] - base), sum += s[m][i];
      weight[half] = __fmaf_rn(weight[half], old, sum), top[half] = most;
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) o[c][2 * half] *= old, o[c][2 * half + 1] *= old;
    }
    weighted<VALUES>(o, s, tiles.v[now], lane);
    __syncthreads();
  }
  bool bad = false;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float sum = weight[half];
    sum += shuffle_xor(sum, 1), sum += shuffle_xor(sum, 2);
    const i64 t = x.first + mine + 8 * half, index = x.row * layout.length + t - sizes.past;
    const bool empty = sum == 0.0f, inside = t <= x.last;
    bad = bad || !is_finite(sum);
    const float share = empty ? 0.0f : 1.0f / sum;
    S* to = out + index * sizes.values;
#pragma unroll
    for (int c = 0; c < COLUMNS; c++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int column = 8 * c + lane % 4 * 2 + i;
        bad = bad || !is_finite(o[c][2 * half + i]);
        if (inside && column < sizes.values) to[column] = Narrow<S>::of(share * o[c][2 * half + i]);
      }
    if (inside && lane % 4 == 0) total[index] = empty ? INFINITY : LN_2 * (top[half] + log2f(sum));
  }
  const bool any = __syncthreads_or(bad);
  if (threadIdx.x == 0) failed[blockIdx.x] = any;
}
