// s[t] = f(x[t], R u(s[t-1]) + b, s[t-1]) for cells f whose matrices R couple the channels of a head.
//
// A block takes ROWS rows that share their matrices through time. LANES neighbouring lanes belong to a channel; each
// holds its share of the matrix rows in registers for all of time, multiplies it with its share of ROWS vectors out of
// shared memory, and the sums meet such that each lane ends up with those of one row: with that row's gates it makes the
// step of its channel, and puts the new state into shared memory, of which there are two, so that a step has one barrier.
//
//   held numbers   matrix[o][i][e] of channel j and lane p:  gate o, column (i LANES + p) PACK + e
//   backwards      the same with Rᵀ: one output, columns (gate, channel)
//
// Heads whose matrices do not fit into one multiprocessor's registers are a cluster of PARTS blocks, each with some of
// the channels, which write their new states into each other's shared memory; or, where cards have no clusters, the
// matrices are read anew at each step (HELD_MATRIX 0), out of the cache.
// Bytes moved: x and h once; backwards x, y, the states, dh and dx. What takes the time is the chain of T steps.
// Limits: WIDTH a power of two, 16 to 256; LANES >= 4; below 2^31 blocks.
#ifndef STORAGE  // the launcher's macros, as the tests compile them
#define STORAGE float
#define CELL 1
#define WIDTH 64
#define LANES 4
#define ROWS 2
#define PARTS 1
#define HELD_MATRIX 1
#define BACKWARD 0
#endif
#include "rnn.cuh"

constexpr int CHANNELS = WIDTH / PARTS, THREADS = CHANNELS * LANES;
constexpr int AHEAD = !HELD_MATRIX || THREADS > 256 ? 1 : BACKWARD ? 2 : 4;
constexpr int PACK = 16 / sizeof(C), OUT = BACKWARD ? 1 : GATES, INNER = BACKWARD ? GATES * WIDTH : WIDTH;
constexpr int CHUNKS = INNER / (LANES * PACK), SUMS = OUT == 1 ? PACK : 1;  // independent sums hide their latency
constexpr int UNROLLED = HELD_MATRIX ? CHUNKS : 2;
constexpr int SHARE = LANES / ROWS;  // lanes with the same row's sums

struct alignas(16) Pack { C item[PACK]; };
struct Shared { Pack vector[2][ROWS][INNER / PACK]; };
struct Matrix { Pack pack[HELD_MATRIX ? OUT * CHUNKS : 1]; };

// Of this cluster's blocks.
__device__ __forceinline__ int part_of_head() { return static_cast<int>(blockIdx.x % PARTS); }

__device__ __forceinline__ void everyone() {
#if PARTS > 1
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
#else
  __syncthreads();
#endif
}

// Into the shared memory of all blocks of the cluster.
__device__ __forceinline__ void share(C* to, C x) {
#if PARTS > 1
  const u32 at = static_cast<u32>(__cvta_generic_to_shared(to));
#pragma unroll
  for (int n = 0; n < PARTS; n++) {
    u32 there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(n));
    if constexpr (sizeof(C) == 4)
      asm volatile("st.shared::cluster.b32 [%0], %1;" ::"r"(there), "r"(__float_as_uint(static_cast<float>(x))) : "memory");
    else
      asm volatile("st.shared::cluster.b64 [%0], %1;" ::"r"(there), "l"(__double_as_longlong(static_cast<double>(x))) : "memory");
  }
#else
  *to = x;
#endif
}

// This lane's share of R times the vectors, then the whole sums of its own row.
__device__ __forceinline__ void multiply(C (&y)[OUT], const Matrix& matrix, const Pack* packed, const Pack (&vector)[ROWS][INNER / PACK],
                                         int lane) {
  C sum[ROWS][OUT][SUMS];
#pragma unroll
  for (int r = 0; r < ROWS; r++)
#pragma unroll
    for (int o = 0; o < OUT; o++) clear(sum[r][o]);
#pragma unroll UNROLLED
  for (int i = 0; i < CHUNKS; i++) {
    Pack row[OUT];
#pragma unroll
    for (int o = 0; o < OUT; o++) row[o] = HELD_MATRIX ? matrix.pack[o * CHUNKS + i] : packed[(o * CHUNKS + i) * THREADS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      const Pack u = vector[r][i * LANES + lane];
#pragma unroll
      for (int e = 0; e < PACK; e++)
#pragma unroll
        for (int o = 0; o < OUT; o++) sum[r][o][e % SUMS] = mul_add(row[o].item[e], u.item[e], sum[r][o][e % SUMS]);
    }
  }
  C total[ROWS][OUT];
#pragma unroll
  for (int r = 0; r < ROWS; r++)
#pragma unroll
    for (int o = 0; o < OUT; o++) {
      total[r][o] = sum[r][o][0];
#pragma unroll
      for (int e = 1; e < SUMS; e++) total[r][o] += sum[r][o][e];
    }
#pragma unroll
  for (int by = LANES / 2; by > 0; by /= 2) {
    const int left = by * ROWS / LANES;  // rows after this exchange; 0 once there is one alone
    const bool upper = lane & by;
#pragma unroll
    for (int r = 0; r < (left ? left : 1); r++)
#pragma unroll
      for (int o = 0; o < OUT; o++) {
        const C other = left ? total[r + left][o] : total[r][o];
        const C given = left && !upper ? other : total[r][o], kept = left && upper ? other : total[r][o];
        total[r][o] = kept + shuffle_xor(given, by);
      }
  }
#pragma unroll
  for (int o = 0; o < OUT; o++) y[o] = total[0][o];
}

// A thread's place.
struct Spot {
  i64 row, channel;
  int lane, slot;    // among the channel's lanes; which of the block's rows
  bool mine, writes; // whether there is such a row and channel; and whether this lane is the first of those that have it
  const Pack* packed;
};

__device__ __forceinline__ Spot spot(const Problem& p, const Pack* packed) {
  const i64 block = blockIdx.x / PARTS, tiles = (p.rows + ROWS - 1) / ROWS, matrix = block / tiles;
  Spot x;
  x.lane = threadIdx.x % LANES, x.slot = x.lane / SHARE;
  const i64 row = block % tiles * ROWS + x.slot;
  x.channel = part_of_head() * CHANNELS + threadIdx.x / LANES;
  x.mine = row < p.rows && x.channel < p.width, x.writes = x.lane % SHARE == 0;
  x.row = matrix * p.rows + (row < p.rows ? row : 0);
  x.packed = packed + (matrix * PARTS + part_of_head()) * OUT * CHUNKS * THREADS + threadIdx.x;
  return x;
}

__device__ __forceinline__ void hold(Matrix& matrix, const Pack* packed) {
  if (HELD_MATRIX) {
#pragma unroll
    for (int i = 0; i < OUT * CHUNKS; i++) matrix.pack[i] = packed[i * THREADS];
  }
}

#if !BACKWARD
extern "C" __global__ void __launch_bounds__(THREADS, 1)
#if PARTS > 1
__cluster_dims__(PARTS, 1, 1)
#endif
forward(const __grid_constant__ Problem p, const Pack* packed) {
  __shared__ Shared shared;
  const Spot at = spot(p, packed);
  const i64 channel = at.mine ? at.channel : 0;
  const Row<S> from(p.x, p, at.row, channel), out(p.h, p, at.row, channel);
  const Row<u8> reset(p.reset, p, at.row, 0);
  const Row<C> kept(p.states, p, at.row, channel), fed(p.y, p, at.row, channel), last(p.last, p, at.row, channel);
  const bool rectified = at.channel >= p.linear, writes = at.mine && at.writes;
  Matrix matrix;
  hold(matrix, at.packed);
  C b[GATES], w[HELD], s[STATES];
  Row<C>(p.b, p, at.row, channel).get(b, 0, at.mine);
  clear(w);
  if constexpr (WEIGHTS > 0) Row<C>(p.w, p, at.row, channel).get(w, 0, at.mine);
  Row<C>(p.first, p, at.row, channel).get(s, 0, at.mine);
  Input next[AHEAD];
#pragma unroll
  for (int i = 0; i < AHEAD; i++) next[i].fetch(from, reset, i, p.length, at.mine);
  if (next[0].fresh) {
#pragma unroll
    for (int n = 0; n < STATES; n++) s[n] = start_of(n);
  }
  C* const mine = reinterpret_cast<C*>(shared.vector[0][at.slot]) + at.channel;
  everyone();  // all blocks of the cluster are there
  if (at.writes) share(mine, feed(s[0], rectified));
  everyone();
#pragma unroll 1
  for (i64 t = 0; t < p.length; t += AHEAD) {
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      if (t + i >= p.length) break;
      const int buffer = static_cast<int>(t + i) & 1;
      C x[GATES], y[GATES], h[1];
      widened(x, next[i].x);
      next[i].fetch(from, reset, t + i + AHEAD, p.length, at.mine);
      multiply(y, matrix, at.packed, shared.vector[buffer], at.lane);
#pragma unroll
      for (int g = 0; g < GATES; g++) y[g] = y[g] + b[g];
      step(activate(x, y, s, w), x, y, s, w);
      h[0] = s[0];
      out.put(h, t + i, writes), kept.put(s, t + i, writes), fed.put(y, t + i, writes);
      if (t + i + 1 == p.length) last.put(s, 0, writes);
      if (next[(i + 1) % AHEAD].fresh) {
#pragma unroll
        for (int n = 0; n < STATES; n++) s[n] = start_of(n);
      }
      if (at.writes) share(mine + (1 - buffer) * ROWS * INNER, at.mine ? feed(s[0], rectified) : C(0));
      everyone();
    }
  }
}
#else
extern "C" __global__ void __launch_bounds__(THREADS, 1)
#if PARTS > 1
__cluster_dims__(PARTS, 1, 1)
#endif
backward(const __grid_constant__ Problem p, const Pack* packed) {
  __shared__ Shared shared;
  const Spot at = spot(p, packed);
  const i64 channel = at.mine ? at.channel : 0;
  const Row<S> from(p.x, p, at.row, channel), dout(p.dh, p, at.row, channel);
  const Row<u8> reset(p.reset, p, at.row, 0);
  const Row<C> fed(p.y, p, at.row, channel), states(p.states, p, at.row, channel), first(p.first, p, at.row, channel);
  const Row<C> to(p.dx, p, at.row, channel), to_y(p.dy, p, at.row, channel), flow(p.ds, p, at.row, channel);
  const bool rectified = at.channel >= p.linear, writes = at.mine && at.writes;
  Matrix matrix;
  hold(matrix, at.packed);
  C w[HELD], dw[HELD], ds[STATES];
  clear(w), clear(dw);
  if constexpr (WEIGHTS > 0) Row<C>(p.w, p, at.row, channel).get(w, 0, at.mine);
  flow.get(ds, 0, at.mine);
  Record next[AHEAD];
#pragma unroll
  for (int i = 0; i < AHEAD; i++) next[i].fetch(from, dout, fed, states, first, reset, p.length - 1 - i, at.mine);
  C* const mine = reinterpret_cast<C*>(shared.vector[0][at.slot]) + at.channel;
  everyone();
#pragma unroll 1
  for (i64 done = 0; done < p.length; done += AHEAD) {
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      const i64 t = p.length - 1 - done - i;
      if (t < 0) break;
      const int buffer = static_cast<int>(done + i) & 1;
      C dx[GATES], dy[GATES], du[1];
      const C slope = back(next[i], ds, w, dx, dy, dw, rectified);
      const bool fresh = next[i].fresh;
      next[i].fetch(from, dout, fed, states, first, reset, t - AHEAD, at.mine);
      to.put(dx, t, writes), to_y.put(dy, t, writes);
      if (at.writes) {
#pragma unroll
        for (int g = 0; g < GATES; g++) share(mine + buffer * ROWS * INNER + g * WIDTH, at.mine ? dy[g] : C(0));
      }
      everyone();
      multiply(du, matrix, at.packed, shared.vector[buffer], at.lane);
      ds[0] = slope == C(0) ? ds[0] : ds[0] + du[0];
      forget(ds, fresh);
    }
  }
  everyone();  // nobody leaves while others write to it
  flow.put(ds, 0, writes);
  if constexpr (WEIGHTS > 0) Row<C>(p.dw, p, at.row, channel).put(dw, 0, writes);
}
#endif
