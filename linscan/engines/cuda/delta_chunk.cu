// The delta rule, 16-bit arrays and one decay a step, on tensor cores: through the chunks, forwards and backwards.
//
//   S[t] = D S[t-1] + k[t] u[t]^T,   u[t] = beta[t] e[t],   e[t] = v[t] - D S[t-1]^T k[t],   o[t] = scale S[t]^T q[t]
//
// A chunk has 64 steps. With W the sums of g from its start, P[t, s] = q[t] k[s] e^(W[t] - W[s]) for s <= t, and L the same
// of k[t] k[s] for s < t:
//   (1 + L beta) E = V - e^W K S,   O = scale (e^W Q S + P beta E),   S' = e^W[63] S + K^T (e^(W[63] - W) beta E).
// All of this is done transposed: a warp owns 16 value columns and keeps its part of S^T in registers, where results of
// one product are the left side of the next. No warp waits for another, except for q, k and the scores P and L, which the
// block makes together. The system is solved by blocks of 16 steps, whose inverses are made by substitution in float32;
// what is rounded on the way, u, is what all that follows is told, as in a loop over time.
//
// Backwards, X being the gradient of S:
//   (1 + L^T beta) Y = scale P^T dO + e^(W[63] - W) K X',   X = e^W[63] X' + scale Q^T e^W dO - K^T e^W beta Y.
// Y is the gradient of u and beta Y that of v. Kept for the gradients, which are made in delta_chunk_back.cu chunk by
// chunk: E and the states before the chunks, Y and the gradients of the states after them.
//
// Bytes moved: q, k, v, o once (q and k once more for every 128 values beyond the first), and what is kept.
// Limits: keys to 256, any number of values and steps.
#ifndef STORAGE  // the launcher's macros, as the tests compile them
#define STORAGE bfloat16
#define KEYS 128
#define WARPS 8
#define STAGES 3
#define DECAYS 1
#define PACKED 1
#define KEEP 1
#define READ 1
#endif
#include "delta_pass.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
forwards(const __grid_constant__ Layout layout, const S* q, const S* k, const S* v, const float* beta, const float* g,
         const float* first, S* o, float* last, int keys, i64 values, float scale, const __grid_constant__ Kept kept) {
  extern __shared__ __align__(16) u8 memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const Arrays arrays = {q, k, v, beta, g, keys, values, scale};
  const Spot x = spot(layout, values);
  const int lane = threadIdx.x & 31, column = 16 * (threadIdx.x / 32), width = x.width;
  State state;
  const Outset outset = set_out<false>(shared, state, layout, x, arrays, first);
  const bool lost = walk<false>(shared, layout, x, arrays, outset, [&](int n, const Turn& turn) {
    Stage& stage = shared.stage[n % STAGES];
    const Gates& gate = shared.gates[n % 3];
    const Scores& scores = shared.scores[n % TURNS];
    const int* spoilt = shared.spoilt[n % TURNS];
    const i64 chunk = chunk_of<false>(x, n);
    Steps e, out;
    clear(e), clear(out);
#pragma unroll
    for (int n = 0; n < KEYS / 8; n += 2) {
      u32 a[4], b[4];
      round_block(a, state[n], state[n + 1]);
#pragma unroll
      for (int m = 0; m < STEPS / 8; m += 2) {
        load_b<false>(b, stage.k, 8 * n, 8 * m, lane);
        mma_pair(e[m], e[m + 1], a, b);
        if (!READ) continue;
        load_b<false>(b, stage.q, 8 * n, 8 * m, lane);
        mma_pair(out[m], out[m + 1], a, b);
      }
    }
    if (KEEP && x.column + column < kept.wide)
      keep_state(kept.states + ((x.row * i64(x.chunks) + chunk) * kept.wide + x.column + column) * KEYS, state, turn.lost, lane);
    const float stays = DECAYS ? gate.start[STEPS - 1] : 1.0f;
    if (DECAYS) each(state, lane, [=](int, int, float& y) { y = times(stays, y); });
    u32 u[BLOCKS][4];
#pragma unroll
    for (int i = 0; i < BLOCKS; i++) {
      u32 a[4], b[4];
      load_a<true>(a, stage.v, 16 * i, column, lane);
#pragma unroll
      for (int half = 0; half < 2; half++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const int m = 2 * i + half, t = 8 * m + lane % 4 * 2 + j % 2;
          const float start = DECAYS ? gate.start[t] : 1.0f;
          const u32 word = a[2 * half + j / 2];
          e[m][j] = (j % 2 ? high(word, S()) : low(word, S())) - times(start, e[m][j]);
          out[m][j] = times(start * scale, out[m][j]);
        }
#pragma unroll
      for (int j = 0; j < i; j++) erase<false>(e[2 * i], e[2 * i + 1], u[j], scores, i, j, lane);
      solve_block<false>(e[2 * i], e[2 * i + 1], scores, i, lane);
      float y[2][4], z[2][4];
#pragma unroll
      for (int half = 0; half < 2; half++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const int t = 16 * i + 8 * half + lane % 4 * 2 + j % 2;
          y[half][j] = gate.beta[t] * e[2 * i + half][j];
          z[half][j] = DECAYS ? times(gate.end[t], y[half][j]) : y[half][j];
        }
      round_block(u[i], y[0], y[1]);
      round_block(a, z[0], z[1]);
      add_block(state, a, stage.k, i, lane);
#pragma unroll
      for (int j = 0; READ && j <= i; j++) {
        load_b<false>(b, scores.reads, 16 * j, 16 * i, lane);
        mma_pair(out[2 * i], out[2 * i + 1], u[j], b);
      }
    }
    if (!READ) return;
    const i64 t = chunk * STEPS;
    const int count = at_most_steps(layout.length - t);
    if (turn.careful) spoil_steps(out, spoilt, lane), spoil_steps(e, spoilt, lane);
    __syncwarp();
    put_steps(stage.v, out, column, lane);
    __syncwarp();
    store_columns(o + (x.row * layout.length + t) * values + x.column + column, values, stage.v, column, count, width, lane);
    if (KEEP && x.column + column < kept.wide) {
      __syncwarp();
      put_steps(stage.v, e, column, lane);
      __syncwarp();
      store_columns(kept.steps + (x.row * layout.length + t) * kept.wide + x.column + column, kept.wide, stage.v, column, count, 16, lane);
    }
  });
  each(state, lane, [=](int key, int c, float& y) {
    if (key < keys && c < width) last[(x.row * i64(keys) + key) * values + x.column + column + c] = lost ? not_a_number() : y;
  });
}

