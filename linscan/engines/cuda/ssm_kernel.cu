// K[l] = Re sum_n c_n z_n^l of a diagonal model, as a matrix product: with l = 128 q + r,
//
//   K[q, r] = sum_n Re(c_n z_n^(128 q)) Re(z_n^r) - Im(c_n z_n^(128 q)) Im(z_n^r),
//
// two multiply-adds for each state and lag. A block of 256 threads owns ROWS rows q of one channel; it makes the two
// tables of a few states at a time in shared memory, by chains of products in double precision, and a thread sums
// ROWS / 16 by 8 values in registers. A real model is a complex one here. PARTS = 2: the imaginary part too, which is
// Re(-i c z^l), by blocks of its own.
//
// Where |z|^length is so large that a table might overflow before the kernel does, a thread sums whole lags in double.
//
// Bytes moved: the kernel once; the powers of squares.cu stay in the caches. Limits: below 2^48 lags.
#ifndef STORAGE
#define STORAGE complex64
#define ROWS 128
#define PARTS 1
#endif
#include "powers.cuh"

typedef STORAGE S;
typedef Real<S>::type Out;  // what is stored, complex numbers as pairs
typedef Compute<Out>::type R;

constexpr int WIDTH = 128, THREADS = 256, DOWN = ROWS / 16;  // rows of a thread; it has 8 columns
constexpr int STATES = sizeof(R) == 4 ? 16 : 8, SHARE = THREADS / STATES;  // threads that make one state's tables
constexpr int QUAD = DOWN < 4 ? DOWN : 4;

struct Shared {
  complex128 square[BITS][STATES];  // fetched together, because a fetch takes as long as many products
  alignas(16) R row[2 * STATES][ROWS], column[2 * STATES][WIDTH];  // by state: real and imaginary part
};

__device__ __forceinline__ complex128 weight(const S* c, int part) {
  const complex128 x = wide(widen(*c));
  return part ? complex128{x.im, -x.re} : x;
}

// EACH entries x, x step, x step^2, ... of one state: real and (negated, if `flip`) imaginary parts.
template <int EACH>
__device__ __forceinline__ void chain(complex128 x, complex128 step, R* re, R* im, bool flip) {
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    re[i] = static_cast<R>(x.re), im[i] = static_cast<R>(flip ? -x.im : x.im);
    if (i + 1 < EACH) x = mul(x, step);
  }
}

__device__ __forceinline__ void fill(Shared& shared, const Squares& z, complex128 c, i64 first_row, int state,
                                     int mine) {
  constexpr int ACROSS = WIDTH / SHARE, ALONG = ROWS / SHARE;
  chain<ACROSS>(z.power(mine * ACROSS), z[0], &shared.column[2 * state][mine * ACROSS],
                &shared.column[2 * state + 1][mine * ACROSS], true);
  chain<ALONG>(mul(c, z.power((first_row + mine * ALONG) * WIDTH)), z[7], &shared.row[2 * state][mine * ALONG],
               &shared.row[2 * state + 1][mine * ALONG], false);
}

__device__ __forceinline__ int row_of(int i, int ty) { return i / QUAD * 64 + ty * QUAD + i % QUAD; }
__device__ __forceinline__ int column_of(int j, int tx) { return j / 4 * 64 + tx * 4 + j % 4; }

__device__ __forceinline__ void multiply(R (&sum)[DOWN][8], const Shared& shared, int depth, int tx, int ty) {
#pragma unroll 2
  for (int m = 0; m < depth; m++) {
    R x[DOWN], y[8];
#pragma unroll
    for (int i = 0; i < DOWN; i++) x[i] = shared.row[m][row_of(i, ty)];
#pragma unroll
    for (int j = 0; j < 8; j++) y[j] = shared.column[m][column_of(j, tx)];
#pragma unroll
    for (int i = 0; i < DOWN; i++)
#pragma unroll
      for (int j = 0; j < 8; j++) sum[i][j] = mul_add(x[i], y[j], sum[i][j]);
  }
}

__device__ __forceinline__ void store(const R (&sum)[DOWN][8], Out* to, i64 first, i64 length, int part, int tx,
                                      int ty) {
#pragma unroll
  for (int i = 0; i < DOWN; i++) {
#pragma unroll
    for (int j = 0; j < 8; j += 4) {
      const i64 l = first + row_of(i, ty) * WIDTH + column_of(j, tx);
      if (PARTS == 1 && sizeof(Out) == 4 && length % 4 == 0) {
        const float4 four = make_float4(sum[i][j], sum[i][j + 1], sum[i][j + 2], sum[i][j + 3]);
        if (l < length) *reinterpret_cast<float4*>(to + l) = four;
      } else {
#pragma unroll
        for (int v = 0; v < 4; v++)
          if (l + v < length) to[PARTS * (l + v) + part] = Narrow<Out>::of(sum[i][j + v]);
      }
    }
  }
}

// The sum itself, a lag at a time.
__device__ __noinline__ void by_lags(const complex128* squares, const S* c, Out* to, i64 first, i64 length, i64 states,
                                     i64 stride, int bits, int part) {
  for (i64 l = first + threadIdx.x; l < length && l < first + ROWS * WIDTH; l += THREADS) {
    double sum = 0.0;
    for (i64 n = 0; n < states; n++) sum += Squares{squares + n, stride, bits}.grown(weight(c + n, part), l).re;
    to[PARTS * l + part] = Narrow<Out>::of(static_cast<R>(sum));
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
ssm_kernel(const complex128* squares, const S* c, Out* out, i64 channels, i64 states, i64 length, int bits,
           double limit) {
  __shared__ Shared shared;
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16, state = threadIdx.x / SHARE, mine = threadIdx.x % SHARE;
  const i64 tiles = (length + ROWS * WIDTH - 1) / (ROWS * WIDTH), stride = channels * states;
  for (i64 unit = blockIdx.x; unit < channels * PARTS * tiles; unit += gridDim.x) {
    const i64 row = unit / tiles, tile = unit - row * tiles, channel = row / PARTS, first = tile * ROWS * WIDTH;
    const int part = static_cast<int>(row % PARTS);
    const complex128* z = squares + channel * states;
    const S* weights = c + channel * states;
    Out* to = out + channel * length * PARTS;
    bool grows = false;
    for (i64 n = threadIdx.x; n < states; n += THREADS) grows = grows || Squares{z + n, stride, bits}.grows(limit);
    if (__syncthreads_or(grows)) {
      by_lags(z, weights, to, first, length, states, stride, bits, part);
      continue;
    }
    R sum[DOWN][8] = {};
    for (i64 n = 0; n < states; n += STATES) {
      const int here = states - n < STATES ? static_cast<int>(states - n) : STATES;
      for (int i = threadIdx.x; i < bits * STATES; i += THREADS)
        if (i % STATES < here) shared.square[i / STATES][i % STATES] = z[i / STATES * stride + n + i % STATES];
      __syncthreads();
      const Squares own = {&shared.square[0][state], STATES, bits};
      if (state < here) fill(shared, own, weight(weights + n + state, part), tile * ROWS, state, mine);
      __syncthreads();
      multiply(sum, shared, 2 * here, tx, ty);
      __syncthreads();
    }
    store(sum, to, first, length, part, tx, ty);
  }
}
