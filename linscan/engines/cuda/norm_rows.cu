// Normalisation of every row by its own statistics, y = (x - mean) r scale + shift, about 0 if not CENTRED, and dx.
//
// A warp owns a row and reads it again for every sum over it (from the cache, after the first). Bytes moved: x and y;
// dy, x, dx and `around` if there is one.
#ifndef STORAGE  // the launcher's macros, as the tests compile it
#define STORAGE float
#define PACK 4
#define WIDTH 32
#define CENTRED 1
#endif
#include "columns.cuh"

__device__ __forceinline__ C over_warp(C sum) {
#pragma unroll
  for (int by = 16; by; by /= 2) sum += shuffle_xor(sum, by);
  return sum;
}

// body(column, i) for a lane's columns, PACK at a time, of a row that begins at `from`.
template <class Body> __device__ __forceinline__ void along(i64 columns, Body body) {
#pragma unroll 4
  for (i64 column = threadIdx.x % 32 * PACK; column < columns; column += 32 * PACK) body(column);
}

__device__ __forceinline__ void load(C (&x)[PACK], const S* from) { widen(x, *reinterpret_cast<const Pack*>(from)); }

extern "C" __global__ void __launch_bounds__(THREADS)
normal_rows(const S* x, i64 stride, const C* scale, const C* shift, double eps, S* y, C* means, C* roots, i64 n, i64 columns) {
  const i64 row = blockIdx.x * i64(THREADS / 32) + threadIdx.x / 32;
  if (row >= n) return;
  x += row * stride, y += row * columns;
  const C part = 1 / static_cast<C>(columns);
  C mean = 0, square = 0, value[PACK];
  if (CENTRED) {
    along(columns, [&](i64 column) {
      load(value, x + column);
      for (int i = 0; i < PACK; i++) mean += value[i];
    });
    mean = over_warp(mean) * part;
  }
  along(columns, [&](i64 column) {
    load(value, x + column);
    for (int i = 0; i < PACK; i++) square = mul_add(value[i] - mean, value[i] - mean, square);
  });
  const C root = 1 / sqrt(over_warp(square) * part + static_cast<C>(eps));
  along(columns, [&](i64 column) {
    load(value, x + column);
    for (int i = 0; i < PACK; i++)
      value[i] = mul_add((value[i] - mean) * root, scale ? scale[column + i] : 1, shift ? shift[column + i] : 0);
    store(y + column, value);
  });
  if (threadIdx.x % 32 == 0) roots[row] = root;
  if (CENTRED && threadIdx.x % 32 == 0) means[row] = mean;
}

// dx = r (dn - mean(dn) - n mean(dn n)) + around, with dn = dy scale; without the first mean about 0.
extern "C" __global__ void __launch_bounds__(THREADS)
flow_rows(const S* dy, i64 dy_stride, const S* x, i64 stride, const S* around, i64 around_stride, const C* scale,
     const C* means, const C* roots, S* dx, i64 n, i64 columns) {
  const i64 row = blockIdx.x * i64(THREADS / 32) + threadIdx.x / 32;
  if (row >= n) return;
  dy += row * dy_stride, x += row * stride, dx += row * columns;
  if (around) around += row * around_stride;
  const C part = 1 / static_cast<C>(columns), mean = CENTRED ? means[row] : 0, root = roots[row];
  C through_mean = 0, through_root = 0, g[PACK], value[PACK];
  auto read = [&](i64 column) {
    load(g, dy + column), load(value, x + column);
    for (int i = 0; i < PACK; i++) g[i] *= scale ? scale[column + i] : 1, value[i] = (value[i] - mean) * root;
  };
  along(columns, [&](i64 column) {
    read(column);
    for (int i = 0; i < PACK; i++) through_mean += g[i], through_root = mul_add(g[i], value[i], through_root);
  });
  through_mean = CENTRED ? over_warp(through_mean) * part : 0;
  through_root = over_warp(through_root) * part;
  along(columns, [&](i64 column) {
    read(column);
    C beside[PACK] = {};
    if (around) load(beside, around + column);
    for (int i = 0; i < PACK; i++)
      value[i] = mul_add(root, g[i] - mul_add(value[i], through_root, through_mean), beside[i]);
    store(dx + column, value);
  });
}
