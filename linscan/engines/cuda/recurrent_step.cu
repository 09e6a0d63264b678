// A few steps of a matrix state at once, as a decoder takes them: S = e S + b (a^T S) + k v^T, o = scale S^T q.
//
// RULE: without a; as it stands; with b = k, S = e S + k (v + a^T S)^T; or as that, beta and a key given, with beta k for k
// and -e k for a, or, where there is a key w to write along, beta w and -k. The output is that of the last of the p.length steps. A block
// owns 32 PACK columns of one head, WARPS warps share out its rows, PER to each: a row's columns are neighbours in memory.
// Sums over rows: in a thread, then over warps through shared memory, always in the same order. Where a decay is zero,
// what was before is forgotten, NaN and inf included. The state is read once and written once.
#ifndef STORAGE  // the launcher's macros, as the tests compile them
#define STORAGE bfloat16
#define RULE 3
#define PER 16
#define PACK 4
#define DECAY 1
#define PACKED 1
#endif
#include "heads.cuh"

typedef STORAGE S;
typedef Compute<S>::type C;
typedef Real<C>::type R;
enum { PLAIN, DPLR, ONE_KEY, DELTA, DELTA_OWN_KEY };  // RULE
constexpr bool LINEAR = RULE == PLAIN, FUSED = RULE >= ONE_KEY;
constexpr int WARPS = 8, THREADS = 32 * WARPS, ROWS = PER * WARPS, WIDE = 32 * PACK;
constexpr int HELD = PER * PACK * sizeof(C) / 4, BLOCKS = HELD > 64 ? 1 : HELD > 32 ? 2 : 3;  // registers; of a multiprocessor

struct Problem {
  i64 length, heads, rows, columns, ndim, size[6], wide[5], vector;  // wide: which of q to b have the dtype of the arithmetic
  double scale;
  Operand q, k, v, a, b, g, beta, first;  // b: or w
  C* last;  // (head, row, column)
  S* out;   // (head, column)
};

struct Shared {
  C k[ROWS], q[ROWS], a[ROWS], b[ROWS];
  R decay[ROWS];
  C part[WARPS][WIDE];
};

__device__ __forceinline__ C read(const Operand& x, const Problem& p, i64 head, i64 wide, i64 i) {
  return wide ? locate<const C>(x, p, head)[i] : widen(locate<const S>(x, p, head)[i]);
}

// Step t's vectors into shared memory, zeros behind the last row.
__device__ __forceinline__ void load(Shared& shared, const Problem& p, i64 head, i64 t) {
  for (i64 row = threadIdx.x; row < ROWS; row += THREADS) {
    const bool there = row < p.rows;
    const C zero = Number<C>::make(0);
    const R e = !there ? R(0) : DECAY ? exponential(locate<const R>(p.g, p, head)[t * p.g.time + (p.vector ? row : 0)]) : R(1);
    const C key = there ? read(p.k, p, head, p.wide[1], t * p.k.time + row) : zero;
    shared.decay[row] = e;
    shared.q[row] = there ? read(p.q, p, head, p.wide[0], t * p.q.time + row) : zero;
    if (RULE >= DELTA) {
      const C beta = locate<const C>(p.beta, p, head)[t * p.beta.time];
      const C along = RULE == DELTA || !there ? key : read(p.b, p, head, p.wide[4], t * p.b.time + row);
      shared.k[row] = mul(beta, along), shared.a[row] = negative(RULE == DELTA ? mul(e, key) : key);
    } else {
      shared.k[row] = key;
      if (!LINEAR) shared.a[row] = there ? read(p.a, p, head, p.wide[3], t * p.a.time + row) : zero;
      if (RULE == DPLR) shared.b[row] = there ? read(p.b, p, head, p.wide[4], t * p.b.time + row) : zero;
    }
  }
}

// The sums over all rows of this thread's columns.
__device__ __forceinline__ void total(C (&sum)[PACK], Shared& shared, int warp, int lane) {
#pragma unroll
  for (int c = 0; c < PACK; c++) shared.part[warp][lane * PACK + c] = sum[c];
  __syncthreads();
#pragma unroll
  for (int c = 0; c < PACK; c++) {
    sum[c] = shared.part[0][lane * PACK + c];
#pragma unroll
    for (int w = 1; w < WARPS; w++) sum[c] = add(sum[c], shared.part[w][lane * PACK + c]);
  }
}

// Sum over this thread's rows of x[row] S[row].
__device__ __forceinline__ void product(C (&sum)[PACK], const C (&state)[PER][PACK], const C* x) {
#pragma unroll
  for (int c = 0; c < PACK; c++) sum[c] = Number<C>::make(0);
#pragma unroll
  for (int i = 0; i < PER; i++)
#pragma unroll
    for (int c = 0; c < PACK; c++) sum[c] = mul_add(x[i], state[i][c], sum[c]);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) steps(const __grid_constant__ Problem p) {
  __shared__ Shared shared;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, top = warp * PER;
  const i64 tiles = (p.columns + WIDE - 1) / WIDE, head = blockIdx.x / tiles, column = blockIdx.x % tiles * WIDE + lane * PACK;
  const C* const first = locate<const C>(p.first, p, head) + column;
  C* const last = p.last + head * p.rows * p.columns + column;
  const bool whole = PACKED && column < p.columns;
  C state[PER][PACK], sum[PACK];
#pragma unroll
  for (int i = 0; i < PER; i++) {
#pragma unroll
    for (int c = 0; c < PACK; c++) state[i][c] = Number<C>::make(0);
    if (top + i >= p.rows) continue;
    if (whole) {
      take<PACK>(state[i], first + (top + i) * p.columns);
    } else {
#pragma unroll
      for (int c = 0; c < PACK; c++)
        if (column + c < p.columns) state[i][c] = first[(top + i) * p.columns + c];
    }
  }
#pragma unroll 1
  for (i64 t = 0; t < p.length; t++) {
    C value[PACK], seen[PACK];
#pragma unroll
    for (int c = 0; c < PACK; c++)
      value[c] = column + c < p.columns ? read(p.v, p, head, p.wide[2], t * p.v.time + column + c) : Number<C>::make(0);
    __syncthreads();
    load(shared, p, head, t);
    __syncthreads();
    if (!LINEAR) {
#pragma unroll
      for (int i = 0; i < PER; i++)
        if (DECAY && shared.decay[top + i] == 0 && is_zero(shared.a[top + i])) {
#pragma unroll
          for (int c = 0; c < PACK; c++) state[i][c] = Number<C>::make(0);
        }
      product(seen, state, &shared.a[top]);
      total(seen, shared, warp, lane);
#pragma unroll
      for (int c = 0; c < PACK; c++)
        if (FUSED) value[c] = add(value[c], seen[c]);
    }
#pragma unroll
    for (int i = 0; i < PER; i++)
#pragma unroll
      for (int c = 0; c < PACK; c++) {
        const R e = DECAY ? shared.decay[top + i] : R(1);
        C x = DECAY ? (e == 0 ? Number<C>::make(0) : mul(e, state[i][c])) : state[i][c];
        if (!LINEAR && !FUSED) x = mul_add(shared.b[top + i], seen[c], x);
        state[i][c] = mul_add(shared.k[top + i], value[c], x);
      }
  }
#pragma unroll
  for (int i = 0; i < PER; i++) {
    if (top + i >= p.rows) continue;
    if (whole) {
      Pack<C, PACK> x;
#pragma unroll
      for (int c = 0; c < PACK; c++) x.item[c] = state[i][c];
      *reinterpret_cast<Pack<C, PACK>*>(last + (top + i) * p.columns) = x;
    } else {
#pragma unroll
      for (int c = 0; c < PACK; c++)
        if (column + c < p.columns) last[(top + i) * p.columns + c] = state[i][c];
    }
  }
  product(sum, state, &shared.q[top]);
  __syncthreads();
  total(sum, shared, warp, lane);
  if (warp) return;
#pragma unroll
  for (int c = 0; c < PACK; c++)
    if (column + c < p.columns)
      p.out[head * p.columns + column + c] = Narrow<S>::of(mul(Number<C>::make(p.scale), sum[c]));
}
