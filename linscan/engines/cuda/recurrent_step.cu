// A few steps of a matrix state at once, as a decoder takes them: S = e S + b (a^T S) + k v^T, o = scale S^T q.
//
// RULE: without a; as it stands; with b = k, S = e S + k (v + a^T S)^T; or as that, beta and a key given, with beta k for k
// and -e k for a, or, where there is a key w to write along, beta w and -k. The output is that of the last of the p.length steps. A block
// owns 32 PACK columns of one head, WARPS warps share out its rows, PER to each: a row's columns are neighbours in memory.
// The state waits in shared memory, each number for the thread that works on it. Sums over rows: in a thread, then over
// warps, always in the same order. Where a decay is zero, what was before is forgotten, NaN and inf included. The state is
// read once and written once.
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
constexpr int BLOCKS = ROWS * WIDE * sizeof(C) > 64 << 10 ? 1 : 3;  // of a multiprocessor

struct Problem {
  i64 length, heads, rows, columns, ndim, size[6], wide[5], vector;  // wide: which of q to b have the dtype of the arithmetic
  double scale;
  Operand q, k, v, a, b, g, beta, first;  // b: or w
  C* last;  // (head, row, column)
  S* out;   // (head, column)
};

struct Shared {
  C state[ROWS][WIDE];
  C k[ROWS], q[ROWS], a[ROWS], b[ROWS];
  R decay[ROWS];
  C part[WARPS][WIDE];
};

// A thread's columns of a row of the state to shared memory, in the background where a card can; here after `arrived`.
typedef Pack<C, PACK> Columns;
__device__ __forceinline__ void bring(C* to, const C* from) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(static_cast<u32>(__cvta_generic_to_shared(to))), "l"(from),
               "n"(sizeof(Columns))
               : "memory");
#else
  *reinterpret_cast<Columns*>(to) = *reinterpret_cast<const Columns*>(from);
#endif
}
__device__ __forceinline__ void arrived() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

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
__device__ __forceinline__ void total(C (&sum)[PACK], Shared& shared, int warp, int left) {
#pragma unroll
  for (int c = 0; c < PACK; c++) shared.part[warp][left + c] = sum[c];
  __syncthreads();
#pragma unroll
  for (int c = 0; c < PACK; c++) {
    sum[c] = shared.part[0][left + c];
#pragma unroll
    for (int w = 1; w < WARPS; w++) sum[c] = add(sum[c], shared.part[w][left + c]);
  }
}

// Sum over this thread's rows of a[row] S[row]; those that a decay of zero forgets and that are not read are not looked at.
__device__ __forceinline__ void product(C (&sum)[PACK], const Shared& shared, int top, int left) {
#pragma unroll
  for (int c = 0; c < PACK; c++) sum[c] = Number<C>::make(0);
#pragma unroll 4
  for (int row = top; row < top + PER; row++) {
    C x[PACK];
    take<PACK>(x, &shared.state[row][left]);
    const C a = shared.a[row];
    const bool gone = DECAY && shared.decay[row] == 0 && is_zero(a);
#pragma unroll
    for (int c = 0; c < PACK; c++) sum[c] = mul_add(a, gone ? Number<C>::make(0) : x[c], sum[c]);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) steps(const __grid_constant__ Problem p) {
  extern __shared__ __align__(16) u8 memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const int warp = threadIdx.x / 32, left = threadIdx.x % 32 * PACK, top = warp * PER;
  const i64 tiles = (p.columns + WIDE - 1) / WIDE, head = blockIdx.x / tiles, column = blockIdx.x % tiles * WIDE + left;
  const int rows = static_cast<int>(p.rows), width = static_cast<int>(p.columns - column < PACK ? p.columns - column : PACK);
  const bool whole = PACKED && width == PACK;
  const C* const first = locate<const C>(p.first, p, head) + column;
#pragma unroll 8
  for (int row = top; row < top + PER; row++) {
    C* const to = &shared.state[row][left];
    if (whole && row < rows) {
      bring(to, first + row * p.columns);
    } else {
#pragma unroll
      for (int c = 0; c < PACK; c++) to[c] = row < rows && c < width ? first[row * p.columns + c] : Number<C>::make(0);
    }
  }
  C sum[PACK];
#pragma unroll 1
  for (i64 t = 0; t < p.length; t++) {
    const bool last = t == p.length - 1;
    C value[PACK], seen[PACK];
#pragma unroll
    for (int c = 0; c < PACK; c++) {
      value[c] = c < width ? read(p.v, p, head, p.wide[2], t * p.v.time + column + c) : Number<C>::make(0);
      sum[c] = Number<C>::make(0);
    }
    if (t) __syncthreads();
    load(shared, p, head, t);
    arrived();
    __syncthreads();
    if (!LINEAR) {
      product(seen, shared, top, left);
      total(seen, shared, warp, left);
#pragma unroll
      for (int c = 0; c < PACK; c++)
        if (FUSED) value[c] = add(value[c], seen[c]);
    }
    C* const to = p.last + head * p.rows * p.columns + column;
#pragma unroll 4
    for (int row = top; row < top + PER; row++) {
      const R e = DECAY ? shared.decay[row] : R(1);
      const C key = shared.k[row], query = shared.q[row];
      C x[PACK];
      take<PACK>(x, &shared.state[row][left]);
#pragma unroll
      for (int c = 0; c < PACK; c++) {
        if (DECAY) x[c] = e == 0 ? Number<C>::make(0) : mul(e, x[c]);
        if (!LINEAR && !FUSED) x[c] = mul_add(shared.b[row], seen[c], x[c]);
        x[c] = mul_add(key, value[c], x[c]);
        sum[c] = mul_add(query, x[c], sum[c]);
      }
      C* const at = last ? to + row * p.columns : &shared.state[row][left];
      if (whole || !last) {
        Columns all;
#pragma unroll
        for (int c = 0; c < PACK; c++) all.item[c] = x[c];
        if (row < rows) *reinterpret_cast<Columns*>(at) = all;
      } else {
#pragma unroll
        for (int c = 0; c < PACK; c++)
          if (row < rows && c < width) at[c] = x[c];
      }
    }
  }
  __syncthreads();
  total(sum, shared, warp, left);
  if (warp) return;
#pragma unroll
  for (int c = 0; c < PACK; c++)
    if (c < width) p.out[head * p.columns + column + c] = Narrow<S>::of(mul(Number<C>::make(p.scale), sum[c]));
}
