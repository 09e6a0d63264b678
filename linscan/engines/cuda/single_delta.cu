// S[t] = e^g[t] S[t-1] + beta[t] k[t] u[t]^T,  u[t] = v[t] - e^g[t] S[t-1]^T k[t],  o[t] = scale S[t]^T q[t], float32 arrays,
// one decay a step or none, on tensor cores as in single_attention.cu.
//
// What a chunk of 64 steps writes is a triangular system:
//   u[t] + sum over s < t of beta[s] k[t] k[s] e^(W[t] - W[s]) u[s] = v[t] - e^W[t] S^T k[t].
// Its 16 x 16 diagonal blocks are inverted by substitution; each warp solves it for its 16 columns, from block to block. Then u
// are the values, and the keys are times beta.
//
// For the pullback `read` gets u, and `kept` the state after each chunk.
// Bytes moved: q, k, v, o, g and beta once. Limits: keys and values to 128, any number of steps.
#ifndef STORAGE  // the launcher's macros, as the tests compile them
#define STORAGE float
#define KEYS 128
#define SLICE 128
#define DECAYS 1
#define PACKED 1
#endif
#define DELTA 1
#include "single_solve.cuh"

enum { Q, K, V, G, BETA, STATE };  // operands of the layout
constexpr int IDLE = WARPS - 1;  // the warp with the least to do makes the next chunk's gates

extern "C" __global__ void __launch_bounds__(THREADS, 1)
run(const __grid_constant__ Layout layout, const S* q, const S* k, const S* v, const float* g, const float* beta,
    const float* first, S* o, float* last, float* read, float* kept, int keys, i64 values, float scale) {
  extern __shared__ __align__(16) u8 memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, width = static_cast<int>(values);
  const i64 row = blockIdx.x, length = layout.length, chunks = (length + STEPS - 1) / STEPS;
  const Place& place = shared.place;  // there, not in registers, of which there are too few
  if (!threadIdx.x) shared.place = locate(layout, row);
  __syncthreads();
  const i64 step_q = layout.operand[Q].time, step_k = layout.operand[K].time, step_v = layout.operand[V].time;
  const i64 step_g = layout.operand[G].time, step_beta = layout.operand[BETA].time;
  o += row * length * values, read += read ? row * length * values : 0, kept += kept ? row * chunks * keys * values : 0;
  State state = {};
  each(state, first + place.at[STATE], values, keys, width, [](float& y, const float* from, bool inside) {
    if (inside) y = *from;
  });
  float ahead[2], strength[PASSES];
  const auto bring = [&](i64 chunk) {
    const i64 t = chunk * STEPS;
    const int count = static_cast<int>(length - t < STEPS ? length - t : STEPS);
    fetch<KEYS>(shared.q, q + place.at[Q] + t * step_q, step_q, 0, count, keys, STEPS);
    fetch<KEYS>(shared.k, k + place.at[K] + t * step_k, step_k, 0, count, keys, STEPS);
    fetch<SLICE>(shared.v[chunk % 2], v + place.at[V] + t * step_v, step_v, 0, count, width, STEPS);
    commit();
#pragma unroll
    for (int n = 0; n < PASSES; n++) {
      const int step = threadIdx.x / 8 + 4 * WARPS * n;
      strength[n] = step < count ? beta[place.at[BETA] + (t + step) * step_beta] : 0.0f;
    }
    if (warp == IDLE) logarithms(ahead, g + place.at[G] + t * step_g, step_g, 0, count, lane);
  };
  bool grows = false;
  const auto prepare = [&](i64 chunk) {
    if (warp != IDLE) return;
    gates(shared.gates[chunk % 2], ahead, lane);
    grows = DECAYS && !(ahead[0] <= 1.0f && ahead[1] <= 1.0f);
  };
  const auto get = [](float& x, const float* from, bool) { x = *from; };
  bring(0), prepare(0);
#pragma unroll 1
  for (i64 chunk = 0; chunk < chunks; chunk++) {
    const Gates& gate = shared.gates[chunk % 2];
    Values& here = shared.v[chunk % 2];
    const i64 t = chunk * STEPS;
    const int count = static_cast<int>(length - t < STEPS ? length - t : STEPS);
    arrived<0>();
    __syncthreads();
    Outputs out = {};
    float units_of_state[2];
    bool wild = halve<true>(shared, here, gate, strength, lane) || grows;
    wild |= units(units_of_state, state);
    wild = __syncthreads_or(wild);
    if (chunk + 1 < chunks) bring(chunk + 1);
    if (!wild) {
      wild = scores(shared, gate, lane);
      from_state(out, here, state, units_of_state, shared, lane);
    }
    if (chunk + 1 < chunks) prepare(chunk + 1);
    wild = __syncthreads_or(wild);
    Parts u[BLOCKS_OF_STEPS];
    float units[BLOCKS_OF_STEPS][2];
    if (!wild) {
      const bool lost = solve(u, units, here, shared, gate, lane);
      wild = __syncthreads_or(lost);
    }
    if (!wild) {
#pragma unroll
      for (int j = 0; j < BLOCKS_OF_STEPS; j++) from_block(out, u[j], units[j], j, shared, lane);
      times_unit(out, shared, lane);
      if (read) {
        Outputs written;
        each(written, here[0], ACROSS, STEPS, SLICE, get);
        each(written, read + t * values, values, count, width, [](float y, float* to, bool inside) {
          if (inside) *to = y;
        });
      }
    } else {
      float(*memory)[SLICE] = reinterpret_cast<float(*)[SLICE]>(&shared);  // queries and keys, which nobody wants now
      put(state, memory[0], KEYS, SLICE, SLICE);
      __syncthreads();
      const auto write = [&](int step, int c, float u) {
        if (read) read[(t + step) * values + c] = u;
      };
      step_by_step<true>(memory, here, gate, q + place.at[Q] + t * step_q, k + place.at[K] + t * step_k,
                         v + place.at[V] + t * step_v, beta + place.at[BETA] + t * step_beta,
                         {step_q, step_k, step_v, step_beta}, count, keys, width, write);
      __syncthreads();
      each(state, memory[0], SLICE, KEYS, SLICE, get);
      each(out, here[0], ACROSS, STEPS, SLICE, get);
    }
    each(out, o + t * values, values, count, width, [=](float y, S* to, bool inside) {
      if (inside) *to = scale * y;
    });
    if (!wild) advance(state, here, shared, gate, lane);
    if (kept) put(state, kept + chunk * keys * values, keys, values, width);
  }
  put(state, last + row * keys * values, keys, values, width);
}
