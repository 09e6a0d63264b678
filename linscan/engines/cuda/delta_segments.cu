// From segment to segment of a long sequence of the delta rule: the state before each, S[n + 1] = M[n] S[n] + N[n].
//
// A block owns 16 values of one head and keeps their part of the state in shared memory; M comes 32 columns at a time. With
// BACK it is the gradient of the state, and M transposed, from the last segment to the first. A segment that forgets, whose M
// is zero, passes on neither NaN nor inf.
//
// Bytes moved: M once for every 16 values, N and the states once. Limits: keys to 256, any number of values and segments.
#ifndef STORAGE  // the launcher's macros, as the tests compile them
#define STORAGE float
#define BACK 0
#endif
#include "numbers.cuh"

typedef STORAGE F;
constexpr int THREADS = 256, VALUES = 16, PIECE = 32, WIDEST = 256, HALF = VALUES / 2;
constexpr int ROWS = WIDEST / (THREADS / 2);  // of a thread, which has half of the values

struct Shared { F state[WIDEST][VALUES], moves[WIDEST][PIECE + 1]; };

extern "C" __global__ void __launch_bounds__(THREADS)
carry(const F* first, const F* moves, const F* adds, F* states, int keys, i64 values, int segments) {
  extern __shared__ __align__(16) u8 memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const i64 slices = (values + VALUES - 1) / VALUES, row = blockIdx.x / slices, corner = blockIdx.x % slices * VALUES;
  const i64 size = keys * values;
  const int left = static_cast<int>(values - corner < VALUES ? values - corner : VALUES);
  const int half = threadIdx.x % 2 * HALF, own = threadIdx.x / 2;
  for (int i = threadIdx.x; i < keys * VALUES; i += THREADS)
    shared.state[i / VALUES][i % VALUES] = i % VALUES < left ? first[row * size + i / VALUES * values + corner + i % VALUES] : 0.0f;
  __syncthreads();
#pragma unroll 1
  for (int step = 0; step < segments; step++) {
    const i64 segment = row * segments + (BACK ? segments - 1 - step : step);
    F sum[ROWS][HALF] = {};
    bool moved = false;
#pragma unroll 1
    for (int k = 0; k < keys; k += PIECE) {
      for (int i = threadIdx.x; i < keys * PIECE; i += THREADS) {
        const int r = BACK ? i % keys : i / PIECE, c = BACK ? i / keys : i % PIECE;
        const F x = k + c >= keys ? 0.0f : moves[segment * keys * keys + (BACK ? (k + c) * keys + r : r * keys + k + c)];
        shared.moves[r][c] = x, moved |= x != 0.0f;
      }
      __syncthreads();
#pragma unroll 4
      for (int c = 0; c < PIECE && k + c < keys; c++)
#pragma unroll
        for (int n = 0; n < ROWS; n++) {
          const int r = own + n * (THREADS / 2);
          if (r >= keys) continue;
#pragma unroll
          for (int j = 0; j < HALF; j++) sum[n][j] = __fmaf_rn(shared.moves[r][c], shared.state[k + c][half + j], sum[n][j]);
        }
      __syncthreads();
    }
    moved = __syncthreads_or(moved);
#pragma unroll
    for (int n = 0; n < ROWS; n++)
#pragma unroll
      for (int j = 0; j < HALF; j++) {
        const int r = own + n * (THREADS / 2);
        if (r >= keys || half + j >= left) continue;
        const i64 at = segment * size + r * values + corner + half + j;
        states[at] = shared.state[r][half + j];
        shared.state[r][half + j] = moved ? sum[n][j] + adds[at] : adds[at];
      }
    __syncthreads();
  }
}
