// What passes by a state space, y + D u of matrices, and the pullback: D dy + around, and sums of dy u over chunks of rows.
//
// Bytes moved: every matrix once.
#ifndef STORAGE  // the launcher's macros, as the tests compile it
#define STORAGE float
#define PACK 4
#define WIDTH 32
#endif
#include "columns.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
feedthrough(const S* y, i64 stride, const S* u, i64 u_stride, const C* D, S* out, i64 n, i64 columns, i64 rows) {
  const Place place(n, columns, rows);
  C d[PACK];
  shared_by_rows(d, D, place, 0);
  walk<2>(place, {{y, stride}, {u, u_stride}}, [&](i64 row, C (&x)[2][PACK]) {
#pragma unroll
    for (int i = 0; i < PACK; i++) x[0][i] = mul_add(d[i], x[1][i], x[0][i]);
    store(out + row * columns + place.column, x[0]);
  });
}

extern "C" __global__ void __launch_bounds__(THREADS)
feedthrough_pullback(const S* dy, i64 stride, const S* u, i64 u_stride, const S* around, i64 around_stride, const C* D, S* du, C* sums,
         i64 n, i64 columns, i64 rows) {
  const Place place(n, columns, rows);
  C d[PACK], dD[PACK] = {};
  shared_by_rows(d, D, place, 0);
  walk<3>(place, {{dy, stride}, {u, u_stride}, {around, around_stride}}, [&](i64 row, C (&x)[3][PACK]) {
#pragma unroll
    for (int i = 0; i < PACK; i++) dD[i] = mul_add(x[0][i], x[1][i], dD[i]), x[2][i] = mul_add(d[i], x[0][i], x[2][i]);
    store(du + row * columns + place.column, x[2]);
  });
  sum_lanes(dD, sums, place, columns);
}
