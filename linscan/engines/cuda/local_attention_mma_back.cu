// The pullback of sliding-window attention for 16-bit arrays on tensor cores; see local_attention_back.cu for what it is.
//
// A warp has 16 of its block's 64 rows, queries or keys, and makes scores, weights and slopes of the next 64 columns in its
// registers, as local_attention_mma.cu does; weights and slopes are rounded to the dtype before they are multiplied.
// A product cannot leave out what is not finite: a block whose sums are not marks itself in `failed`.
// Limits: KEYS and VALUES, the widths rounded up to multiples of 64, to 128; below 2^31 blocks; cards from sm_80 on.
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
#include "local_attention_back.cuh"

struct Back {
  S rows[QUERIES][KEYS + PAD], rows_out[QUERIES][VALUES + PAD], tile[2][BLOCK][KEYS + PAD], tile_out[2][BLOCK][VALUES + PAD];
  float total[BLOCK], mean[BLOCK];
};

template <int COUNT> __device__ __forceinline__ void clear(float (&x)[COUNT][4]) {
#pragma unroll
  for (int n = 0; n < COUNT; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) x[n][i] = 0.0f;
}

// Writes 16 rows of a warp; returns whether a number is not finite.
template <int COUNT>
__device__ __forceinline__ bool give(S* out, const float (&sum)[COUNT][4], float scale, i64 first, i64 last, i64 width, int lane) {
  bool bad = false;
#pragma unroll
  for (int n = 0; n < COUNT; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const i64 t = first + lane / 4 + i / 2 * 8, c = 8 * n + lane % 4 * 2 + i % 2;
      bad = bad || !is_finite(sum[n][i]);
      if (t <= last && c < width) out[t * width + c] = Narrow<S>::of(scale * sum[n][i]);
    }
  return bad;
}

template <bool BY_KEYS>
__device__ __forceinline__ void pull_back(Back& shared, Marks& marks, const Layout& layout, const Sizes& sizes, const Pointers& from,
                                          const Span& x, const Given<float>& given, S* first_out, S* second_out, double* crossings,
                                          u8* failed) {
  const int lane = threadIdx.x & 31, row = threadIdx.x / 32 * 16, mine = row + lane / 4;
  const i64 all = sizes.past + layout.length, begin = x.row * layout.length - sizes.past;
  const S* cotangent = given.cotangent + begin * sizes.values;
  const S *q = BY_KEYS ? from.k : from.q, *v = BY_KEYS ? from.v : cotangent, *k = BY_KEYS ? from.q : from.k, *o = BY_KEYS ? cotangent : from.v;
  const i64 step_q = layout.operand[BY_KEYS ? K : Q].time, step_k = layout.operand[BY_KEYS ? Q : K].time;
  const i64 step_v = BY_KEYS ? layout.operand[V].time : sizes.values, step_o = BY_KEYS ? sizes.values : layout.operand[V].time;
  const int *rows_numbers = BY_KEYS ? from.seen : from.own, *tile_numbers = BY_KEYS ? from.own : from.seen;
  const i64 step_rows = layout.operand[BY_KEYS ? SEEN : OWN].time, step_tile = layout.operand[BY_KEYS ? OWN : SEEN].time;
  const Visits visits(x);
  const float scale = static_cast<float>(sizes.scale) * LOG2_E;
  fetch_tile<KEYS>(shared.rows, q, step_q, x.first, x.first, x.last, sizes.keys);
  fetch_tile<VALUES>(shared.rows_out, v, step_v, x.first, x.first, x.last, sizes.values);
  if (visits.count) {
    fetch_tile<KEYS>(shared.tile[0], k, step_k, visits.first(x, 0), x.low, x.high, sizes.keys);
    fetch_tile<VALUES>(shared.tile_out[0], o, step_o, visits.first(x, 0), x.low, x.high, sizes.values);
  }
  commit();
  mark_rows(marks, layout, sizes, from, x, rows_numbers, step_rows);
  float sum[KEYS / 8][4], sum_out[BY_KEYS ? VALUES / 8 : 1][4], total[2], mean[2];
  double crossing[2] = {0.0, 0.0};
  clear(sum), clear(sum_out);
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const i64 t = x.first + mine + 8 * half;
    const bool inside = !BY_KEYS && t <= x.last;
    total[half] = inside ? LOG2_E * given.total[begin + t] : INFINITY, mean[half] = inside ? given.mean[begin + t] : 0.0f;
  }
  double edge = 0.0;
#pragma unroll 1
  for (i64 n = 0; n < visits.count; n++) {
    const i64 first = visits.first(x, n);
    const int now = static_cast<int>(n) & 1;
    if (n == visits.ahead) edge = 0.0;
    mark<BLOCK>(marks, edge, layout, sizes, from, x, first, n < visits.ahead, tile_numbers, step_tile);
    if (BY_KEYS)
      for (int i = threadIdx.x; i < BLOCK; i += THREADS) {
        const bool inside = first + i >= x.low && first + i <= x.high;
        shared.total[i] = inside ? LOG2_E * given.total[begin + first + i] : INFINITY;
        shared.mean[i] = inside ? given.mean[begin + first + i] : 0.0f;
      }
    if (n + 1 < visits.count) {
      const i64 next = visits.first(x, n + 1);
      fetch_tile<KEYS>(shared.tile[1 - now], k, step_k, next, x.low, x.high, sizes.keys);
      fetch_tile<VALUES>(shared.tile_out[1 - now], o, step_o, next, x.low, x.high, sizes.values);
    }
    commit();
    arrived<1>();
    __syncthreads();
    float p[BLOCK / 8][4], ds[BLOCK / 8][4];
    products<KEYS>(p, shared.rows, shared.tile[now], row, lane);
    products<VALUES>(ds, shared.rows_out, shared.tile_out[now], row, lane);
    const bool whole = first >= x.low && first + BLOCK - 1 <= x.high && sees(sizes, BY_KEYS ? first : x.last, BY_KEYS ? x.last : first) &&
                       sees(sizes, BY_KEYS ? first + BLOCK - 1 : x.first, BY_KEYS ? x.first : first + BLOCK - 1);
    float across[2] = {0.0f, 0.0f};
#pragma unroll
    for (int m = 0; m < BLOCK / 8; m++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int column = 8 * m + lane % 4 * 2 + i % 2, r = mine + i / 2 * 8;
        float score = scale * p[m][i];
        if (GATED || MARKED || !whole) {
          const float more = bias<BY_KEYS>(marks, sizes, x, first, r, column, whole);
          score = more == -INFINITY ? more : __fmaf_rn(scale, p[m][i], LOG2_E * more);
        }
        const float weight = score == -INFINITY ? 0.0f : exp2f(score - (BY_KEYS ? shared.total[column] : total[i / 2]));
        p[m][i] = weight, ds[m][i] = weight == 0.0f ? 0.0f : weight * (ds[m][i] - (BY_KEYS ? shared.mean[column] : mean[i / 2]));
        if (GATED) across[i / 2] += first + column > x.first + r ? ds[m][i] : first + column < x.first + r ? -ds[m][i] : 0.0f;
      }
    crossing[0] += across[0], crossing[1] += across[1];
    weighted<KEYS>(sum, ds, shared.tile[now], lane);
    if constexpr (BY_KEYS) weighted<VALUES>(sum_out, p, shared.tile_out[now], lane);
    __syncthreads();
  }
  const i64 length = BY_KEYS ? all : layout.length, before = BY_KEYS ? 0 : sizes.past, place = x.row * length - before;
  bool bad = give(first_out + place * sizes.keys, sum, static_cast<float>(sizes.scale), x.first + row, x.last, sizes.keys, lane);
  if constexpr (BY_KEYS) bad = give(second_out + place * sizes.values, sum_out, 1.0f, x.first + row, x.last, sizes.values, lane) || bad;
  if (GATED) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      crossing[half] += shuffle_xor(crossing[half], 1), crossing[half] += shuffle_xor(crossing[half], 2);
      if (lane % 4 == 0 && x.first + mine + 8 * half <= x.last) crossings[place + x.first + mine + 8 * half] = crossing[half];
    }
  }
  const bool any = __syncthreads_or(bad);
  if (threadIdx.x == 0) failed[blockIdx.x] = any;
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) queries(ARGUMENTS, S* dq, double* crossings, u8* failed) {
  extern __shared__ __align__(16) u8 memory[];
  __shared__ Marks marks;
  const Span x = span(layout, sizes);
  const Pointers from = pointers(layout, sizes, locate(layout, x.row), q, k, v, g, own, seen);
  pull_back<false>(*reinterpret_cast<Back*>(memory), marks, layout, sizes, from, x, {cotangent, total, mean}, dq, nullptr, crossings, failed);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) keys(ARGUMENTS, S* dk, S* dv, double* crossings, u8* failed) {
  extern __shared__ __align__(16) u8 memory[];
  __shared__ Marks marks;
  const Span x = span_of_keys(layout, sizes);
  const Pointers from = pointers(layout, sizes, locate(layout, x.row), q, k, v, g, own, seen);
  pull_back<true>(*reinterpret_cast<Back*>(memory), marks, layout, sizes, from, x, {cotangent, total, mean}, dk, dv, crossings, failed);
}
