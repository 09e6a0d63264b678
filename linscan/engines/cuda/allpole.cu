// y[t] = x[t] - sum_k a[t, k] y[t-1-k], coefficients that change at every step, along any axis.
//
// The state is the last LAGS outputs, newest first. Up to 4 lags a thread owns a chunk of a row (chunks.py): `reduce` runs
// it from rest and from every unit vector, which gives what it leaves and its matrix; `carry` goes from edge to edge;
// `run` filters. More lags: a thread owns a row.
//
// Bytes moved: coefficients and input twice (once where a row is one chunk), the output once.
// Limits: rows and lengths below 2^63 elements; up to 6 batch axes after folding.
#ifndef STORAGE  // one variant, for a compiler that is only asked whether this compiles
#define STORAGE float
#define LAGS 2
#endif
#include "chunks.cuh"
#include "layout.cuh"

typedef STORAGE C;
typedef Wide<C>::type W;
constexpr int K = LAGS, THREADS = 128;
constexpr bool HELD = K <= 16;  // else outputs are read again from memory

struct Unit {
  i64 row, chunk, begin, end;
  const C *a, *x;
  C* y;
};

// The chunk of this thread; threads are neighbours in time, or `by_rows` neighbouring rows.
__device__ __forceinline__ Unit unit_of(const Layout& layout, const C* a, const C* x, C* y, i64 size, i64 by_rows) {
  Unit unit;
  const i64 me = static_cast<i64>(blockIdx.x) * THREADS + threadIdx.x, chunks = layout.tiles;
  unit.row = by_rows ? me % layout.rows : me / chunks, unit.chunk = by_rows ? me / layout.rows : me % chunks;
  if (unit.row >= layout.rows || unit.chunk >= chunks) unit.chunk = -1;
  else {
    const Place place = locate(layout, unit.row);
    unit.a = a + place.at[DECAY], unit.x = x + place.at[INPUT], unit.y = y + place.at[OUT];
    unit.begin = unit.chunk * size;
    unit.end = unit.begin + size < layout.length ? unit.begin + size : layout.length;
  }
  return unit;
}

template <int N> __device__ __forceinline__ void shift_in(C (&z)[N], C y) {
#pragma unroll
  for (int k = N - 1; k > 0; k--) z[k] = z[k - 1];
  z[0] = y;
}

#if LAGS <= 4
extern "C" __global__ void __launch_bounds__(THREADS)
reduce(const __grid_constant__ Layout layout, const C* a, const C* x, C* states, C* matrices, i64 lag, i64 size, i64 by_rows) {
  const Unit unit = unit_of(layout, a, x, nullptr, size, by_rows);
  if (unit.chunk < 0 || unit.chunk == layout.tiles - 1) return;  // nothing follows the last chunk
  const i64 a_time = layout.operand[DECAY].time, x_time = layout.operand[INPUT].time;
  C z[K + 1][K];  // from each unit vector, and from rest
#pragma unroll
  for (int n = 0; n <= K; n++)
#pragma unroll
    for (int k = 0; k < K; k++) z[n][k] = Number<C>::make(n == k);
#pragma unroll 4
  for (i64 t = unit.begin; t < unit.end; t++) {
    C y[K + 1];
#pragma unroll
    for (int n = 0; n <= K; n++) y[n] = n < K ? Number<C>::make(0) : unit.x[t * x_time];
#pragma unroll
    for (int k = K - 1; k >= 0; k--) {
      const C slope = negative(unit.a[t * a_time + k * lag]);
#pragma unroll
      for (int n = 0; n <= K; n++) y[n] = mul_add(slope, z[n][k], y[n]);
    }
#pragma unroll
    for (int n = 0; n <= K; n++) shift_in(z[n], y[n]);
  }
  const i64 at = unit.row * layout.tiles + unit.chunk;
#pragma unroll
  for (int k = 0; k < K; k++) {
    states[at * K + k] = z[K][k];
#pragma unroll
    for (int n = 0; n < K; n++) matrices[(at * K + k) * K + n] = z[n][k];
  }
}

// The states at the edges of a row's chunks take the place of what the chunks leave; `stop` as in chunks.cuh. One chunk
// after the other: Width<K> lanes own a row.
extern "C" __global__ void __launch_bounds__(THREADS)
carry(i64 rows, i64 chunks, C* states, const C* matrices, const C* first, i64 first_row, i64* stop) {
  constexpr int WIDTH = Width<K>::value;
  const i64 owner = (static_cast<i64>(blockIdx.x) * THREADS + threadIdx.x) / WIDTH, row = owner < rows ? owner : rows - 1;
  const int part = threadIdx.x % WIDTH;
  const bool live = owner < rows && part < K;
  const C none = Number<C>::make(0);
  states += row * chunks * K + (live ? part : 0);
  matrices += row * chunks * K * K + (live ? part : 0) * K;
  W z = Cast<W>::of(live ? first[row * first_row + part] : none);
  i64 bad = chunks;
  C next_line[K], next = states[0];
  read_line(next_line, matrices, true);
#pragma unroll 1
  for (i64 c = 0; c < chunks; c++) {
    W line[K];
    const C f = next, edge = Cast<C>::of(z);
    bool tame = true;
#pragma unroll
    for (int j = 0; j < K; j++) {
      tame = tame && at_most(next_line[j], 1024.0);
      line[j] = Cast<W>::of(next_line[j]);
    }
    if (c + 2 < chunks) {  // the last chunk has no matrix
      next = states[(c + 1) * K];
      read_line(next_line, matrices + (c + 1) * K * K, true);
    }
    if (live) states[c * K] = edge;
    if (!is_finite(edge) && c > 0 && c - 1 < bad) bad = c - 1;
    if (!is_finite(edge) && c == 0) bad = 0;
    if (!tame && c + 1 < chunks && c < bad) bad = c;
    z = over_chunk(line, z, Cast<W>::of(f));
  }
  if (!live) bad = chunks;
#pragma unroll
  for (int by = 1; by < WIDTH; by *= 2) {
    const i64 other = __shfl_xor_sync(~0u, bad, by);
    bad = other < bad ? other : bad;
  }
  if (live && part == 0) stop[row] = bad;
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS)
run(const __grid_constant__ Layout layout, const C* a, const C* x, C* y, const C* states, const i64* stop, const C* first,
    i64 first_row, i64 lag, i64 size, i64 by_rows) {
  Unit unit = unit_of(layout, a, x, y, size, by_rows);
  if (unit.chunk < 0) return;
  if (layout.tiles > 1) {
    if (unit.chunk > stop[unit.row]) return;
    if (unit.chunk == stop[unit.row]) unit.end = layout.length;
  }
  const i64 a_time = layout.operand[DECAY].time, x_time = layout.operand[INPUT].time, y_time = layout.operand[OUT].time;
  const C* edge = layout.tiles > 1 ? states + (unit.row * layout.tiles + unit.chunk) * K : first + unit.row * first_row;
  C z[HELD ? K : 1];
  if (HELD) {
#pragma unroll
    for (int k = 0; k < (HELD ? K : 1); k++) z[k] = edge[k];
  }
#pragma unroll 4
  for (i64 t = unit.begin; t < unit.end; t++) {
    C total = unit.x[t * x_time];
    if (HELD) {
#pragma unroll
      for (int k = (HELD ? K : 1) - 1; k >= 0; k--) total = mul_add(negative(unit.a[t * a_time + k * lag]), z[k], total);
      shift_in(z, total);
    } else {
      for (int k = K - 1; k >= 0; k--) {
        const C before = t > k ? unit.y[(t - 1 - k) * y_time] : edge[k - t];
        total = mul_add(negative(unit.a[t * a_time + k * lag]), before, total);
      }
    }
    unit.y[t * y_time] = total;
  }
}
