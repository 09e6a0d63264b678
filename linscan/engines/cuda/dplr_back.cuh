// What the gradients of a chunk are made with: its arrays in shared memory, and the steps of one block and channel among each
// other. See dplr_chunk_back.cu.
#pragma once
#include "dplr_terms.cuh"

constexpr int SLICE = 64, HALF = SLICE / 2, TILES = HALF / 8, WIDTH = STEPS + PAD;
constexpr int TOGETHER = KEYED ? 4 : 8;  // steps of a block whose writes a thread has in registers

struct Kept { S *steps, *states; i64 wide; };  // as dplr_chunk.cu writes them

// What belongs to 64 values: U, Y, dO, V by steps, S and X a row for each value.
struct Values { S u[STEPS][WIDTH], y[STEPS][WIDTH], flow[STEPS][WIDTH], state[STEPS][WIDTH], after[STEPS][WIDTH], v[KEYED ? STEPS : 1][WIDTH]; };
struct Rows { S q[STEPS][WIDTH], a[STEPS][WIDTH], b[STEPS][WIDTH], k[KEYED ? STEPS : 1][WIDTH]; };  // at their block's start or end
enum { READ_Q, READ_A, LEFT_B, MET_B, LEFT_K, MET_K };
typedef float Sums[2 + 2 * (1 + KEYED)][STEPS][SLICE + 4];  // of the blocks before, or after, without the block's own decays
struct alignas(16) Shared {
  union {
    struct { Values values[2]; Rows rows; };  // one tile of values, and the next on its way
    Sums sums;
  };
  S scores[KINDS][STEPS][WIDTH];
  float whole[BLOCKS][SLICE], dots[BLOCKS][SLICE], ends[2][BLOCKS][SLICE], weight[2][2][STEPS];
  int bad[4][STEPS];  // steps that are not finite in U, Y, dO; of the others it is not asked which
};

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int by = 16; by; by /= 2) x += shuffle_xor(x, by);
  return x;
}

// The arguments of 16 steps in one channel, read all at once; zeros where they are not finite, or beyond the end.
struct Arguments {
  float q[16], a[16], b[16], k[16], beta[16], decay[16];
  int count;  // of steps there are, among these; none beyond the last channel
};

// What is read from `x` on, one number a step; the last one again where there are no more.
template <class Number> __device__ __forceinline__ void steps_of(Number (&to)[16], const Number* x, i64 time, int count) {
#pragma unroll
  for (int n = 0; n < 16; n++) {
    to[n] = *x;
    if (n + 1 < count) x += time;
  }
}
__device__ __forceinline__ void finite_steps(float (&to)[16], const S (&x)[16], int count) {
#pragma unroll
  for (int n = 0; n < 16; n++) {
    const float y = widen(x[n]);
    to[n] = n < count && is_finite(y) ? y : 0.0f;
  }
}
__device__ __forceinline__ void take_arguments(Arguments& to, const Layout& layout, i64 row, i64 t0, int channel, const S* q, const S* a,
                                               const S* b, const S* k, const float* beta, const float* g, int keys, float sign) {
  const Place place = locate(layout, row);
  const auto& of = layout.operand;
  const i64 left = layout.length - t0;
  to.count = left <= 0 || channel >= keys ? 0 : left < 16 ? static_cast<int>(left) : 16;
  if (left <= 0) t0 = 0;  // any step that is there
  if (channel >= keys) channel = 0;
  const auto at = [&](int n) { return place.at[n] + t0 * of[n].time; };
  S x[4][16] = {};
  float gates[16];
  steps_of(x[0], q + at(Q) + channel, of[Q].time, to.count);
  steps_of(x[1], a + at(A) + channel, of[A].time, to.count);
  steps_of(x[2], b + at(B) + channel, of[B].time, to.count);
  if (KEYED) steps_of(x[3], k + at(KEY) + channel, of[KEY].time, to.count);
  if (DECAYS) steps_of(gates, g + at(G) + (DECAYS == 2 ? channel : 0), of[G].time, to.count);
  if (beta) steps_of(to.beta, beta + at(BETA), of[BETA].time, to.count);
  finite_steps(to.q, x[0], to.count), finite_steps(to.a, x[1], to.count), finite_steps(to.b, x[2], to.count);
  if (KEYED) finite_steps(to.k, x[3], to.count);
#pragma unroll
  for (int n = 0; n < 16; n++) {
    to.a[n] *= sign;
    to.beta[n] = !beta ? 1.0f : is_finite(to.beta[n]) ? to.beta[n] : 0.0f;
    to.decay[n] = DECAYS && n < to.count && gates[n] <= 3.4e38f ? __expf(gates[n]) : 1.0f;
    if (!KEYED) to.k[n] = 0.0f;
  }
}

// Rows of one block and channel under the decays inside the block.
__device__ __forceinline__ void make_rows(Shared& shared, const Arguments& x, int block, int c) {
  float from = 1.0f, until = 1.0f;
#pragma unroll
  for (int n = 0; n < 16; n++) {
    const int t = 16 * block + n;
    const float early = from;
    from *= x.decay[n];
    shared.rows.q[t][c] = Narrow<S>::of(x.q[n] * from), shared.rows.a[t][c] = Narrow<S>::of(x.a[n] * (EARLY ? early : from));
  }
#pragma unroll
  for (int n = 15; n >= 0; n--) {
    const int t = 16 * block + n;
    shared.rows.b[t][c] = Narrow<S>::of(x.beta[n] * x.b[n] * until);
    if (KEYED) shared.rows.k[t][c] = Narrow<S>::of(x.k[n] * until);
    until *= x.decay[n];
  }
  shared.whole[block][c] = until;
}

// Where gradients of a chunk go, at this thread's channel, `wide` numbers a step; those of b and beta as they came.
struct Outs {
  S *q, *a, *b, *k;
  float *beta, *g;
  int wide;
};

__device__ __forceinline__ float score_at(const Shared& shared, int kind, int t, int s) { return widen(shared.scores[kind][t][s]); }

// Scores of step t and TOGETHER others.
struct alignas(2 * TOGETHER) Several {
  u32 word[TOGETHER / 2];
  __device__ __forceinline__ float operator[](int i) const { return i % 2 ? high(word[i / 2], S()) : low(word[i / 2], S()); }
};
__device__ __forceinline__ Several several_at(const Shared& shared, int kind, int t, int s) {
  return *reinterpret_cast<const Several*>(&shared.scores[kind][t][s]);
}

// What a block of 16 steps has in one channel: its steps among each other, and with all that `sums` hold. Several of them write
// at a time, for registers; what later ones read adds up in `sums`, where what is left of each step goes in the end.
__device__ __forceinline__ void finish(Shared& shared, const Arguments& x, const Outs& to, int block, int c, float scale, float sign, int lane, int warp) {
  const int first = 16 * block;
  float flow[16], edge = 0.0f;  // edge: of the first step's a, which the decays of the blocks before act on
#pragma unroll
  for (int begin = 0; begin < 16; begin += TOGETHER) {
    float b[TOGETHER], k[TOGETHER], d[TOGETHER], db[TOGETHER], dk[TOGETHER], from = 1.0f, until = 1.0f;  // d: decays from each step to this one
#pragma unroll
    for (int n = 0; n < 16; n++) {
      const int t = first + n;
      const float decay = x.decay[n], early = from;
      from *= decay;
      if (n < begin) continue;
      if (n >= begin + TOGETHER) until *= decay;
      const float q = x.q[n], a = x.a[n];
      float read = shared.sums[READ_Q][t][c], erased = shared.sums[READ_A][t][c];
      if (!begin) read *= from, erased *= EARLY ? early : from;
      Several of[KINDS];
#pragma unroll
      for (int m = 0; m < KINDS; m++) of[m] = several_at(shared, m, t, first + begin);
#pragma unroll
      for (int i = 0; i < TOGETHER; i++) {
        if (begin + i >= n) continue;
        const float before = EARLY ? d[i] : d[i] * decay;
        d[i] *= decay;
        const float qb = d[i] * of[OF_QB][i], ab = before * of[OF_AB][i];
        read = __fmaf_rn(qb, b[i], read), erased = __fmaf_rn(ab, b[i], erased);
        db[i] = __fmaf_rn(qb, q, __fmaf_rn(ab, a, db[i]));
        if (!KEYED) continue;
        const float qk = d[i] * of[KINDS - 2][i], ak = before * of[KINDS - 1][i];
        read = __fmaf_rn(qk, k[i], read), erased = __fmaf_rn(ak, k[i], erased);
        dk[i] = __fmaf_rn(qk, q, __fmaf_rn(ak, a, dk[i]));
      }
      if (n >= begin + TOGETHER) {
        shared.sums[READ_Q][t][c] = read, shared.sums[READ_A][t][c] = erased;
        continue;
      }
      b[n % TOGETHER] = x.beta[n] * x.b[n], k[n % TOGETHER] = x.k[n], d[n % TOGETHER] = 1.0f, db[n % TOGETHER] = dk[n % TOGETHER] = 0.0f;
      flow[n] = q * read;
      if (!EARLY) flow[n] = __fmaf_rn(a, erased, flow[n]);
      else if (n) flow[n ? n - 1 : 0] = __fmaf_rn(a, erased, flow[n ? n - 1 : 0]);
      else edge = a * erased;
      shared.sums[READ_A][t][c] = erased;
      read = __fmaf_rn(of[OF_QB][n % TOGETHER], b[n % TOGETHER], read);
      if (KEYED) read = __fmaf_rn(of[KINDS - 2][n % TOGETHER], k[n % TOGETHER], read);
      if (n < x.count) to.q[t * to.wide] = Narrow<S>::of(shared.bad[0][t] || shared.bad[2][t] ? not_a_number() : scale * read);
    }
#pragma unroll
    for (int i = TOGETHER - 1; i >= 0; i--) {
      const int n = begin + i, t = first + n;
      const bool bad = shared.bad[0][t] || shared.bad[1][t], there = n < x.count;
      const float q = x.q[n], erased = shared.sums[READ_A][t][c];
      float left = until * shared.sums[LEFT_B][t][c], met = __fmaf_rn(until, shared.sums[MET_B][t][c], db[i]);
      const float all = __fmaf_rn(score_at(shared, OF_QB, t, t), q, left + met);
      flow[n] = __fmaf_rn(-b[i], met, flow[n]), left *= b[i];
      if (KEYED) {
        const float more = until * shared.sums[KEYED * LEFT_K][t][c];
        met = __fmaf_rn(until, shared.sums[KEYED * MET_K][t][c], dk[i]);
        flow[n] = __fmaf_rn(-k[i], met, flow[n]), left = __fmaf_rn(k[i], more, left);
        const float key = scale * __fmaf_rn(score_at(shared, KINDS - 2, t, t), q, more + met);
        if (there) to.k[t * to.wide] = Narrow<S>::of(bad ? not_a_number() : key);
      }
      shared.sums[LEFT_B][t][c] = left;
      const float own = x.beta[n] * all, reads = sign * erased;
      if (there && to.a)
        to.a[t * to.wide] = Narrow<S>::of(bad || (EARLY && t && shared.bad[0][t - 1]) ? not_a_number() : scale * reads);
      if (there) to.b[t * to.wide] = Narrow<S>::of(bad ? not_a_number() : scale * (to.a ? own : own + reads));
      if (to.beta) {
        const float sum = warp_sum(x.b[n] * all);
        if (lane == 0) shared.weight[0][warp % 2][t] = sum;
      }
      until *= x.decay[n];
    }
  }
  if (!DECAYS) return;
  float behind = 0.0f, before = 0.0f;
#pragma unroll
  for (int n = 0; n < 16; n++) behind += flow[n], before += shared.sums[LEFT_B][first + n][c];
  shared.ends[0][block][c] = behind + edge, shared.ends[1][block][c] = before;
  __syncthreads();
  before = behind = 0.0f;
  float all = 1.0f, met = 0.0f;
#pragma unroll
  for (int n = 0; n < BLOCKS; n++) {
    all *= shared.whole[n][c], met += shared.dots[n][c];
    if (n < block) before += shared.ends[1][n][c];
    if (n > block) behind += shared.ends[0][n][c];
  }
  before += all == 0.0f ? 0.0f : all * met;
#pragma unroll
  for (int n = 15; n >= 0; n--) behind += flow[n], flow[n] = behind;
#pragma unroll
  for (int n = 0; n < 16; n++) {
    const int t = first + n;
    float dg = x.decay[n] == 0.0f ? 0.0f : scale * (before + flow[n]);
    before += shared.sums[LEFT_B][t][c];
    if (DECAYS == 1) {
      dg = warp_sum(x.count ? dg : 0.0f);
      if (lane == 0) shared.weight[1][warp % 2][t] = dg;
    } else if (n < x.count) {
      to.g[t * to.wide] = shared.bad[0][t] || shared.bad[1][t] ? not_a_number() : dg;
    }
  }
}
