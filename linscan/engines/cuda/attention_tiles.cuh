// A chunk's arrays in shared memory, and the tiles that tensor cores take out of them.
#pragma once
#include "layout.cuh"
#include "mma_tiles.cuh"

typedef STORAGE S;
typedef typename Two<S>::type Both;
constexpr int STEPS = 64, THREADS = 32 * WARPS, PAD = 8;  // rows are so far apart that neighbouring ones lie in different banks

// Steps `begin` to `end` of `width` numbers each, the rest of `rows` rows of WIDTH zeros; where the arrays allow it in the
// background, see `arrived`.
template <int WIDTH, class Number, int STRIDE>
__device__ __forceinline__ void fetch(Number (*to)[STRIDE], const Number* from, i64 time, int begin, int end, int width, int rows) {
  constexpr int PACK = 16 / sizeof(Number), PACKS = WIDTH / PACK, STEP = THREADS / PACKS;
  if (PACKED && THREADS % PACKS == 0) {
    const int n = threadIdx.x % PACKS * PACK;
    int t = threadIdx.x / PACKS;
    const Number* at = from + t * time + n;
    begin = n < width ? begin : end;
#pragma unroll 2
    for (; t < rows; t += STEP, at += STEP * time) {
      const bool inside = begin <= t && t < end;
      copy16(&to[t][n], inside ? at : from, inside);
    }
  } else if (PACKED) {
    for (int i = threadIdx.x; i < rows * (WIDTH / PACK); i += THREADS) {
      const int t = i / (WIDTH / PACK), n = i % (WIDTH / PACK) * PACK;
      const bool inside = begin <= t && t < end && n < width;
      copy16(&to[t][n], inside ? from + t * time + n : from, inside);
    }
  } else {
    for (int i = threadIdx.x; i < rows * WIDTH; i += THREADS) {
      const int t = i / WIDTH, n = i % WIDTH;
      Number x = {};
      if (begin <= t && t < end && n < width) x = from[t * time + n];
      to[t][n] = x;
    }
  }
}

// Where chunk c begins: the first has `head` steps.
__device__ __forceinline__ i64 begin(i64 c, i64 head, i64 length) {
  const i64 t = c ? head + (c - 1) * STEPS : 0;
  return t < length ? t : length;
}

// Numbers c and c + 1 of `width`, zeros beyond.
__device__ __forceinline__ Both two(const S* x, int c, int width) {
  if (PACKED) return c < width ? *reinterpret_cast<const Both*>(x) : Both{};
  return pair<S>(c < width ? widen(x[0]) : 0.0f, c + 1 < width ? widen(x[1]) : 0.0f);
}

// 16 x 8 of a result: two neighbours at a time where their places are whole words.
__device__ __forceinline__ void write(S* to, i64 time, const float (&x)[4], int step, int column, int count, int width, int lane,
                                      float scale) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int t = step + lane / 4 + 8 * half, c = column + lane % 4 * 2;
    if (t >= count || c >= width) continue;
    const float first = scale * x[2 * half], second = scale * x[2 * half + 1];
    if (PACKED) {
      *reinterpret_cast<Both*>(to + t * time + c) = pair<S>(first, second);
    } else {
      to[t * time + c] = Narrow<S>::of(first);
      if (c + 1 < width) to[t * time + c + 1] = Narrow<S>::of(second);
    }
  }
}
