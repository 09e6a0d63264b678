// Normalisation of columns by statistics of all rows, y = (x - mean) r scale + shift with r = (var + eps)^(-1/2), the
// pullback, and the sums over rows that rows' own norms need too.
//
// moments, then gather: mean and variance, of what is left when row 0 is taken from all. A thread sums a few rows about
// the first of them, so that no digits cancel, and such groups are merged by count, mean and sum of squares about it:
// within a thread, a block, then over chunks.
// Bytes moved: moments x, normal x and y; slopes dy and x, flow those, dx, and `around` if there is one.
#ifndef STORAGE  // the launcher's macros, as the tests compile it
#define STORAGE float
#define PACK 4
#define WIDTH 32
#endif
#include "columns.cuh"

constexpr int GROUP = 16, SIDE = 8, DEPTH = THREADS / SIDE;

struct Moments {
  C count, mean, squares;  // `squares` about the mean

  __device__ __forceinline__ void merge(const Moments& other) {
    const C all = count + other.count;
    if (all == 0) return;
    const C share = other.count / all, off = other.mean - mean;
    squares = squares + other.squares + off * off * (count * share);
    mean += off * share, count = all;
  }
};

extern "C" __global__ void __launch_bounds__(THREADS)
moments(const S* x, i64 stride, C* counts, C* means, C* squares, i64 n, i64 columns, i64 rows) {
  __shared__ Moments parts[LANES][COLUMNS];
  const Place place(n, columns, rows);
  Moments all[PACK] = {};
  C base[PACK] = {}, first[PACK], sum[PACK], square[PACK];
  int count = 0;
  if (place.inside) widen(base, *reinterpret_cast<const Pack*>(x + place.column));
  auto close = [&] {
#pragma unroll
    for (int i = 0; i < PACK; i++) {
      const C mean = sum[i] / static_cast<C>(count);
      all[i].merge({static_cast<C>(count), first[i] + mean, square[i] - sum[i] * mean});
    }
    count = 0;
  };
  walk<1>(place, {{x, stride}}, [&](i64, const C (&value)[1][PACK]) {
    if (count == 0)
#pragma unroll
      for (int i = 0; i < PACK; i++) first[i] = value[0][i] - base[i], sum[i] = 0, square[i] = 0;
#pragma unroll
    for (int i = 0; i < PACK; i++) {
      const C off = value[0][i] - base[i] - first[i];
      sum[i] += off, square[i] = mul_add(off, off, square[i]);
    }
    if (++count == GROUP) close();
  });
  if (count) close();
#pragma unroll
  for (int i = 0; i < PACK; i++) parts[place.lane][place.corner + i] = all[i];
  __syncthreads();
  for (int c = threadIdx.x; c < COLUMNS; c += THREADS) {
    Moments total = parts[0][c];
    for (int lane = 1; lane < LANES; lane++) total.merge(parts[lane][c]);
    const i64 column = place.column - place.corner + c, at = place.chunk * columns + column;
    if (column < columns) counts[at] = total.count, means[at] = total.mean, squares[at] = total.squares;
  }
}

// Of all chunks; a block owns SIDE columns. No rows: mean and variance 0.
extern "C" __global__ void __launch_bounds__(THREADS)
gather(const S* x, const C* counts, const C* means, const C* squares, C* mean, C* var, i64 chunks, i64 columns) {
  __shared__ Moments parts[DEPTH][SIDE];
  const int side = threadIdx.x % SIDE, depth = threadIdx.x / SIDE;
  const i64 column = blockIdx.x * i64(SIDE) + side;
  Moments total = {};
  if (column < columns)
#pragma unroll 4
    for (i64 chunk = depth; chunk < chunks; chunk += DEPTH) {
      const i64 at = chunk * columns + column;
      total.merge({counts[at], means[at], squares[at]});
    }
  parts[depth][side] = total;
  for (int half = DEPTH / 2; half; half /= 2) {
    __syncthreads();
    if (depth < half) parts[depth][side].merge(parts[depth + half][side]);
  }
  if (depth || column >= columns) return;
  total = parts[0][side];
  mean[column] = total.count == 0 ? 0 : widen(x[column]) + total.mean;
  var[column] = total.squares / (total.count == 0 ? 1 : total.count);
}

__device__ __forceinline__ void roots(C (&r)[PACK], const C* var, const Place& place, double eps) {
  shared_by_rows(r, var, place, 1);
#pragma unroll
  for (int i = 0; i < PACK; i++) r[i] = 1 / sqrt(r[i] + static_cast<C>(eps));
}

extern "C" __global__ void __launch_bounds__(THREADS)
normal(const S* x, i64 stride, const C* mean, const C* var, const C* scale, const C* shift, double eps, S* y, i64 n,
       i64 columns, i64 rows) {
  const Place place(n, columns, rows);
  C m[PACK], r[PACK], s[PACK], b[PACK];
  shared_by_rows(m, mean, place, 0), roots(r, var, place, eps);
  shared_by_rows(s, scale, place, 1), shared_by_rows(b, shift, place, 0);
  walk<1>(place, {{x, stride}}, [&](i64 row, C (&value)[1][PACK]) {
#pragma unroll
    for (int i = 0; i < PACK; i++) value[0][i] = mul_add((value[0][i] - m[i]) * r[i], s[i], b[i]);
    store(y + row * columns + place.column, value[0]);
  });
}

// A chunk's sums over rows of dy n and of dy, one after the other; n by the columns' statistics, or (OF_ROWS) the rows'.
template <bool OF_ROWS>
__device__ __forceinline__ void slopes_of(const S* dy, i64 dy_stride, const S* x, i64 stride, const C* mean, const C* var,
                                          double eps, C* sums, i64 n, i64 columns, i64 rows) {
  const Place place(n, columns, rows);
  C m[PACK], r[PACK], dscale[PACK] = {}, dshift[PACK] = {};
  if (!OF_ROWS) shared_by_rows(m, mean, place, 0), roots(r, var, place, eps);
  walk<2>(place, {{dy, dy_stride}, {x, stride}}, [&](i64 row, const C (&value)[2][PACK]) {
    const C about = OF_ROWS && mean ? mean[row] : 0, root = OF_ROWS ? var[row] : 0;
#pragma unroll
    for (int i = 0; i < PACK; i++) {
      const C normal = OF_ROWS ? (value[1][i] - about) * root : (value[1][i] - m[i]) * r[i];
      dscale[i] = mul_add(value[0][i], normal, dscale[i]), dshift[i] += value[0][i];
    }
  });
  sum_lanes(dscale, sums + place.chunk * columns, place, columns);
  sum_lanes(dshift, sums + (place.chunk + 1) * columns, place, columns);
}

extern "C" __global__ void __launch_bounds__(THREADS)
slopes(const S* dy, i64 dy_stride, const S* x, i64 stride, const C* mean, const C* var, double eps, C* sums, i64 n,
       i64 columns, i64 rows) {
  slopes_of<false>(dy, dy_stride, x, stride, mean, var, eps, sums, n, columns, rows);
}

extern "C" __global__ void __launch_bounds__(THREADS)
slopes_of_rows(const S* dy, i64 dy_stride, const S* x, i64 stride, const C* mean, const C* root, double, C* sums, i64 n,
               i64 columns, i64 rows) {
  slopes_of<true>(dy, dy_stride, x, stride, mean, root, 0, sums, n, columns, rows);
}

// dx = r scale (dy - (dshift + n dscale) / n) + around; `totals` are dscale and dshift, or null where statistics were given.
extern "C" __global__ void __launch_bounds__(THREADS)
flow(const S* dy, i64 dy_stride, const S* x, i64 stride, const S* around, i64 around_stride, const C* mean, const C* var,
     const C* scale, double eps, const C* totals, S* dx, i64 n, i64 columns, i64 rows) {
  const Place place(n, columns, rows);
  C m[PACK], r[PACK], s[PACK], dscale[PACK], dshift[PACK];
  shared_by_rows(m, mean, place, 0), roots(r, var, place, eps), shared_by_rows(s, scale, place, 1);
  shared_by_rows(dscale, totals, place, 0), shared_by_rows(dshift, totals ? totals + columns : nullptr, place, 0);
  const C part = 1 / static_cast<C>(n);
#pragma unroll
  for (int i = 0; i < PACK; i++) s[i] *= r[i], dscale[i] *= part, dshift[i] *= part;
  walk<3>(place, {{dy, dy_stride}, {x, stride}, {around, around_stride}}, [&](i64 row, C (&value)[3][PACK]) {
#pragma unroll
    for (int i = 0; i < PACK; i++) {
      const C normal = (value[1][i] - m[i]) * r[i];
      value[0][i] = mul_add(s[i], value[0][i] - mul_add(normal, dscale[i], dshift[i]), value[2][i]);
    }
    store(dx + row * columns + place.column, value[0]);
  });
}
