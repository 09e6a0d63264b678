// A gate opened by what it lets through, y = x σ(z + b) + around with z = f(x) W, and the pullback, of rows of D numbers.
//
// half_glu: a block owns ROWS rows, which wait in shared memory for z; f(x) is made as it is brought to the product.
// half_glu_pullback: dvalue = dy σ and dz = dy x σ (1 - σ) first, then dx = f'(x) dz Wᵀ + dvalue.
// slopes: a block owns `rows` rows and leaves its sums f(x)ᵀ dz, then Σ dz, one after the other in a row of `sums`.
// Memory is read and written in whole lines: of DEEP columns at a time it gives half as much.
// Bytes moved: half_glu x, around, z, y; its pullback dy, x, z, dz, dx, and x and dz again, from the cache if they still are
// there; slopes x, dz.
// Limits: D of 64 or 128; below 2^31 blocks; rows and what is D long begin at 16 bytes.
#ifndef STORAGE  // the launcher's macros, as the tests compile it
#define D 128
#define KIND 3
#endif
#include "functions.cuh"
#include "product.cuh"

constexpr int ROWS = 64, THREADS = D, SQUARE = D * D / 64, ACROSS = D / 64;
constexpr int FETCHES = ROWS * DEEP / 4 / THREADS, WEIGHTS = D * DEEP / 4 / THREADS, LINES = ROWS * D / 4 / THREADS;

struct Tile {
  float left[2][DEEP][ROWS + 4], right[2][DEEP][D + 4];
  float kept[ROWS][D + 8];
};

// The place of a thread's `i`th four numbers of a slice of DEEP columns, and of the whole rows.
__device__ __forceinline__ int row_of(int i) { return (threadIdx.x + i * THREADS) / (DEEP / 4); }
__device__ __forceinline__ int term_of() { return threadIdx.x % (DEEP / 4) * 4; }
__device__ __forceinline__ int line_of(int i) { return (threadIdx.x + i * THREADS) / (D / 4); }
__device__ __forceinline__ int place_of() { return threadIdx.x % (D / 4) * 4; }

// The product of a block's rows with `w`: fetch(k) asks for slices of both from column k on, put(k) brings them to `tile`.
template <class Fetch, class Put>
__device__ __forceinline__ void product(float (&sum)[8][8], Tile& tile, Corner corner, Fetch fetch, Put put) {
  fetch(0), put(0);
  __syncthreads();
#pragma unroll 1
  for (int k = 0; k < D; k += DEEP) {
    const bool more = k + DEEP < D;
    if (more) fetch(k + DEEP);
    multiply(sum, tile.left[k / DEEP % 2], tile.right[k / DEEP % 2], corner);
    if (more) put(k + DEEP);
    __syncthreads();
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 512 / D)
half_glu(const float* x, const float* w, const float* bias, const float* around, float* z, float* y, i64 n) {
  __shared__ Tile tile;
  const i64 first = blockIdx.x * i64(ROWS);
  const Corner corner(ACROSS);
  float sum[8][8] = {};
#pragma unroll 8
  for (int i = 0; i < LINES; i++) {
    const i64 row = first + line_of(i);
    four(&tile.kept[line_of(i)][place_of()], row < n ? four(x + row * D + place_of()) : float4{0, 0, 0, 0});
  }
  __syncthreads();
  float4 weight[WEIGHTS];
  auto fetch = [&](int k) {
#pragma unroll
    for (int i = 0; i < WEIGHTS; i++) weight[i] = four(w + k * D + (threadIdx.x + i * THREADS) * 4);
  };
  auto put = [&](int k) {
    const int turn_of = k / DEEP % 2;
#pragma unroll
    for (int i = 0; i < FETCHES; i++) {
      float value[4];
      spread(value, four(&tile.kept[row_of(i)][k + term_of()]));
#pragma unroll
      for (int j = 0; j < 4; j++) value[j] = value_of<KIND>(value[j]);
      turn(tile.left[turn_of], term_of(), row_of(i), value);
    }
#pragma unroll
    for (int i = 0; i < WEIGHTS; i++) {
      const int at = (threadIdx.x + i * THREADS) * 4;
      four(&tile.right[turn_of][at / D][at % D], weight[i]);
    }
  };
  product(sum, tile, corner, fetch, put);
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int column = corner.column + 32 * half;
    float b[4] = {};
    if (bias) spread(b, four(bias + column));
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int row = corner.row + i % 4 + i / 4 * 16;
      if (first + row >= n) continue;
      const i64 at = (first + row) * D + column;
      float value[4], result[4] = {};
      spread(value, four(&tile.kept[row][column]));
      if (around) spread(result, four(around + at));
#pragma unroll
      for (int j = 0; j < 4; j++) result[j] = mul_add(value[j], sigmoid(sum[i][4 * half + j] + b[j]), result[j]);
      four(z + at, packed(&sum[i][4 * half])), four(y + at, packed(result));
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 512 / D)
half_glu_pullback(const float* dy, const float* x, const float* z, const float* w, const float* bias, float* dz, float* dx,
                  i64 n) {
  __shared__ Tile tile;
  const i64 first = blockIdx.x * i64(ROWS);
  const Corner corner(ACROSS);
  float sum[8][8] = {}, b[4] = {};
  if (bias) spread(b, four(bias + place_of()));
#pragma unroll 4
  for (int i = 0; i < LINES; i++) {
    const i64 row = first + line_of(i), at = row * D + place_of();
    float passed[4] = {}, value[4] = {}, opened[4] = {};
    if (row < n) spread(passed, four(dy + at)), spread(value, four(x + at)), spread(opened, four(z + at));
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const float part = sigmoid(opened[j] + b[j]);
      passed[j] = passed[j] * part;
      value[j] = passed[j] * value[j] * (1 - part);
    }
    four(&tile.kept[line_of(i)][place_of()], packed(passed));
    if (row < n) four(dz + at, packed(value));
  }
  __syncthreads();
  float4 next[FETCHES], weight[WEIGHTS];
  auto fetch = [&](int k) {
#pragma unroll
    for (int i = 0; i < FETCHES; i++) {
      const i64 row = first + row_of(i);
      next[i] = row < n ? four(dz + row * D + k + term_of()) : float4{0, 0, 0, 0};
    }
#pragma unroll
    for (int i = 0; i < WEIGHTS; i++) weight[i] = four(w + row_of(i) * D + k + term_of());
  };
  auto put = [&](int k) {
    const int turn_of = k / DEEP % 2;
    float value[4];
#pragma unroll
    for (int i = 0; i < FETCHES; i++) spread(value, next[i]), turn(tile.left[turn_of], term_of(), row_of(i), value);
#pragma unroll
    for (int i = 0; i < WEIGHTS; i++) spread(value, weight[i]), turn(tile.right[turn_of], term_of(), row_of(i), value);
  };
  product(sum, tile, corner, fetch, put);
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const int row = corner.row + i % 4 + i / 4 * 16;
    if (first + row >= n) continue;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int column = corner.column + 32 * half;
      const i64 at = (first + row) * D + column;
      float value[4], result[4];
      spread(value, four(x + at)), spread(result, four(&tile.kept[row][column]));
#pragma unroll
      for (int j = 0; j < 4; j++) result[j] = mul_add(sum[i][4 * half + j], slope_of<KIND>(value[j]), result[j]);
      four(dx + at, packed(result));
    }
  }
}

extern "C" __global__ void __launch_bounds__(SQUARE, 512 / SQUARE)
slopes(const float* x, const float* dz, float* sums, i64 n, i64 rows) {
  constexpr int EACH = D * DEEP / 4 / SQUARE, APART = SQUARE / (D / 4);  // fours of a thread, and rows between them
  __shared__ float left[2][DEEP][D], right[2][DEEP][D], parts[APART][D];
  const i64 first = blockIdx.x * rows, last = first + rows < n ? first + rows : n;
  const int column = threadIdx.x % (D / 4) * 4, lane = threadIdx.x / (D / 4);
  const Corner corner(ACROSS);
  float sum[8][8] = {}, all[4] = {};
  float4 next[EACH], slope[EACH];
  auto fetch = [&](i64 begin) {
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const i64 row = begin + lane + i * APART;
      next[i] = row < last ? four(x + row * D + column) : float4{0, 0, 0, 0};
      slope[i] = row < last ? four(dz + row * D + column) : float4{0, 0, 0, 0};
    }
  };
  auto put = [&](int turn_of) {
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      float value[4], flow[4];
      spread(value, next[i]), spread(flow, slope[i]);
#pragma unroll
      for (int j = 0; j < 4; j++) value[j] = value_of<KIND>(value[j]), all[j] += flow[j];
      four(&left[turn_of][lane + i * APART][column], packed(value));
      four(&right[turn_of][lane + i * APART][column], slope[i]);
    }
  };
  fetch(first), put(0);
  __syncthreads();
  int turn_of = 0;
#pragma unroll 1
  for (i64 begin = first; begin < last; begin += DEEP, turn_of ^= 1) {
    const bool more = begin + DEEP < last;
    if (more) fetch(begin + DEEP);
    multiply(sum, left[turn_of], right[turn_of], corner);
    if (more) put(turn_of ^ 1);
    __syncthreads();
  }
  float* to = sums + blockIdx.x * i64(D * D + D);
#pragma unroll
  for (int i = 0; i < 8; i++)
#pragma unroll
    for (int half = 0; half < 2; half++)
      four(to + (corner.row + i % 4 + i / 4 * 16) * D + corner.column + 32 * half, packed(&sum[i][4 * half]));
  four(&parts[lane][column], packed(all));
  __syncthreads();
  for (int c = threadIdx.x; c < D; c += SQUARE) {
    float total = parts[0][c];
    for (int other = 1; other < APART; other++) total += parts[other][c];
    to[D * D + c] = total;
  }
}
