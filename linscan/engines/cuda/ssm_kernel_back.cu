// The gradient of K[l] = Re sum_n c_n z_n^l: of every state p = sum_l g_l z^l and its derivative by z, for real g.
//
// With l = 128 q + r, s = z^128, a matrix product gives, of every row q,
//   V[q] = sum_r g[q, r] z^r     and     W[q] = sum_r g[q, r] r z^(r-1),
// four multiply-adds for each state and lag. Then, in double,
//   p = sum_q V[q] s^q,    p' = sum_q W[q] s^q + s' sum_q V[q] q s^(q-1),
// by Horner's rule over the rows a thread has, times the power its first row begins with. A block of 256 threads owns
// ROWS rows of one channel and 32 of its states; its sums over rows, and `finish` over blocks, have a fixed order.
//
// Where |z|^length is so large that a table might overflow before the gradient does, threads sum whole lags in double.
//
// Bytes moved: g once for every 32 states. Limits: below 2^48 lags.
#ifndef STORAGE
#define STORAGE complex64
#define ROWS 128
#define PARTS 1
#endif
#include "powers.cuh"

typedef STORAGE S;
typedef Real<S>::type In;  // what is stored, complex numbers as pairs
typedef Compute<In>::type R;

constexpr int WIDTH = 128, THREADS = 256, STATES = 32, DOWN = ROWS / 16;  // rows of a thread; it has two states
constexpr int DEPTH = sizeof(R) == 4 ? 32 : 16, EACH = DEPTH * STATES / THREADS;
constexpr int QUAD = DOWN < 4 ? DOWN : 4;

struct Sum { complex128 p, slope; };
struct alignas(4 * sizeof(R)) Entry { R re, im, slope_re, slope_im; };
union Shared {
  struct {
    complex128 square[8][STATES];
    alignas(16) R g[DEPTH][ROWS + 4];  // the extra four keep a warp's stores in different banks
    Entry power[DEPTH][STATES];
  } table;
  struct {
    complex128 square[BITS][STATES];
    Sum sum[16][STATES];
  } rest;
};

__device__ __forceinline__ int row_of(int i, int ty) { return i / QUAD * 64 + ty * QUAD + i % QUAD; }

// g[q, r] of DEPTH values of r, turned. A warp takes 4 rows by 8 columns: whole sectors, and no bank twice.
__device__ __forceinline__ void load(Shared& shared, const In* g, i64 first, int r0, i64 length) {
#pragma unroll 2
  for (int i = threadIdx.x; i < DEPTH * ROWS; i += THREADS) {
    const int group = i / 32, q = group % (ROWS / 4) * 4 + i % 4, r = group / (ROWS / 4) * 8 + i / 4 % 8;
    const i64 l = first + q * WIDTH + r0 + r;
    shared.table.g[r][q] = l < length ? widen(g[l * PARTS]) : R(0);
  }
}

__device__ __forceinline__ void fill(Shared& shared, const Squares& z, int r0, int state, int mine) {
  int r = r0 + mine * EACH;
  complex128 lower = z.power(r ? r - 1 : 0);  // z^(r-1)
#pragma unroll
  for (int i = 0; i < EACH; i++, r++) {
    const complex128 x = r ? mul(lower, z[0]) : complex128{1.0, 0.0};
    const complex128 slope = r ? mul(static_cast<double>(r), lower) : complex128{0.0, 0.0};
    shared.table.power[mine * EACH + i][state] = {static_cast<R>(x.re), static_cast<R>(x.im), static_cast<R>(slope.re),
                                                  static_cast<R>(slope.im)};
    lower = x;
  }
}

__device__ __forceinline__ void multiply(R (&sum)[DOWN][8], const Shared& shared, int tx, int ty) {
#pragma unroll 2
  for (int m = 0; m < DEPTH; m++) {
    R x[DOWN];
#pragma unroll
    for (int i = 0; i < DOWN; i++) x[i] = shared.table.g[m][row_of(i, ty)];
#pragma unroll
    for (int k = 0; k < 2; k++) {
      const Entry y = shared.table.power[m][tx + 16 * k];
#pragma unroll
      for (int i = 0; i < DOWN; i++) {
        sum[i][4 * k] = mul_add(x[i], y.re, sum[i][4 * k]);
        sum[i][4 * k + 1] = mul_add(x[i], y.im, sum[i][4 * k + 1]);
        sum[i][4 * k + 2] = mul_add(x[i], y.slope_re, sum[i][4 * k + 2]);
        sum[i][4 * k + 3] = mul_add(x[i], y.slope_im, sum[i][4 * k + 3]);
      }
    }
  }
}

// Squares of 32 states from the n-th, all at once: one after the other they would take as long as many products.
template <class Of> __device__ __forceinline__ void fetch(complex128* to, const Of& of, i64 n, int bits) {
  for (int i = threadIdx.x; i < bits * STATES; i += THREADS) to[i] = of(n + i % STATES)[i / STATES];
}

// What the rows of one thread add to the sums of its state k.
template <int K> __device__ __forceinline__ Sum rows(const R (&v)[DOWN][8], Squares z, i64 first_row, int ty) {
  const complex128 s = z[7];
  Sum sum = {};
#pragma unroll
  for (int top = 0; top < DOWN; top += QUAD) {
    complex128 p = {}, p_slope = {}, w = {};
#pragma unroll
    for (int i = top + QUAD - 1; i >= top; i--) {
      p_slope = mul_add(p_slope, s, p);
      p = mul_add(p, s, complex128{v[i][4 * K], v[i][4 * K + 1]});
      w = mul_add(w, s, complex128{v[i][4 * K + 2], v[i][4 * K + 3]});
    }
    const i64 q = first_row + row_of(top, ty), l = q * WIDTH;
    const complex128 before = z.power(q ? l - WIDTH : 0), power = q ? mul(before, s) : before;
    const complex128 z127 = z.power(127), lower = mul(before, z127);
    sum.p = mul_add(power, p, sum.p);
    sum.slope = mul_add(power, mul_add(mul(128.0, z127), p_slope, w), sum.slope);
    if (q) sum.slope = mul_add(mul(static_cast<double>(l), lower), p, sum.slope);
  }
  return sum;
}

// The sums themselves, whole lags to a thread; the same over rows as by tables.
__device__ __noinline__ Sum by_lags(Squares z, const In* g, i64 first, i64 length, int mine) {
  Sum sum = {};
  for (i64 l = first + mine; l < length && l < first + ROWS * WIDTH; l += 16) {
    const complex128 value = {static_cast<double>(widen(g[l * PARTS])), 0.0};
    const complex128 lower = l ? z.grown(value, l - 1) : value;
    sum.p = add(sum.p, l ? mul(lower, z[0]) : value);
    if (l) sum.slope = mul_add(static_cast<double>(l), lower, sum.slope);
  }
  return sum;
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
ssm_kernel_back(const complex128* squares, const In* dk, Sum* partial, i64 channels, i64 states, i64 length, int bits,
                double limit) {
  __shared__ Shared shared;
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16, state = threadIdx.x % STATES;
  const i64 tiles = (length + ROWS * WIDTH - 1) / (ROWS * WIDTH), groups = (states + STATES - 1) / STATES;
  const i64 stride = channels * states;
  for (i64 unit = blockIdx.x; unit < channels * PARTS * tiles * groups; unit += gridDim.x) {
    const i64 above = unit / groups, group = unit - above * groups, row = above / tiles, tile = above - row * tiles;
    const i64 channel = row / PARTS, n = group * STATES, first = tile * ROWS * WIDTH;
    const In* g = dk + channel * length * PARTS + row % PARTS;
    // Where there are no 32 states left, the last one's tables and sums are made again, and not used.
    const complex128* z = squares + channel * states;
    const auto of = [&](i64 i) { return Squares{z + (i < states ? i : states - 1), stride, bits}; };
    const Squares own = of(n + state);
    Sum sum[2];
    if (__syncthreads_or(own.grows(limit))) {
      for (int k = 0; k < 2; k++) sum[k] = by_lags(of(n + tx + 16 * k), g, first, length, ty);
    } else {
      fetch(&shared.table.square[0][0], of, n, 8);
      __syncthreads();
      R found[DOWN][8] = {};
#pragma unroll 1
      for (int r0 = 0; r0 < WIDTH; r0 += DEPTH) {
        load(shared, g, first, r0, length);
        fill(shared, Squares{&shared.table.square[0][state], STATES, 8}, r0, state, threadIdx.x / STATES);
        __syncthreads();
        multiply(found, shared, tx, ty);
        __syncthreads();
      }
      fetch(&shared.rest.square[0][0], of, n, bits);
      __syncthreads();
      const complex128* near = &shared.rest.square[0][tx];
      sum[0] = rows<0>(found, Squares{near, STATES, bits}, tile * ROWS, ty);
      sum[1] = rows<1>(found, Squares{near + 16, STATES, bits}, tile * ROWS, ty);
    }
    shared.rest.sum[ty][tx] = sum[0], shared.rest.sum[ty][tx + 16] = sum[1];
    __syncthreads();
    if (threadIdx.x < STATES && n + state < states) {
      Sum total = shared.rest.sum[0][state];
      for (int y = 1; y < 16; y++)
        total = {add(total.p, shared.rest.sum[y][state].p), add(total.slope, shared.rest.sum[y][state].slope)};
      partial[(row * tiles + tile) * states + n + state] = total;
    }
    __syncthreads();
  }
}

__device__ __forceinline__ void put(float16* to, complex128 x) { *to = Narrow<float16>::of(static_cast<float>(x.re)); }
__device__ __forceinline__ void put(bfloat16* to, complex128 x) {
  *to = Narrow<bfloat16>::of(static_cast<float>(x.re));
}
__device__ __forceinline__ void put(float* to, complex128 x) { *to = static_cast<float>(x.re); }
__device__ __forceinline__ void put(double* to, complex128 x) { *to = x.re; }
__device__ __forceinline__ void put(complex64* to, complex128 x) {
  *to = {static_cast<float>(x.re), static_cast<float>(x.im)};
}
__device__ __forceinline__ void put(complex128* to, complex128 x) { *to = x; }

// dc = conj(p) and da = conj(c p'), of g's real part and, times i, of its imaginary part.
extern "C" __global__ void finish(const Sum* partial, const S* c, S* da, S* dc, i64 channels, i64 states, i64 tiles) {
  for (i64 i = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x; i < channels * states;
       i += gridDim.x * static_cast<i64>(blockDim.x)) {
    const i64 channel = i / states, n = i - channel * states;
    complex128 p = {}, slope = {};
    for (int part = 0; part < PARTS; part++) {
      Sum total = {};
      for (i64 tile = 0; tile < tiles; tile++) {
        const Sum x = partial[((channel * PARTS + part) * tiles + tile) * states + n];
        total = {add(total.p, x.p), add(total.slope, x.slope)};
      }
      const complex128 x = conj(total.p), y = conj(total.slope);
      p = add(p, part ? complex128{-x.im, x.re} : x);
      slope = add(slope, part ? complex128{-y.im, y.re} : y);
    }
    put(dc + i, p);
    put(da + i, mul(conj(wide(widen(c[i]))), slope));
  }
}
