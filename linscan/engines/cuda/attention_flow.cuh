// How linear attention with one decay a step is cut into heads, columns and segments of time. See linear_attention.cu.
#pragma once
#include "attention_tiles.cuh"

enum { Q, K, V, G, MATE, STATE };  // operands of the layout
enum { NOTHING, WRITE, MULTIPLY };  // what is done with the states between chunks

// What is asked for besides outputs and final state.
struct Extras {
  S* kept;        // (row, chunk, key, value): states before each chunk, written, or multiplied with those after it
  float* dots;    // (slice, row, chunk): the sums of those products
  const S* mate;  // (…, time, value), multiplied with the outputs
  float* sums;    // (slice and half, row, time): the sums of those products over values
  i64 head;       // steps of the first chunk
  i64 backwards;  // 1: time of the outputs runs the other way, a step's decay is that before it, and `last` is times scale
};

// A block's place: head, segment of time, and columns.
struct Spot {
  i64 row, segment, slice, lo, hi, column;
  int width;
};

// A segment has `segment` chunks.
__device__ __forceinline__ Spot spot(const Layout& layout, i64 values, i64 segment, i64 head) {
  const i64 slices = (values + SLICE - 1) / SLICE, rest = blockIdx.x / slices;
  Spot x;
  x.slice = blockIdx.x % slices, x.column = x.slice * SLICE, x.row = rest % layout.rows, x.segment = rest / layout.rows;
  x.lo = begin(x.segment * segment, head, layout.length), x.hi = begin((x.segment + 1) * segment, head, layout.length);
  x.width = static_cast<int>(values - x.column < SLICE ? values - x.column : SLICE);
  return x;
}

constexpr int TOGETHER = 8;  // pieces read before any is gone through

// From piece to piece: what enters the segments, each of `finer` pieces, from what the pieces before the last one make.
extern "C" __global__ void carry(const __grid_constant__ Layout layout, const float* ends, const float* decays, const float* first,
                                 float* starts, int pieces, int finer, i64 size) {
  const i64 index = blockIdx.x * i64(blockDim.x) + threadIdx.x;
  if (index >= layout.rows * size) return;
  const i64 row = index / size, n = index % size;
  float state = first ? first[locate(layout, row).at[STATE] + n] : 0.0f;
  for (int k = 0; k <= pieces; k += TOGETHER) {
    float end[TOGETHER], decay[TOGETHER];
#pragma unroll
    for (int i = 0; i < TOGETHER; i++) {
      const i64 slot = (k + i) * layout.rows + row;
      end[i] = k + i < pieces ? ends[slot * size + n] : 0.0f, decay[i] = k + i < pieces ? decays[slot] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < TOGETHER; i++) {
      if (k + i <= pieces && (k + i) % finer == 0) starts[((k + i) / finer * layout.rows + row) * size + n] = state;
      state = decay[i] == 0.0f ? end[i] : __fmaf_rn(decay[i], state, end[i]);
    }
  }
}
