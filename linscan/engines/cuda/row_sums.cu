// Sums over the rows of a matrix, ROWS at a time: gradients of what all rows share.
//
// Bytes moved: the matrix once. A warp reads 32 neighbours of a row; always in the same order, whatever the card.
// Limits: below 2^31 blocks.
#ifndef STORAGE  // the launcher's macro, as the tests compile it
#define STORAGE float
#endif
#include "numbers.cuh"

typedef STORAGE S;
constexpr int COLUMNS = 32, LANES = 8, ROWS = 1024;

extern "C" __global__ void __launch_bounds__(COLUMNS* LANES) run(const S* x, S* sums, i64 rows, i64 columns) {
  __shared__ S parts[LANES][COLUMNS];
  const i64 blocks = (columns + COLUMNS - 1) / COLUMNS, chunk = blockIdx.x / blocks;
  const i64 column = blockIdx.x % blocks * COLUMNS + threadIdx.x % COLUMNS;
  const i64 first = chunk * ROWS, last = first + ROWS < rows ? first + ROWS : rows;
  const int lane = threadIdx.x / COLUMNS;
  S sum = Number<S>::make(0);
  if (column < columns)
#pragma unroll 16  // as many on the way: few blocks may have to fetch all
    for (i64 row = first + lane; row < last; row += LANES) sum = add(sum, x[row * columns + column]);
  parts[lane][threadIdx.x % COLUMNS] = sum;
  __syncthreads();
  if (lane || column >= columns) return;
#pragma unroll
  for (int other = 1; other < LANES; other++) sum = add(sum, parts[other][threadIdx.x % COLUMNS]);
  sums[chunk * columns + column] = sum;
}
