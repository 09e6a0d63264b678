// The delta rule backwards through the chunks, and what it leaves for the gradients: see delta_chunk.cu.
#ifndef STORAGE  // the launcher's macros, as the tests compile them
#define STORAGE bfloat16
#define KEYS 128
#define WARPS 8
#define STAGES 3
#define DECAYS 1
#define PACKED 1
#define READ 1
#endif
#include "delta_pass.cuh"

// `before` becomes the gradient of the first state, from that of the last one.
extern "C" __global__ void __launch_bounds__(THREADS)
backwards(const __grid_constant__ Layout layout, const S* q, const S* k, const S* flow, const float* beta, const float* g,
          const float* after, float* before, int keys, i64 values, float scale, const __grid_constant__ Kept kept) {
  extern __shared__ __align__(16) u8 memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const Arrays arrays = {q, k, flow, beta, g, keys, values, scale};
  const Spot x = spot(layout, values);
  const int lane = threadIdx.x & 31, column = 16 * (threadIdx.x / 32), width = x.width;
  State state;
  const Outset outset = set_out<true>(shared, state, layout, x, arrays, after);
  const bool lost = walk<true>(shared, layout, x, arrays, outset, [&](int n, const Turn& turn) {
    Stage& stage = shared.stage[n % STAGES];
    const Gates& gate = shared.gates[n % 3];
    const Scores& scores = shared.scores[n % TURNS];
    const int* spoilt = shared.spoilt[n % TURNS];
    const i64 chunk = chunk_of<true>(x, n);
    Steps y;
    clear(y);
#pragma unroll
    for (int n = 0; n < KEYS / 8; n += 2) {
      u32 a[4], b[4];
      round_block(a, state[n], state[n + 1]);
#pragma unroll
      for (int m = 0; m < STEPS / 8; m += 2) {
        load_b<false>(b, stage.k, 8 * n, 8 * m, lane);
        mma_pair(y[m], y[m + 1], a, b);
      }
    }
    if (x.column + column < kept.wide)
      keep_state(kept.states + ((x.row * i64(x.chunks) + chunk) * kept.wide + x.column + column) * KEYS, state, turn.lost, lane);
    u32 read[BLOCKS][4], solved[BLOCKS][4];
    const float stays = DECAYS ? gate.start[STEPS - 1] : 1.0f;
    if (DECAYS) each(state, lane, [=](int, int, float& z) { z = times(stays, z); });
#pragma unroll
    for (int i = 0; i < BLOCKS; i++) {
      load_a<true>(read[i], stage.v, 16 * i, column, lane);
      if (DECAYS)
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
          for (int j = 0; j < 4; j++) y[2 * i + half][j] = times(gate.end[16 * i + 8 * half + lane % 4 * 2 + j % 2], y[2 * i + half][j]);
    }
#pragma unroll
    for (int i = BLOCKS - 1; i >= 0; i--) {
      u32 b[4];
#pragma unroll
      for (int j = i; j < BLOCKS; j++) {
        load_b<true>(b, scores.reads, 16 * j, 16 * i, lane);
        mma_pair(y[2 * i], y[2 * i + 1], read[j], b);
      }
#pragma unroll
      for (int j = BLOCKS - 1; j > i; j--) erase<true>(y[2 * i], y[2 * i + 1], solved[j], scores, i, j, lane);
      solve_block<true>(y[2 * i], y[2 * i + 1], scores, i, lane);
      float z[2][4], w[2][4];
#pragma unroll
      for (int half = 0; half < 2; half++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const int t = 16 * i + 8 * half + lane % 4 * 2 + j % 2;
          z[half][j] = gate.beta[t] * y[2 * i + half][j];
          w[half][j] = DECAYS ? times(-gate.start[t], z[half][j]) : -z[half][j];
        }
      round_block(solved[i], z[0], z[1]);
      u32 a[4];
      round_block(a, w[0], w[1]);
      add_block(state, a, stage.k, i, lane);
    }
#pragma unroll
    for (int i = 0; i < BLOCKS; i++) {
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int t = 16 * i + 8 * (j / 2) + lane % 4 * 2;
        const float even = scale * (DECAYS ? gate.start[t] : 1.0f), odd = scale * (DECAYS ? gate.start[t + 1] : 1.0f);
        read[i][j] = pair<S>(times(even, low(read[i][j], S())), times(odd, high(read[i][j], S())));
      }
      add_block(state, read[i], stage.q, i, lane);
    }
    const i64 t = chunk * STEPS;
    if (x.column + column < kept.wide) {
      if (turn.careful) spoil_steps(y, spoilt, lane);
      __syncwarp();
      put_steps(stage.v, y, column, lane);
      __syncwarp();
      store_columns(kept.steps + (x.row * layout.length + t) * kept.wide + x.column + column, kept.wide, stage.v, column,
                    at_most_steps(layout.length - t), 16, lane);
    }
  });
  each(state, lane, [=](int key, int c, float& y) {
    if (key < keys && c < width) before[(x.row * i64(keys) + key) * values + x.column + column + c] = lost ? not_a_number() : y;
  });
}
