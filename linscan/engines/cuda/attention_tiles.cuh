// A chunk's arrays in shared memory, and the tiles that tensor cores take out of them.
#pragma once
#include "layout.cuh"
#include "mma.cuh"

typedef STORAGE S;
constexpr int STEPS = 64, WARPS = 4, THREADS = 32 * WARPS, PAD = 8;

struct alignas(16) Half8 { S item[8]; };

// `count` steps of `width` numbers, WIDTH with zeros.
template <int WIDTH> __device__ __forceinline__ void load(S (*to)[WIDTH + PAD], const S* from, i64 time, int count, int width) {
  const S zero = Narrow<S>::of(0.0f);
  if (PACKED) {
    for (int i = threadIdx.x; i < STEPS * (WIDTH / 8); i += THREADS) {
      const int t = i / (WIDTH / 8), n = i % (WIDTH / 8) * 8;
      Half8 x;
#pragma unroll
      for (int j = 0; j < 8; j++) x.item[j] = zero;
      if (t < count && n < width) x = *reinterpret_cast<const Half8*>(from + t * time + n);
      *reinterpret_cast<Half8*>(&to[t][n]) = x;
    }
  } else {
    for (int i = threadIdx.x; i < STEPS * WIDTH; i += THREADS) {
      const int t = i / WIDTH, n = i % WIDTH;
      to[t][n] = t < count && n < width ? from[t * time + n] : zero;
    }
  }
}

// The same in the background, where the arrays allow it: see `arrived`. WIDTH numbers a row of the copy, of any type.
template <int WIDTH, class Number, int STRIDE>
__device__ __forceinline__ void fetch(Number (*to)[STRIDE], const Number* from, i64 time, int begin, int end, int width, int rows) {
  constexpr int PACK = 16 / sizeof(Number);
  if (PACKED) {
    for (int i = threadIdx.x; i < rows * (WIDTH / PACK); i += THREADS) {
      const int t = i / (WIDTH / PACK), n = i % (WIDTH / PACK) * PACK;
      const bool inside = begin <= t && t < end && n < width;
      copy16(&to[t][n], inside ? from + t * time + n : from + begin * time, inside);
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

// 16 x 16 from rows of an array [row][column]: the A of a product, or, TURNED, its transpose.
template <bool TURNED, class Row> __device__ __forceinline__ void load_a(u32 (&a)[4], const Row* x, int row, int column, int lane) {
  const int i = lane / 8, r = lane % 8;
  load_tiles<TURNED>(a, TURNED ? &x[row + i / 2 * 8 + r][column + i % 2 * 8] : &x[row + i % 2 * 8 + r][column + i / 2 * 8]);
}
// Two neighbouring 16 x 8 tiles as the B of a product: from [inner][column], or, TURNED == false, from [column][inner].
template <bool TURNED, class Row> __device__ __forceinline__ void load_b(u32 (&b)[4], const Row* x, int inner, int column, int lane) {
  const int i = lane / 8, r = lane % 8;
  load_tiles<TURNED>(b, TURNED ? &x[inner + i % 2 * 8 + r][column + i / 2 * 8] : &x[column + i / 2 * 8 + r][inner + i % 2 * 8]);
}
