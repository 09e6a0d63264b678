// Passes over matrices of n rows and D columns: how rows and columns are shared out, and sums over rows.
//
// A block is WIDTH threads across columns, each with PACK neighbours, times LANES rows; it owns `chunk` rows of them.
// Who owns what follows from n and D alone, and so does the order of every sum.
// Limits: below 2^31 blocks.
#pragma once
#include "numbers.cuh"

typedef STORAGE S;
typedef Compute<S>::type C;
constexpr int THREADS = 256, LANES = THREADS / WIDTH, COLUMNS = WIDTH * PACK;

struct alignas(PACK * sizeof(S)) Pack { S item[PACK]; };
struct Matrix {
  const S* at;  // or null: zeros
  i64 stride;   // between rows, in elements; columns are neighbours
};

struct Place {
  i64 chunk, first, last, column;
  int lane, corner;  // of the rows, and the first of this thread's columns in the block
  bool inside;

  __device__ __forceinline__ Place(i64 n, i64 columns, i64 rows) {
    const i64 blocks = (columns + COLUMNS - 1) / COLUMNS;
    chunk = blockIdx.x / blocks, lane = threadIdx.x / WIDTH, corner = threadIdx.x % WIDTH * PACK;
    column = (blockIdx.x - chunk * blocks) * COLUMNS + corner;
    inside = column < columns;
    first = chunk * rows + lane, last = chunk * rows + rows < n ? chunk * rows + rows : n;
  }
};

__device__ __forceinline__ void widen(C (&x)[PACK], const Pack& pack) {
#pragma unroll
  for (int i = 0; i < PACK; i++) x[i] = widen(pack.item[i]);
}

__device__ __forceinline__ void store(S* to, const C (&x)[PACK]) {
  Pack pack;
#pragma unroll
  for (int i = 0; i < PACK; i++) pack.item[i] = Narrow<S>::of(x[i]);
  *reinterpret_cast<Pack*>(to) = pack;
}

// What every row shares, of this thread's columns.
__device__ __forceinline__ void shared_by_rows(C (&x)[PACK], const C* from, const Place& place, double otherwise) {
#pragma unroll
  for (int i = 0; i < PACK; i++) x[i] = from && place.inside ? from[place.column + i] : static_cast<C>(otherwise);
}

// body(row, x) for the rows of one thread, x being its columns of every matrix; AHEAD rows are on the way at a time.
template <int COUNT, class Body>
__device__ __forceinline__ void walk(const Place& place, const Matrix (&matrix)[COUNT], Body body) {
  constexpr int AHEAD = COUNT > 2 ? 2 : 4;
  if (!place.inside) return;
#pragma unroll 1
  for (i64 begin = place.first; begin < place.last; begin += AHEAD * LANES) {
    Pack pack[AHEAD][COUNT];
#pragma unroll
    for (int a = 0; a < AHEAD; a++)
#pragma unroll
      for (int k = 0; k < COUNT; k++)
        if (matrix[k].at && begin + a * LANES < place.last)
          pack[a][k] = *reinterpret_cast<const Pack*>(matrix[k].at + (begin + a * LANES) * matrix[k].stride + place.column);
#pragma unroll
    for (int a = 0; a < AHEAD; a++) {
      if (begin + a * LANES >= place.last) break;
      C x[COUNT][PACK];
#pragma unroll
      for (int k = 0; k < COUNT; k++) {
        if (matrix[k].at) widen(x[k], pack[a][k]);
        else
          for (int i = 0; i < PACK; i++) x[k][i] = 0;
      }
      body(begin + a * LANES, x);
    }
  }
}

// The sum of every lane's `sum`, lane after lane, written to the chunk's row of `sums`; the whole block calls.
__device__ __forceinline__ void sum_lanes(const C (&sum)[PACK], C* sums, const Place& place, i64 columns) {
  __shared__ C parts[LANES][COLUMNS];
#pragma unroll
  for (int i = 0; i < PACK; i++) parts[place.lane][place.corner + i] = sum[i];
  __syncthreads();
  for (int c = threadIdx.x; c < COLUMNS; c += THREADS) {
    C total = parts[0][c];
    for (int lane = 1; lane < LANES; lane++) total += parts[lane][c];
    const i64 column = place.column - place.corner + c;
    if (column < columns) sums[place.chunk * columns + column] = total;
  }
  __syncthreads();
}
