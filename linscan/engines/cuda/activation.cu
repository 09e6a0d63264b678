// Elementwise functions of matrices, y = f(x), and the pullback dx = dy f'(x) + around.
//
// Bytes moved: every matrix once.
#ifndef STORAGE  // the launcher's macros, as the tests compile it
#define STORAGE float
#define PACK 4
#define WIDTH 32
#define KIND 2
#endif
#include "columns.cuh"
#include "functions.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
activation(const S* x, i64 stride, S* y, i64 n, i64 columns, i64 rows) {
  const Place place(n, columns, rows);
  walk<1>(place, {{x, stride}}, [&](i64 row, C (&value)[1][PACK]) {
#pragma unroll
    for (int i = 0; i < PACK; i++) value[0][i] = value_of<KIND>(value[0][i]);
    store(y + row * columns + place.column, value[0]);
  });
}

extern "C" __global__ void __launch_bounds__(THREADS)
activation_pullback(const S* dy, i64 dy_stride, const S* x, i64 stride, const S* around, i64 around_stride, S* dx, i64 n, i64 columns,
         i64 rows) {
  const Place place(n, columns, rows);
  walk<3>(place, {{dy, dy_stride}, {x, stride}, {around, around_stride}}, [&](i64 row, C (&value)[3][PACK]) {
#pragma unroll
    for (int i = 0; i < PACK; i++) value[0][i] = mul_add(value[0][i], slope_of<KIND>(value[1][i]), value[2][i]);
    store(dx + row * columns + place.column, value[0]);
  });
}
