// What the kernels of the delta rule on tensor cores share: gates, loads, what is not finite. See delta_chunk.cu.
#pragma once
#include "layout.cuh"
#include "delta_solve.cuh"

constexpr int THREADS = 32 * WARPS, STEPS = 64, BLOCKS = STEPS / 16, PAD = 8, WIDTH = STEPS + PAD;
constexpr float FORGET = -127.0f;  // 2^g below the smallest normal number: what was before is no more

struct alignas(16) Half8 { S item[8]; };

enum { Q, K, V, BETA, G, STATE };  // operands of the layout; V is do backwards

// Of the steps of a chunk. W are sums of g from the chunk's start, or from the last step that forgets; here of g / log 2,
// for powers of two.
struct Gates {
  float sum[STEPS], start[STEPS], end[STEPS], beta[STEPS];  // W, e^W (0 if the state is forgotten), e^(W[63] - W), beta
  int cut[STEPS];  // the last step up to here that forgets, -1 if the state before the chunk is still seen
  int bad[STEPS];  // whether g or beta is NaN or infinite
};

// What the two passes leave for the gradients.
struct Kept {
  S* steps;   // E, or Y: (row, time, value), the values a multiple of 64
  S* states;  // before every chunk, or gradients after it: (row, chunk, value, key)
  i64 wide;   // values, padded
};

template <int N> __device__ __forceinline__ void clear(float (&x)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) x[n][i] = 0.0f;
}

// `count` steps of `width` numbers into rows of WIDE, with zeros beyond; `time` and `from` in elements.
template <int WIDE, bool PACKS, int PITCH>
__device__ __forceinline__ void load(S (*to)[PITCH], const S* from, i64 time, int count, int width) {
  if (PACKS) {
    for (int i = threadIdx.x; i < STEPS * (WIDE / 8); i += THREADS) {
      const int t = i / (WIDE / 8), n = i % (WIDE / 8) * 8;
      const bool there = t < count && n < width;
      copy16(&to[t][n], there ? from + t * time + n : from, there);
    }
  } else {
    const S zero = Narrow<S>::of(0.0f);
    for (int i = threadIdx.x; i < STEPS * WIDE; i += THREADS) {
      const int t = i / WIDE, n = i % WIDE;
      to[t][n] = t < count && n < width ? from[t * time + n] : zero;
    }
  }
}

// Marks the rows among what this thread has loaded that are not finite; returns whether there are any.
//
// A product multiplies what a step must not see by zero, and NaN times zero is NaN. So rows that are not finite are taken
// out before any product, and what follows from them by the recurrence is made NaN after all of them.
template <int WIDE, bool PACKS, int PITCH> __device__ __forceinline__ bool inspect(const S (*x)[PITCH], int* bad) {
  struct alignas(16) Words { u32 word[4]; };
  constexpr int PACK = PACKS ? 8 : 1, ALL = STEPS * (WIDE / PACK);
  u32 odd = 0;
#pragma unroll
  for (int i = threadIdx.x; i < ALL; i += THREADS) {
    const S* at = &x[i / (WIDE / PACK)][i % (WIDE / PACK) * PACK];
    if (PACKS) {
      const Words y = *reinterpret_cast<const Words*>(at);
#pragma unroll
      for (int j = 0; j < 4; j++) odd |= full(y.word[j], S());
    } else odd |= full(at->bits, S());
  }
  if (!(odd & 0x80008000u)) return false;
  for (int i = threadIdx.x; i < ALL; i += THREADS)
    for (int j = 0; j < PACK; j++)
      if (not_finite<S>(x[i / (WIDE / PACK)][i % (WIDE / PACK) * PACK + j].bits)) bad[i / (WIDE / PACK)] = 1;
  return true;
}
template <int WIDE, int PITCH> __device__ __forceinline__ void clear_rows(S (*x)[PITCH], const int* bad) {
  for (int i = threadIdx.x; i < STEPS * WIDE; i += THREADS)
    if (bad[i / WIDE]) x[i / WIDE][i % WIDE] = Narrow<S>::of(0.0f);
}

__device__ __forceinline__ int at_most_steps(i64 left) { return static_cast<int>(left < STEPS ? left : STEPS); }

// The gates' numbers of a chunk, two steps a lane.
struct Steep { float g[2], beta[2]; };
__device__ __forceinline__ Steep steep(const Layout& layout, const Place& place, const float* g, const float* beta, i64 chunk, int lane) {
  Steep y;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const i64 t = chunk * STEPS + 2 * lane + i;
    const bool there = t < layout.length;
    y.g[i] = DECAYS && there ? g[place.at[G] + t * layout.operand[G].time] : 0.0f;
    y.beta[i] = there ? beta[place.at[BETA] + t * layout.operand[BETA].time] : 0.0f;
  }
  return y;
}

// 2^x, zero where that is below the smallest normal number.
__device__ __forceinline__ float power(float x) {
#if __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

// Sums of g over the chunk, two steps a lane; one warp. Steps beyond the end have g = 0 and beta = 0, and so have those
// whose gates are not finite; returns whether there are any.
__device__ __forceinline__ bool gates(Gates& to, Steep x, int lane) {
  bool found = false;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const bool bad = !is_finite(x.beta[i]) || !(x.g[i] <= 3.4e38f);
    to.bad[2 * lane + i] = bad;
    if (bad) found = true, x.g[i] = x.beta[i] = 0.0f;
    x.g[i] *= 1.44269504f;
  }
  float sum[2];
  int cut[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int t = 2 * lane + i;
    const bool forgets = x.g[i] < FORGET;
    cut[i] = forgets ? t : i ? cut[0] : -1;
    sum[i] = forgets ? 0.0f : i ? sum[0] + x.g[i] : x.g[i];
  }
  float before = sum[1];
  int last = cut[1];
#pragma unroll
  for (int by = 1; by < 32; by *= 2) {
    const float left = shuffle_up(before, by);
    const int cut_left = shuffle_up(last, by);
    if (lane >= by && last < 0) before += left, last = cut_left;
  }
  const float total = shuffle(before, 31);
  const int latest = shuffle(last, 31);
  before = shuffle_up(before, 1), last = shuffle_up(last, 1);
  if (!lane) before = 0.0f, last = -1;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int t = 2 * lane + i;
    const bool open = cut[i] < 0;
    const float w = open ? before + sum[i] : sum[i];
    const int c = open ? last : cut[i];
    to.sum[t] = w, to.cut[t] = c, to.beta[t] = x.beta[i];
    to.start[t] = c < 0 ? power(w) : 0.0f;
    to.end[t] = t >= latest ? power(total - w) : 0.0f;
  }
  return found;
}

// e^(W[t] - W[s]), zero where step t no longer sees step s. A sum that restarts is below any that went before.
__device__ __forceinline__ float between(const Gates& gates, int t, int s) {
  return !DECAYS ? 1.0f : s >= gates.cut[t] ? power(gates.sum[t] - gates.sum[s]) : 0.0f;
}
__device__ __forceinline__ float times(float factor, float x) { return factor == 0.0f ? 0.0f : factor * x; }

typedef float Steps[STEPS / 8][4];   // of a warp: 16 values by the steps, steps as columns
typedef float State[KEYS / 8][4];    // 16 values by the keys

// x (16 values by steps) into columns of rows of steps.
template <class Row> __device__ __forceinline__ void put_steps(Row* to, const Steps& x, int column, int lane) {
#pragma unroll
  for (int n = 0; n < STEPS / 8; n++)
#pragma unroll
    for (int half = 0; half < 2; half++)
      *reinterpret_cast<u32*>(&to[8 * n + lane / 4][column + 8 * half + lane % 4 * 2]) =
          transposed(pair<S>(x[n][2 * half], x[n][2 * half + 1]));
}

// The 16 columns of a warp, from `column` of shared rows to rows of `values` numbers at `to`, `width` of them at most.
template <class Row>
__device__ __forceinline__ void store_columns(S* to, i64 values, const Row* from, int column, int count, int width, int lane) {
  if (values % 8 == 0) {
    for (int i = lane; i < 2 * STEPS; i += 32) {
      const int t = i / 2, c = i % 2 * 8;
      if (t < count && c < width)
        *reinterpret_cast<Half8*>(to + t * values + c) = *reinterpret_cast<const Half8*>(&from[t][column + c]);
    }
  } else {
    for (int i = lane; i < 16 * STEPS; i += 32)
      if (i / 16 < count && i % 16 < width) to[i / 16 * values + i % 16] = from[i / 16][column + i % 16];
  }
}
