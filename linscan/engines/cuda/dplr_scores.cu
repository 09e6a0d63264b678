// The first pass of dplr_attention and of the delta rule on tensor cores, chunk by chunk, all side by side: rows under their
// decays and the scores of each step with those before it, for dplr_chunk.cu.
//
//   S[t] = diag(e^g[t]) S[t-1] + b[t] u[t]^T + k[t] v[t]^T,   u[t] = S^T a[t],   o[t] = S[t]^T q[t]
//
// S under a is S[t-1] if EARLY, else diag(e^g[t]) S[t-1]. Not KEYED, b is k, u[t] = v[t] + S^T a[t] is all that is written.
// For the delta rule a comes as a key that is to be negated, `sign`, and b as a key to be multiplied with beta.
//
// A block of eight warps owns a chunk, a warp 16 of its steps and what is read by q, or by a. Inside them scores are made of
// blocks of 1, 2, 4 and 8 steps, as gated_chunk.cuh says, each factor a product of decays alone; those of a and b in two
// parts, since what is erased may be far larger than what is left (delta_solve.cuh).
//
// Bytes moved: q, a, b, k and g once, and a slab: (3 or 4 K + 2 or 4 * 64 + 32) 16-bit numbers a step.
// Limits: keys to KEYS, of which shared memory holds 5 or 6 times 64.
#ifndef STORAGE  // the launcher's macros, as the tests compile them
#define STORAGE bfloat16
#define KEYS 128
#define DECAYS 2
#define EARLY 1
#define KEYED 1
#define PACKED 1
#endif
constexpr int WARPS = 8;  // of a block
#include "dplr_own.cuh"

// Scores of the steps of block i with those of block j before it. Rows of q and a are those from the start of i on.
__device__ __forceinline__ void two_blocks(Slab& to, Shared& shared, int i, int j, int lane) {
  float p[KINDS][2][4] = {};
#pragma unroll 1
  for (int c = 0; c < KEYS; c += 16) {
    u32 read[4], b[4], rest[4];
    Split erases;
    load_a<false>(read, shared.q, 16 * i, c, lane);
    load_a<false>(erases.most, shared.a, 16 * i, c, lane), load_a<false>(erases.rest, shared.rest_a, 16 * i, c, lane);
    if (DECAYS && j + 1 < i) {
      Tile left, x, y, more;
      unpack(x, read), unpack(y, erases.most), unpack(more, erases.rest);
#pragma unroll
      for (int n = 0; n < 4; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const int channel = c + n / 2 * 8 + lane % 4 * 2 + e;
          left[n][e] = shared.whole[j + 1][channel] * (j + 2 < i ? shared.whole[j + 2][channel] : 1.0f);
          y[n][e] += more[n][e];
        }
      round_tile(read, x, left), split(erases, y, left);
    }
    load_b<false>(b, shared.b, c, 16 * j, lane), load_b<false>(rest, shared.rest_b, c, 16 * j, lane);
    mma_pair(p[OF_QB][0], p[OF_QB][1], read, b);
    mma_pair(p[OF_AB][0], p[OF_AB][1], erases.rest, b);
    mma_pair(p[OF_AB][0], p[OF_AB][1], erases.most, rest);
    mma_pair(p[OF_AB][0], p[OF_AB][1], erases.most, b);
    if (!KEYED) continue;
    load_b<false>(b, shared.k, c, 16 * j, lane);
    mma_pair(p[KINDS - 2][0], p[KINDS - 2][1], read, b);
    mma_pair(p[KINDS - 1][0], p[KINDS - 1][1], erases.most, b);
  }
#pragma unroll
  for (int n = 0; n < KINDS; n++)
#pragma unroll
    for (int side = 0; side < 2; side++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int row = lane / 4 + 8 * half, column = 8 * side + lane % 4 * 2;
        const float x = p[n][side][2 * half], y = p[n][side][2 * half + 1];
        const u32 most = pair<S>(x, y);
        *reinterpret_cast<u32*>(&to.scores[n][16 * i + row][16 * j + column]) = most;
        if (n == OF_AB)
          *reinterpret_cast<u32*>(&to.scores[n][16 * j + row][16 * i + column]) = pair<S>(x - low(most, S()), y - high(most, S()));
      }
}

struct alignas(16) Pack { u32 word[4]; };

// Rows, with what rounding left of them, under the decays of the blocks before or, TO_END, after theirs.
template <bool RESTS, bool TO_END, class Row>
__device__ __forceinline__ void send_rows(S* to, const Row* x, const Row* rest, const float (&whole)[BLOCKS][KEYS]) {
#pragma unroll 2
  for (int i = threadIdx.x; i < STEPS * (KEYS / 8); i += THREADS) {
    const int t = i / (KEYS / 8), c = i % (KEYS / 8) * 8;
    Pack y = *reinterpret_cast<const Pack*>(&x[t][c]);
    if (DECAYS) {
      const Pack more = RESTS ? *reinterpret_cast<const Pack*>(&rest[t][c]) : Pack{};
      float left[8] = {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f};
      for (int n = TO_END ? t / 16 + 1 : 0; n < (TO_END ? BLOCKS : t / 16); n++)
#pragma unroll
        for (int e = 0; e < 8; e++) left[e] *= whole[n][c + e];
#pragma unroll
      for (int n = 0; n < 4; n++)
        y.word[n] = pair<S>(left[2 * n] * (low(y.word[n], S()) + low(more.word[n], S())),
                            left[2 * n + 1] * (high(y.word[n], S()) + high(more.word[n], S())));
    }
    *reinterpret_cast<Pack*>(to + t * KEYS + c) = y;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
prepare(const __grid_constant__ Layout layout, const S* q, const S* a, const S* b, const S* k, const float* beta, const float* g,
        Slab* slabs, int keys, float sign) {
  extern __shared__ __align__(16) u8 memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  const i64 chunks = (layout.length + STEPS - 1) / STEPS, row = blockIdx.x / chunks, t0 = blockIdx.x % chunks * STEPS;
  const int count = static_cast<int>(layout.length - t0 < STEPS ? layout.length - t0 : STEPS);
  const Place place = locate(layout, row);
  Slab& to = slabs[blockIdx.x];
  const i64 step_q = layout.operand[Q].time, step_a = layout.operand[A].time, step_b = layout.operand[B].time;
  fetch<KEYS>(shared.q, q + place.at[Q] + t0 * step_q, step_q, 0, count, keys, STEPS);
  fetch<KEYS>(shared.a, a + place.at[A] + t0 * step_a, step_a, 0, count, keys, STEPS);
  fetch<KEYS>(shared.b, b + place.at[B] + t0 * step_b, step_b, 0, count, keys, STEPS);
  if (KEYED) {
    const i64 step_k = layout.operand[KEY].time;
    fetch<KEYS>(shared.k, k + place.at[KEY] + t0 * step_k, step_k, 0, count, keys, STEPS);
  }
  commit();
  if (threadIdx.x < 2 * STEPS) shared.odd[threadIdx.x / STEPS][threadIdx.x % STEPS] = 0;
  float weight[2];
  bool odd[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int t = 16 * (warp % BLOCKS) + lane / 4 + 8 * half;
    weight[half] = beta ? t < count ? beta[place.at[BETA] + (t0 + t) * layout.operand[BETA].time] : 0.0f : 1.0f;
    odd[half] = !is_finite(weight[half]);
    if (odd[half]) weight[half] = 0.0f;
  }
  arrived<0>();
  __syncthreads();
  clean<KEYS>(shared.q, shared.odd[0]), clean<KEYS>(shared.a, shared.odd[1]), clean<KEYS>(shared.b, shared.odd[1]);
  if (KEYED) clean<KEYS>(shared.k, shared.odd[1]);
#pragma unroll
  for (int half = 0; half < 2; half++)
    if (odd[half]) shared.odd[1][16 * (warp % BLOCKS) + lane / 4 + 8 * half] = 1;
  __syncthreads();
  if (sign < 0.0f)
    for (int i = threadIdx.x; i < STEPS * KEYS / 2; i += THREADS)
      *reinterpret_cast<u32*>(&shared.a[i / (KEYS / 2)][i % (KEYS / 2) * 2]) ^= 0x80008000u;
  __syncthreads();
  g += DECAYS ? place.at[G] + t0 * layout.operand[G].time : 0;
  if (warp < BLOCKS) own_block<true>(to, shared, g, layout.operand[G].time, weight, count, keys, lane, warp);
  else own_block<false>(to, shared, g, layout.operand[G].time, weight, count, keys, lane, warp - BLOCKS);
  __syncthreads();
  for (int c = threadIdx.x; c < KEYS; c += THREADS)
    to.decay[c] = shared.whole[0][c] * shared.whole[1][c] * shared.whole[2][c] * shared.whole[3][c];
  if (warp < 6) {
    const int i = 1 + (warp > 0) + (warp > 2);
    two_blocks(to, shared, i, warp - i * (i - 1) / 2, lane);
  }
  __syncthreads();
  send_rows<true, false>(&to.rows[ROW_A][0][0], shared.a, shared.rest_a, shared.whole);
  send_rows<false, false>(&to.rows[ROW_Q][0][0], shared.q, shared.q, shared.whole);
  send_rows<true, true>(&to.rows[ROW_B][0][0], shared.b, shared.rest_b, shared.whole);
  if (KEYED) send_rows<false, true>(&to.rows[2 + KEYED][0][0], shared.k, shared.k, shared.whole);
  if (threadIdx.x < STEPS)
    to.marks[threadIdx.x] = shared.marks[threadIdx.x] | (shared.odd[1][threadIdx.x] ? BAD : 0) | (shared.odd[0][threadIdx.x] ? BAD_QUERY : 0);
}
