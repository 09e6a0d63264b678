// Gated values of matrices, y = value σ(z + b) + around, and the pullback; db is left as sums over chunks of rows.
//
// Bytes moved: every matrix once.
#ifndef STORAGE  // the launcher's macros, as the tests compile it
#define STORAGE float
#define PACK 4
#define WIDTH 32
#endif
#include "columns.cuh"
#include "functions.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
gate(const S* value, i64 stride, const S* z, i64 z_stride, const C* bias, const S* around, i64 around_stride, S* y, i64 n,
        i64 columns, i64 rows) {
  const Place place(n, columns, rows);
  C b[PACK];
  shared_by_rows(b, bias, place, 0);
  walk<3>(place, {{value, stride}, {z, z_stride}, {around, around_stride}}, [&](i64 row, C (&x)[3][PACK]) {
#pragma unroll
    for (int i = 0; i < PACK; i++) x[0][i] = mul_add(x[0][i], sigmoid(x[1][i] + b[i]), x[2][i]);
    store(y + row * columns + place.column, x[0]);
  });
}

extern "C" __global__ void __launch_bounds__(THREADS)
gate_pullback(const S* dy, i64 dy_stride, const S* value, i64 stride, const S* z, i64 z_stride, const C* bias, S* dvalue,
         i64 dvalue_stride, S* dz, i64 dz_stride, C* sums, i64 n, i64 columns, i64 rows) {
  const Place place(n, columns, rows);
  C b[PACK], db[PACK] = {};
  shared_by_rows(b, bias, place, 0);
  walk<3>(place, {{dy, dy_stride}, {value, stride}, {z, z_stride}}, [&](i64 row, C (&x)[3][PACK]) {
#pragma unroll
    for (int i = 0; i < PACK; i++) {
      const C share = sigmoid(x[2][i] + b[i]), passed = x[0][i] * share;
      x[2][i] = passed * x[1][i] * (1 - share), db[i] += x[2][i];  // the gate gets dy value σ (1 - σ)
      x[0][i] = passed;
    }
    store(dvalue + row * dvalue_stride + place.column, x[0]);
    store(dz + row * dz_stride + place.column, x[2]);
  });
  if (sums) sum_lanes(db, sums, place, columns);
}
