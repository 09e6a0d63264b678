// y[t] = sum_k b[k] x[t-k] - sum_k a[k] y[t-k], or a cascade of second-order sections, along any axis.
//
// The state is SciPy's, the transposed direct form II. A thread owns a chunk of a row (chunks.py) and runs through it with
// the state and the coefficients in registers; a warp owns 32 chunks. Where time is the last axis the chunks are neighbours
// in time: the warp reads whole lines, one chunk after the other, and turns them in shared memory. Elsewhere (LANES) they
// are neighbouring rows, and every step of the warp is a line. Any strides are right.
//
// Bytes moved: the input twice (once where a row is one chunk), the output once, and N states per chunk.
// Limits: rows and lengths below 2^63 elements; up to 6 batch axes after folding; orders above 16 leave the registers.
#ifndef STORAGE  // one variant, for a compiler that is only asked whether this compiles
#define STORAGE float
#define SECTIONS 0
#define TAPS_B 5
#define TAPS_A 5
#define COMPLEX_TAPS 0
#define LANES 0
#endif
#include "chunks.cuh"
#include "layout.cuh"

typedef STORAGE C;
template <class C, bool COMPLEX> struct Coefficient { typedef C type; };
template <class R> struct Coefficient<complex<R>, false> { typedef R type; };
typedef Coefficient<C, COMPLEX_TAPS>::type K;
typedef Edge<K>::type M;
typedef Longest<K>::type E;

constexpr int ORDER = SECTIONS ? 2 * SECTIONS : (TAPS_B > TAPS_A ? TAPS_B : TAPS_A) - 1;
constexpr bool PARALLEL = ORDER <= 16;  // else every row is one chunk
constexpr int UNROLL = PARALLEL ? ORDER + 1 : 1;
constexpr int WARPS = 4, TILE = 128 / sizeof(C), LINES = 32 / TILE;  // steps of a line; lines of one access of a warp

struct Taps {
  const K *b, *a;
  i64 b_row, a_row;  // from one row's to the next
};

#if SECTIONS
template <class K> struct Filter {
  K b[SECTIONS][3], a[SECTIONS][2];

  __device__ __forceinline__ void load(const Taps& taps, i64 row) {
    const auto* line = taps.b + row * taps.b_row;
#pragma unroll
    for (int s = 0; s < SECTIONS; s++, line += 6) {
      b[s][0] = Cast<K>::of(line[0]), b[s][1] = Cast<K>::of(line[1]), b[s][2] = Cast<K>::of(line[2]);
      a[s][0] = Cast<K>::of(negative(line[4])), a[s][1] = Cast<K>::of(negative(line[5]));
    }
  }
  template <class C> __device__ __forceinline__ C step(C (&z)[ORDER], C x) const {
#pragma unroll
    for (int s = 0; s < SECTIONS; s++) {
      const C y = mul_add(b[s][0], x, z[2 * s]);
      z[2 * s] = mul_add(a[s][0], y, mul_add(b[s][1], x, z[2 * s + 1]));
      z[2 * s + 1] = mul_add(a[s][1], y, mul(b[s][2], x));
      x = y;
    }
    return x;
  }
};
#else
template <class K> struct Filter {
  K b[TAPS_B], a[TAPS_A];

  __device__ __forceinline__ void load(const Taps& taps, i64 row) {
#pragma unroll UNROLL
    for (int k = 0; k < TAPS_B; k++) b[k] = Cast<K>::of(taps.b[row * taps.b_row + k]);
#pragma unroll UNROLL
    for (int k = 0; k < TAPS_A; k++) a[k] = Cast<K>::of(negative(taps.a[row * taps.a_row + k]));
  }
  template <class C> __device__ __forceinline__ C step(C (&z)[ORDER], C x) const {
    const C y = mul_add(b[0], x, z[0]);
#pragma unroll UNROLL
    for (int k = 1; k <= ORDER; k++) {
      C next = k < ORDER ? z[k < ORDER ? k : 0] : Cast<C>::of(0.0);
      if (k < TAPS_B) next = mul_add(b[k < TAPS_B ? k : 0], x, next);
      if (k < TAPS_A) next = mul_add(a[k < TAPS_A ? k : 0], y, next);
      z[k - 1] = next;
    }
    return y;
  }
};
#endif

// 32 chunks of a warp: where each begins, and how many of its samples are to be done.
struct Turn {
  C line[32][TILE + 1];
  i64 in[32], out[32], count[32];
};

// This thread's share of TILE samples of the warp's chunks: of its own chunk with LANES, else of every chunk in turn.
__device__ __forceinline__ void load(C (&x)[TILE], const C* input, i64 time, i64 t, const Turn& turn, i64 in, i64 count, int lane) {
#pragma unroll
  for (int i = 0; i < TILE; i++) {
    const int line = LANES ? 0 : i * LINES + lane / TILE;
    const i64 at = t + (LANES ? i : lane % TILE);
    const bool there = at < (LANES ? count : turn.count[line]);
    x[i] = there ? input[(LANES ? in : turn.in[line]) + at * time] : Number<C>::make(0);
  }
}

template <bool WRITE>
__device__ __forceinline__ void filter_unit(const Layout& layout, const C* input, C* output, const Taps& taps, C* states,
                                            const i64* stop, const C* first, i64 first_row, C* last, i64 last_row, i64 size,
                                            i64 block, Turn& turn) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  const i64 unit = (block * WARPS + warp) * 32 + lane, rows = layout.rows, chunks = layout.tiles;
  const bool mine = unit < rows * chunks;
  const i64 row = !mine ? 0 : LANES ? unit % rows : unit / chunks, chunk = !mine ? 0 : LANES ? unit / rows : unit % chunks;
  const i64 begin = chunk * size, rest = layout.length - begin;
  i64 count = !mine ? 0 : rest < size ? rest : size;
  bool is_last = mine && chunk == chunks - 1;
  if (WRITE && chunks > 1 && mine) {
    const i64 end = stop[row];
    if (chunk >= end) count = chunk == end ? rest : 0, is_last = chunk == end;
  }
  if (!WRITE && chunk == chunks - 1) count = 0;  // nothing follows it
  const Place place = locate(layout, row);
  const Operand *x_layout = layout.operand + INPUT, *y_layout = layout.operand + OUT;
  const i64 in = place.at[INPUT] + begin * x_layout->time, out = place.at[OUT] + begin * y_layout->time;
  if (!LANES) {
    turn.in[lane] = in, turn.out[lane] = out, turn.count[lane] = count;
    __syncwarp();
  }

  Filter<K> filter;
  filter.load(taps, row);
  C z[ORDER], x[TILE];
#pragma unroll UNROLL
  for (int n = 0; n < ORDER; n++) {
    if (!WRITE) z[n] = Number<C>::make(0);
    else if (chunks > 1) z[n] = states[(row * chunks + chunk) * ORDER + n];
    else z[n] = first ? first[row * first_row + n] : Number<C>::make(0);
  }
  load(x, input, x_layout->time, 0, turn, in, count, lane);
#pragma unroll 1
  for (i64 t = 0; __any_sync(~0u, t < count); t += TILE) {
    if (!LANES) {
#pragma unroll
      for (int i = 0; i < TILE; i++) turn.line[i * LINES + lane / TILE][lane % TILE] = x[i];
      __syncwarp();
      load(x, input, x_layout->time, t + TILE, turn, in, count, lane);
    }
    if (__all_sync(~0u, t + TILE <= count) && PARALLEL) {
      C ahead[TILE];
      if (LANES) load(ahead, input, x_layout->time, t + TILE, turn, in, count, lane);
#pragma unroll
      for (int i = 0; i < TILE; i++) {
        const C y = filter.step(z, LANES ? x[i] : turn.line[lane][i]);
        if (WRITE && LANES) output[out + (t + i) * y_layout->time] = y;
        if (WRITE && !LANES) turn.line[lane][i] = y;
      }
      if (LANES) {
#pragma unroll
        for (int i = 0; i < TILE; i++) x[i] = ahead[i];
      }
    } else {  // some chunk ends here
#pragma unroll 1
      for (int i = 0; i < TILE && t + i < count; i++) {
        const C y = filter.step(z, LANES ? input[in + (t + i) * x_layout->time] : turn.line[lane][i]);
        if (WRITE && LANES) output[out + (t + i) * y_layout->time] = y;
        if (WRITE && !LANES) turn.line[lane][i] = y;
      }
      if (LANES) load(x, input, x_layout->time, t + TILE, turn, in, count, lane);
    }
    if (WRITE && !LANES) {
      __syncwarp();
#pragma unroll
      for (int i = 0; i < TILE; i++) {
        const int line = i * LINES + lane / TILE;
        const i64 at = t + lane % TILE;
        if (at < turn.count[line]) output[turn.out[line] + at * y_layout->time] = turn.line[line][lane % TILE];
      }
    }
    __syncwarp();
  }
  if (!WRITE ? chunk < chunks - 1 && mine : is_last) {
    C* to = WRITE ? last + row * last_row : states + (row * chunks + chunk) * ORDER;
#pragma unroll UNROLL
    for (int n = 0; n < ORDER; n++) to[n] = z[n];
  }
}

#if !(SECTIONS > 8 || TAPS_A > 17 || TAPS_B > 17)
// Blocks below `filters` make one filter's matrices, the others find what chunks leave from rest.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
reduce(const __grid_constant__ Layout layout, const C* input, const K* b, const K* a, i64 b_row, i64 a_row, C* states,
       M* matrices, i64 filters, i64 size, i64 size_doublings, i64 span_doublings) {
  const Taps taps = {b, a, b_row, a_row};
  __shared__ Turn turn[LANES ? 1 : WARPS];
  __shared__ E matrix[2][ORDER * ORDER];
  if (blockIdx.x >= filters) {
    filter_unit<false>(layout, input, nullptr, taps, states, nullptr, nullptr, 0, nullptr, 0, size, blockIdx.x - filters,
                       turn[LANES ? 0 : threadIdx.x / 32]);
    return;
  }
  Filter<E> filter;
  filter.load(taps, blockIdx.x);
  for (int j = threadIdx.x; j < ORDER; j += blockDim.x) {  // column j is one step without input from the unit vector j
    E z[ORDER];
#pragma unroll
    for (int i = 0; i < ORDER; i++) z[i] = Cast<E>::of(i == j ? 1.0 : 0.0);
    filter.step(z, Cast<E>::of(0.0));
#pragma unroll
    for (int i = 0; i < ORDER; i++) matrix[0][i * ORDER + j] = z[i];
  }
  powers<ORDER>(matrix, static_cast<int>(size_doublings), static_cast<int>(span_doublings),
                matrices + blockIdx.x * 2ll * ORDER * ORDER);
}

extern "C" __global__ void __launch_bounds__(CARRY_THREADS, 1)
carry(i64 rows, const M* matrices, i64 filters, C* states, i64 chunks, i64 span, const C* first, i64 first_row, i64* stop) {
  for (i64 row = blockIdx.x; row < rows; row += gridDim.x)
    carry_row<ORDER, C, M, Edge<C>::type>(matrices + (filters > 1 ? row : 0) * 2 * ORDER * ORDER, states + row * chunks * ORDER,
                                          first ? first + row * first_row : nullptr, chunks, static_cast<int>(span),
                                          stop + row);
}
#endif

extern "C" __global__ void __launch_bounds__(32 * WARPS)
run(const __grid_constant__ Layout layout, const C* input, C* output, const K* b, const K* a, i64 b_row, i64 a_row, C* states,
    const i64* stop, const C* first, i64 first_row, C* last, i64 last_row, i64 size) {
  const Taps taps = {b, a, b_row, a_row};
  __shared__ Turn turn[LANES ? 1 : WARPS];
  filter_unit<true>(layout, input, output, taps, states, stop, first, first_row, last, last_row, size, blockIdx.x,
                    turn[LANES ? 0 : threadIdx.x / 32]);
}
