// Decays by channel inside a chunk: blocks of 16 steps, and blocks of 1, 2, 4 and 8 steps inside each of them.
//
// A pair of steps s < t is seen through the product of the decays after s up to t. Where s is in one half of a block and t
// in the other, that is `until` (after s, to the end of its half) times `from` (from the start of its half through t): both
// products of decays alone, one exponential a number, and never a quotient. So five products of matrices make a triangle of
// 16 x 16, of blocks of 1, 2, 4, 8 and of the diagonal; blocks of 16 see each other through `whole` ones between them.
#pragma once
#include "attention_tiles.cuh"

constexpr int BLOCKS = STEPS / 16;

enum { Q, K, V, G, STATE };  // operands of the layout

// What a pass over all chunks is told.
struct Pass {
  i64 keys, values;
  i64 head;       // steps of the first chunk
  i64 late;       // 1: the decay of a step is the one given for the step before it; the last one is left for the end
  i64 backwards;  // 1: time of what is written runs the other way
  i64 segment;    // chunks of a segment
  double scale;
};

// 16 steps x 16 channels as a lane holds them for A: [half of the steps + 2 half of the channels][neighbour].
typedef float Tile[4][2];
struct Decays { Tile from, until; };

__device__ __forceinline__ void unpack(Tile& x, const u32 (&a)[4]) {
#pragma unroll
  for (int n = 0; n < 4; n++) x[n][0] = low(a[n], S()), x[n][1] = high(a[n], S());
}
// Tiles of steps 16 block … of an array of a chunk, and back to it.
template <class Row> __device__ __forceinline__ void take(Tile& x, const Row* from, int block, int column, int lane) {
  u32 a[4];
  load_a<false>(a, from, 16 * block, column, lane);
  unpack(x, a);
}
template <class Row> __device__ __forceinline__ void put(Row* to, const Tile& x, const Tile& y, int block, int column, int lane) {
#pragma unroll
  for (int n = 0; n < 4; n++)
    *reinterpret_cast<u32*>(&to[16 * block + lane / 4 + n % 2 * 8][column + n / 2 * 8 + lane % 4 * 2]) =
        pair<S>(x[n][0] * y[n][0], x[n][1] * y[n][1]);
}

// What g holds for this block; steps outside have a decay of 1.
__device__ __forceinline__ void logarithms(Tile& x, const float* g, i64 time, int block, int column, int begin, int end, int width,
                                           int lane) {
  const int t = 16 * block + lane / 4, c = column + lane % 4 * 2;
#pragma unroll
  for (int n = 0; n < 4; n++) {
    const int step = t + n % 2 * 8, at = c + n / 2 * 8;
    const bool inside = begin <= step && step < end;
    float2 both = {0.0f, 0.0f};
    if (PACKED) {
      if (inside && at < width) both = *reinterpret_cast<const float2*>(g + step * time + at);
    } else {
      if (inside && at < width) both.x = g[step * time + at];
      if (inside && at + 1 < width) both.y = g[step * time + at + 1];
    }
    x[n][0] = both.x, x[n][1] = both.y;
  }
}

__device__ __forceinline__ void decays(Decays& d, const Tile& g) {
#pragma unroll
  for (int n = 0; n < 4; n++)
#pragma unroll
    for (int i = 0; i < 2; i++) d.from[n][i] = __expf(g[n][i]), d.until[n][i] = 1.0f;
}

// Blocks of H steps become blocks of 2 H.
template <int H> __device__ __forceinline__ void join(Decays& d, int lane) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
    if (H < 8) {
      const bool later = lane / 4 & H;
#pragma unroll
      for (int n = 0; n < 4; n++) {
        const float other = shuffle_xor(d.from[n][i] * d.until[n][i], 4 * H);
        d.from[n][i] *= later ? other : 1.0f, d.until[n][i] *= later ? 1.0f : other;
      }
    } else {
#pragma unroll
      for (int n = 0; n < 4; n += 2) {
        const float first = d.from[n][i] * d.until[n][i], second = d.from[n + 1][i] * d.until[n + 1][i];
        d.from[n + 1][i] *= first, d.until[n][i] *= second;
      }
    }
  }
}

// The products of the whole block's decays, from the lanes that hold its first step.
__device__ __forceinline__ void put_whole(float* to, const Decays& d, int column, int lane) {
  if (lane / 4) return;
#pragma unroll
  for (int n = 0; n < 4; n += 2)
#pragma unroll
    for (int i = 0; i < 2; i++) to[column + n / 2 * 8 + lane % 4 * 2 + i] = d.from[n][i] * d.until[n][i];
}

// x times what whole blocks leave of each channel, as an A.
__device__ __forceinline__ void fade(u32 (&a)[4], Tile& x, const float* whole, int column, int lane) {
#pragma unroll
  for (int n = 0; n < 4; n++) {
#pragma unroll
    for (int i = 0; i < 2; i++) x[n][i] *= whole[column + n / 2 * 8 + lane % 4 * 2 + i];
    a[n] = pair<S>(x[n][0], x[n][1]);
  }
}

// The block size at whose halves steps r and c of eight part: 0, 1 or 2 for 1, 2 or 4; -1 where r is not after c.
__device__ __forceinline__ int level(int r, int c) { return r <= c ? -1 : (r ^ c) >= 4 ? 2 : (r ^ c) >= 2 ? 1 : 0; }

// Where a block is: which row, chunk and slice of columns, and the chunk's steps.
struct Spot {
  i64 row, chunk, slice, chunks, t, column;
  int count, width;
};
template <int SLICED> __device__ __forceinline__ Spot spot(const Layout& layout, i64 columns, i64 head) {
  Spot x;
  const i64 slices = (columns + SLICED - 1) / SLICED, rest = blockIdx.x / slices;
  x.chunks = (layout.length - head + STEPS - 1) / STEPS + 1;
  x.slice = blockIdx.x % slices, x.chunk = rest % x.chunks, x.row = rest / x.chunks;
  x.t = begin(x.chunk, head, layout.length), x.count = static_cast<int>(begin(x.chunk + 1, head, layout.length) - x.t);
  x.column = x.slice * SLICED, x.width = static_cast<int>(columns - x.column < SLICED ? columns - x.column : SLICED);
  return x;
}
