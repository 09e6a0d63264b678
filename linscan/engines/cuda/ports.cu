// The two ends of a state space with few states and many channels, of rows: y = x w + d u; and from the gradients dv of
// v = u w, which the states are given, and dy: du = dv wᵀ + d dy, uᵀ dv, Σ dy u.
//
// A thread owns OWN columns, whose weights it keeps in registers, a warp AHEAD rows at a time; a block has `rows` of them.
// Sums over a block's rows are left in its row of `sums`: uᵀ dv, then Σ dy u.
// Bytes moved: every matrix once.
// Limits: INNER a multiple of 4, columns one of OWN; below 2^31 blocks; columns begin at OWN numbers.
#ifndef STORAGE  // the launcher's macros, as the tests compile it
#define INNER 16
#define OWN 2
#endif
#include "numbers.cuh"

constexpr int THREADS = 256, LANES = THREADS / 32, AHEAD = 4, COLUMNS = 32 * OWN, STAGE = AHEAD * INNER;
static_assert(STAGE % 32 == 0, "whole loads");

struct alignas(4 * OWN) Pack { float item[OWN]; };

struct Place {
  i64 chunk, first, last, column;
  int warp, lane;

  __device__ __forceinline__ Place(i64 n, i64 columns, i64 rows) {
    const i64 blocks = (columns + COLUMNS - 1) / COLUMNS;
    chunk = blockIdx.x / blocks, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    column = (blockIdx.x - chunk * blocks) * COLUMNS + lane * OWN;
    first = chunk * rows + warp * AHEAD, last = chunk * rows + rows < n ? chunk * rows + rows : n;
  }
};

// AHEAD rows on their way: those of COUNT matrices in a thread's columns, and those of a narrow one, shared by the warp.
template <int COUNT> struct Rows {
  Pack pack[AHEAD][COUNT];
  float narrow[STAGE / 32];

  __device__ __forceinline__ void fetch(const Place& place, i64 begin, const float* few, const float* const (&matrix)[COUNT],
                                        i64 columns) {
#pragma unroll
    for (int i = 0; i < STAGE / 32; i++) {
      const int at = place.lane + 32 * i;
      narrow[i] = begin + at / INNER < place.last ? few[begin * INNER + at] : 0;
    }
#pragma unroll
    for (int a = 0; a < AHEAD; a++)
#pragma unroll
      for (int k = 0; k < COUNT; k++)
        if (begin + a < place.last && place.column < columns)
          pack[a][k] = *reinterpret_cast<const Pack*>(matrix[k] + (begin + a) * columns + place.column);
  }
};

// body(row, few, x): a narrow matrix's row and this thread's columns of the others.
template <int COUNT, class Body>
__device__ __forceinline__ void walk(const Place& place, const float* few, const float* const (&matrix)[COUNT], i64 columns,
                                     Body body) {
  __shared__ float4 stages[LANES][STAGE / 4];
  float* stage = &stages[place.warp][0].x;
  Rows<COUNT> next;
  next.fetch(place, place.first, few, matrix, columns);
#pragma unroll 1
  for (i64 begin = place.first; begin < place.last; begin += LANES * AHEAD) {
    const Rows<COUNT> here = next;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < STAGE / 32; i++) stage[place.lane + 32 * i] = here.narrow[i];
    __syncwarp();
    if (begin + LANES * AHEAD < place.last) next.fetch(place, begin + LANES * AHEAD, few, matrix, columns);
#pragma unroll
    for (int a = 0; a < AHEAD; a++)
      if (begin + a < place.last) body(begin + a, stage + a * INNER, here.pack[a]);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
ports(const float* x, const float* w, const float* u, const float* d, float* y, i64 n, i64 columns, i64 rows) {
  const Place place(n, columns, rows);
  const bool inside = place.column < columns;
  float weight[INNER][OWN], direct[OWN];
#pragma unroll
  for (int j = 0; j < OWN; j++) {
    direct[j] = inside ? d[place.column + j] : 0;
#pragma unroll
    for (int k = 0; k < INNER; k++) weight[k][j] = inside ? w[k * columns + place.column + j] : 0;
  }
  walk<1>(place, x, {u}, columns, [&](i64 row, const float* few, const Pack (&pack)[1]) {
    Pack sum;
#pragma unroll
    for (int j = 0; j < OWN; j++) sum.item[j] = direct[j] * pack[0].item[j];
#pragma unroll
    for (int k = 0; k < INNER; k += 4) {
      const float4 x4 = *reinterpret_cast<const float4*>(few + k);
#pragma unroll
      for (int j = 0; j < OWN; j++) {
        sum.item[j] = mul_add(x4.x, weight[k][j], sum.item[j]), sum.item[j] = mul_add(x4.y, weight[k + 1][j], sum.item[j]);
        sum.item[j] = mul_add(x4.z, weight[k + 2][j], sum.item[j]), sum.item[j] = mul_add(x4.w, weight[k + 3][j], sum.item[j]);
      }
    }
    if (inside) *reinterpret_cast<Pack*>(y + row * columns + place.column) = sum;
  });
}

#if INNER * OWN <= 32  // or there are not enough registers
extern "C" __global__ void __launch_bounds__(THREADS, 2)
ports_pullback(const float* dv, const float* dy, const float* u, const float* w, const float* d, float* du, float* sums, i64 n,
               i64 columns, i64 rows) {
  __shared__ float parts[LANES][COLUMNS][INNER + 1];
  const Place place(n, columns, rows);
  const bool inside = place.column < columns;
  float weight[INNER][OWN], direct[OWN], slope[INNER][OWN] = {}, passed[OWN] = {};
#pragma unroll
  for (int j = 0; j < OWN; j++) {
    direct[j] = inside ? d[place.column + j] : 0;
#pragma unroll
    for (int k = 0; k < INNER; k++) weight[k][j] = inside ? w[(place.column + j) * INNER + k] : 0;
  }
  walk<2>(place, dv, {dy, u}, columns, [&](i64 row, const float* few, const Pack (&pack)[2]) {
    Pack sum;
#pragma unroll
    for (int j = 0; j < OWN; j++) {
      sum.item[j] = direct[j] * pack[0].item[j];
      passed[j] = mul_add(pack[0].item[j], pack[1].item[j], passed[j]);
    }
#pragma unroll
    for (int k = 0; k < INNER; k += 4) {
      const float4 v4 = *reinterpret_cast<const float4*>(few + k);
      const float v[4] = {v4.x, v4.y, v4.z, v4.w};
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < OWN; j++) {
          sum.item[j] = mul_add(v[i], weight[k + i][j], sum.item[j]);
          slope[k + i][j] = mul_add(v[i], pack[1].item[j], slope[k + i][j]);
        }
    }
    if (inside) *reinterpret_cast<Pack*>(du + row * columns + place.column) = sum;
  });
#pragma unroll
  for (int j = 0; j < OWN; j++) {
    float* to = parts[place.warp][place.lane * OWN + j];
#pragma unroll
    for (int k = 0; k < INNER; k++) to[k] = slope[k][j];
    to[INNER] = passed[j];
  }
  __syncthreads();
  float* to = sums + place.chunk * columns * (INNER + 1);
  for (int at = threadIdx.x; at < COLUMNS * (INNER + 1); at += THREADS) {
    const int c = at / (INNER + 1), k = at % (INNER + 1);
    const i64 column = place.column - place.lane * OWN + c;
    if (column >= columns) continue;
    float total = parts[0][c][k];
    for (int other = 1; other < LANES; other++) total += parts[other][c][k];
    to[k < INNER ? column * INNER + k : columns * INNER + column] = total;
  }
}
#endif
