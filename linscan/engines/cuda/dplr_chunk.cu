// dplr_attention and the delta rule, 16-bit arrays and any decay, on tensor cores: through the chunks, either way.
//
// dplr_scores.cu says what is computed, and has made a slab of rows and scores of every chunk of 64 steps. With tildes for
// rows under the decays from the chunk's start, hats for those to its end and A for scores of what is read and written:
//   (1 - Aab) U = Aak V + ~A S,   O = ~Q S + Aqb U + Aqk V,   S' = e^W[63] S + ^B^T U + ^K^T V,
// and not KEYED, where v is written with u along b, (1 - Aab) U = V + ~A S, O = ~Q S + Aqb U, S' = e^W[63] S + ^B^T U.
// The gradient X of the state is the same, backwards in time, with all factors in each other's role:
//   (1 - Aab^T) Y = Aqb^T dO + ^B X',   dV = ^K X' + Aak^T Y + Aqk^T dO, or Y,   X = e^W[63] X' + ~A^T Y + ~Q^T dO,
// where outputs are taken without their factor `scale`: X starts as the last state's gradient by it, and is times it last.
//
// As in delta_chunk.cu this is done transposed: a warp owns 16 value columns, and keeps its part of the state in registers.
// What it needs of the next chunk comes while it works on this one, into memory whose last use is over: rows that meet the
// state, scores and values, rows that are written. Kept for the gradients, which dplr_chunk_back.cu makes: U or Y, and the
// states before, or gradients after, each chunk.
//
// Bytes moved: the slabs, v and o once (slabs once more for every 16 WARPS values beyond the first), and what is kept.
// Limits: any number of values and steps, keys to KEYS.
#ifndef STORAGE  // the launcher's macros, as the tests compile them
#define STORAGE bfloat16
#define KEYS 128
#define WARPS 8
#define KEYED 1
#define BACKWARDS 0
#define KEEP 1
#define PACKED 1
#endif
#define DECAYS 1
#include "delta_chunk.cuh"
#include "dplr_slab.cuh"

constexpr int VALUES = 16 * WARPS, MET = 2 - (BACKWARDS && !KEYED), WRITTEN = 1 + (BACKWARDS || KEYED);  // rows, of two kinds at most
constexpr bool APART = KEYED || !BACKWARDS;  // what goes out is not what is solved for

struct alignas(16) Shared {
  S met[MET][STEPS][KEYS + PAD], written[WRITTEN][STEPS][KEYS + PAD];
  S scores[1 + 2 * KEYED][STEPS][WIDTH], erases[STEPS][WIDTH], inverse[2][STEPS][16 + PAD], v[STEPS][VALUES + PAD];
  float decay[2][KEYS];
  int marks[2][STEPS], bad[STEPS], spoilt[STEPS];
};

template <int ROWS, int NUMBERS, class Row> __device__ __forceinline__ void bring(Row* to, const S* from) {
#pragma unroll 4
  for (int i = threadIdx.x; i < ROWS * (NUMBERS / 8); i += THREADS) {
    const int t = i / (NUMBERS / 8), c = i % (NUMBERS / 8) * 8;
    copy16(&to[t][c], from + t * NUMBERS + c, true);
  }
}
template <class Number> __device__ __forceinline__ void bring_few(Number* to, const Number* from, int count) {
  for (int i = threadIdx.x; i < count / 4; i += THREADS) copy16(to + 4 * i, from + 4 * i, true);
}
// Of the n-th chunk of this way: rows that meet the state, with its decay; scores and values; rows that are written.
__device__ __forceinline__ void bring_met(Shared& to, const Slab& from, int n) {
  bring<STEPS, KEYS>(to.met[0], from.rows[BACKWARDS ? ROW_B : ROW_A][0]);
  if (MET == 2) bring<STEPS, KEYS>(to.met[MET - 1], from.rows[BACKWARDS ? 2 + KEYED : ROW_Q][0]);
  bring_few(to.decay[n % 2], from.decay, KEYS), bring_few(to.marks[n % 2], from.marks, STEPS);
}
__device__ __forceinline__ void bring_scores(Shared& to, const Slab& from, const S* v, i64 time, int count, int width) {
  bring<STEPS, STEPS>(to.scores[0], from.scores[OF_QB][0]), bring<STEPS, STEPS>(to.erases, from.scores[OF_AB][0]);
  if (KEYED) bring<2 * STEPS, STEPS>(to.scores[KEYED], from.scores[2 * KEYED][0]);  // of q and k, and of a and k
  bring<2 * STEPS, 16>(to.inverse[0], from.inverse[0][0]);
  load<VALUES, PACKED>(to.v, v, time, count, width);
}
__device__ __forceinline__ void bring_written(Shared& to, const Slab& from) {
  bring<STEPS, KEYS>(to.written[0], from.rows[BACKWARDS ? ROW_A : ROW_B][0]);
  if (WRITTEN == 2) bring<STEPS, KEYS>(to.written[WRITTEN - 1], from.rows[BACKWARDS ? ROW_Q : 2 + KEYED][0]);
}

// Which steps are made NaN, as delta_pass.cuh says: those a bad one reaches before all is forgotten; `lost`, whether the
// state that enters is. Steps whose values are bad are taken out. Returns whether the state that leaves is lost.
__device__ __forceinline__ bool spoil(Shared& shared, const int* marks, bool lost) {
  __syncthreads();
  clear_rows<VALUES>(shared.v, shared.bad);
  bool leaves = lost, found = false;
  for (int n = 0; n < STEPS; n++) {
    const int s = BACKWARDS ? STEPS - 1 - n : n, mark = marks[s];
    if (!BACKWARDS && mark & FORGETS) leaves = false;
    leaves |= shared.bad[s] || mark & (BACKWARDS ? BAD | BAD_QUERY : BAD);
    if (s == threadIdx.x) found = leaves;
    if (BACKWARDS && mark & FORGETS) leaves = false;
  }
  __syncthreads();
  if (threadIdx.x < STEPS) shared.spoilt[threadIdx.x] = found, shared.bad[threadIdx.x] = 0;
  __syncthreads();
  return leaves;
}

// x += the scores' block (i, j) times the 16 steps `u` of block j, or, BACKWARDS, of its transpose.
template <class Row>
__device__ __forceinline__ void add_scores(float (&left)[4], float (&right)[4], const u32 (&u)[4], const Row* scores, int i, int j, int lane) {
  u32 b[4];
  if (BACKWARDS) load_b<true>(b, scores, 16 * j, 16 * i, lane);
  else load_b<false>(b, scores, 16 * j, 16 * i, lane);
  mma_pair(left, right, u, b);
}

__device__ __forceinline__ void spoil_columns(Steps& x, const int* spoilt, int lane) {
#pragma unroll
  for (int n = 0; n < STEPS / 8; n++)
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (spoilt[8 * n + lane % 4 * 2 + i % 2]) x[n][i] = not_a_number();
}

// `first` is the state before the first step, or its gradient after the last one, and `last` what it becomes.
extern "C" __global__ void __launch_bounds__(THREADS)
walk(const __grid_constant__ Layout layout, const Slab* slabs, const S* v, const float* first, S* o, float* last, int keys, i64 values,
     float scale, const __grid_constant__ Kept kept) {
  extern __shared__ __align__(16) u8 memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const u32 slices = static_cast<u32>((values + VALUES - 1) / VALUES), row = blockIdx.x / slices, corner = blockIdx.x % slices * VALUES;
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, column = 16 * warp;
  const int chunks = static_cast<int>((layout.length + STEPS - 1) / STEPS);
  const i64 left = values - corner - column, all = values - corner, step_v = layout.operand[V].time;
  const int width = static_cast<int>(left < 0 ? 0 : left < 16 ? left : 16), whole = static_cast<int>(all < VALUES ? all : VALUES);
  const Place place = locate(layout, row);
  const Slab* slab = slabs + row * i64(chunks);
  v += place.at[V] + corner;
  const auto chunk_of = [=](int n) { return BACKWARDS ? chunks - 1 - n : n; };
  const auto count_of = [=](int c) { return at_most_steps(layout.length - i64(c) * STEPS); };
  const auto bring_values = [&](int c) { bring_scores(shared, slab[c], v + c * STEPS * step_v, step_v, count_of(c), whole); };
  State state;
  const float start = BACKWARDS ? 1.0f / scale : 1.0f, end = BACKWARDS ? scale : 1.0f;
  bool found = false;
#pragma unroll
  for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int key = 8 * n + lane % 4 * 2 + i % 2, c = lane / 4 + i / 2 * 8;
      state[n][i] = first && key < keys && c < width ? start * first[place.at[STATE] + key * values + corner + column + c] : 0.0f;
      found |= !is_finite(state[n][i]);
    }
  // Three commits a chunk, also where nothing is left to bring: of each two later ones may be on their way when it is used.
  bring_met(shared, slab[chunk_of(0)], 0), commit();
  bring_values(chunk_of(0)), commit();
  bring_written(shared, slab[chunk_of(0)]), commit();
  if (threadIdx.x < STEPS) shared.bad[threadIdx.x] = 0;
  bool lost = __syncthreads_or(found);
  if (lost) clear(state);
#pragma unroll 1
  for (int n = 0; n < chunks; n++) {
    const int chunk = chunk_of(n), next = chunk_of(n + 1), *marks = shared.marks[n % 2];
    const bool more = n + 1 < chunks;
    const i64 t = i64(chunk) * STEPS;
    arrived<2>();
    __syncthreads();
    Steps u, out;
    clear(u), clear(out);
#pragma unroll
    for (int m = 0; m < KEYS / 8; m += 2) {
      u32 a[4], b[4];
      round_block(a, state[m], state[m + 1]);
#pragma unroll
      for (int c = 0; c < STEPS / 8; c += 2) {
        load_b<false>(b, shared.met[0], 8 * m, 8 * c, lane);
        mma_pair(u[c], u[c + 1], a, b);
        if (MET == 1) continue;
        load_b<false>(b, shared.met[MET - 1], 8 * m, 8 * c, lane);
        mma_pair(out[c], out[c + 1], a, b);
      }
    }
    if (KEEP && corner + column < kept.wide) {
      S* to = kept.states + ((row * i64(chunks) + chunk) * kept.wide + corner + column) * KEYS;
      const u32 none = pair<S>(not_a_number(), not_a_number());
#pragma unroll
      for (int m = 0; m < KEYS / 8; m++)
#pragma unroll
        for (int half = 0; half < 2; half++)
          *reinterpret_cast<u32*>(to + (lane / 4 + 8 * half) * KEYS + 8 * m + lane % 4 * 2) =
              lost ? none : pair<S>(state[m][2 * half], state[m][2 * half + 1]);
    }
#pragma unroll
    for (int m = 0; m < KEYS / 8; m++)
#pragma unroll
      for (int i = 0; i < 4; i++) state[m][i] = times(shared.decay[n % 2][8 * m + lane % 4 * 2 + i % 2], state[m][i]);
    arrived<1>();
    bool odd = inspect<VALUES, PACKED>(shared.v, shared.bad);
    if (threadIdx.x < STEPS) odd |= (marks[threadIdx.x] & (BAD | BAD_QUERY)) != 0;
    const bool careful = __syncthreads_or(odd) || lost;
    if (more) bring_met(shared, slab[next], n + 1);
    commit();
    if (careful) lost = spoil(shared, marks, lost);
    u32 in[BLOCKS][4], solved[BLOCKS][4];
#pragma unroll
    for (int i = 0; i < BLOCKS; i++) load_a<true>(in[i], shared.v, 16 * i, column, lane);
#pragma unroll
    for (int m = 0; m < BLOCKS; m++) {
      const int i = BACKWARDS ? BLOCKS - 1 - m : m;
      if (!BACKWARDS && !KEYED) {
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
          for (int j = 0; j < 4; j++) u[2 * i + half][j] += j % 2 ? high(in[i][2 * half + j / 2], S()) : low(in[i][2 * half + j / 2], S());
      } else {
#pragma unroll
        for (int k = 0; k <= m; k++) {
          const int j = BACKWARDS ? BLOCKS - 1 - k : k;
          add_scores(u[2 * i], u[2 * i + 1], in[j], shared.scores[BACKWARDS ? 0 : 2 * KEYED], i, j, lane);
        }
      }
#pragma unroll
      for (int k = 0; k < m; k++) {
        const int j = BACKWARDS ? BLOCKS - 1 - k : k;
        erase<BACKWARDS>(u[2 * i], u[2 * i + 1], solved[j], shared, i, j, lane);
      }
      solve_block<BACKWARDS>(u[2 * i], u[2 * i + 1], shared, i, lane);
      round_block(solved[i], u[2 * i], u[2 * i + 1]);
#pragma unroll
      for (int k = 0; APART && k <= m; k++) {
        const int j = BACKWARDS ? BLOCKS - 1 - k : k;
        add_scores(out[2 * i], out[2 * i + 1], solved[j], shared.scores[BACKWARDS ? 2 * KEYED : 0], i, j, lane);
        if (KEYED) add_scores(out[2 * i], out[2 * i + 1], in[j], shared.scores[KEYED], i, j, lane);
      }
    }
    // Through this warp's own columns of the values, which it has taken.
    const int count = count_of(chunk);
    const auto send = [&](S* to, i64 wide, const Steps& x, int limit) {
      __syncwarp();
      put_steps(shared.v, x, column, lane);
      __syncwarp();
      store_columns(to + (row * layout.length + t) * wide + corner + column, wide, shared.v, column, count, limit, lane);
    };
    if (careful) {
      spoil_columns(u, shared.spoilt, lane), spoil_columns(out, shared.spoilt, lane);
      if (!BACKWARDS)
#pragma unroll
        for (int m = 0; m < STEPS / 8; m++)
#pragma unroll
          for (int i = 0; i < 4; i++)
            if (marks[8 * m + lane % 4 * 2 + i % 2] & BAD_QUERY) out[m][i] = not_a_number();
    }
    if (KEEP && corner + column < kept.wide) send(kept.steps, kept.wide, u, 16);
    Steps& y = APART ? out : u;
#pragma unroll
    for (int m = 0; m < STEPS / 8; m++)
#pragma unroll
      for (int i = 0; i < 4; i++) y[m][i] *= scale;
    send(o, values, y, width);
    arrived<1>();
    __syncthreads();
    if (more) bring_values(next);
    commit();
#pragma unroll
    for (int i = 0; i < BLOCKS; i++)
#pragma unroll
      for (int m = 0; m < KEYS / 8; m += 2) {
        u32 b[4];
        load_b<true>(b, shared.written[0], 16 * i, 8 * m, lane);
        mma_pair(state[m], state[m + 1], solved[i], b);
        if (WRITTEN == 1) continue;
        load_b<true>(b, shared.written[WRITTEN - 1], 16 * i, 8 * m, lane);
        mma_pair(state[m], state[m + 1], in[i], b);
      }
    __syncthreads();
    if (more) bring_written(shared, slab[next]);
    commit();
  }
#pragma unroll
  for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int key = 8 * n + lane % 4 * 2 + i % 2, c = lane / 4 + i / 2 * 8;
      if (key < keys && c < width)
        last[(row * i64(keys) + key) * values + corner + column + c] = lost ? not_a_number() : end * state[n][i];
    }
}
