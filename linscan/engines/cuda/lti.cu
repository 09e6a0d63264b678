// x[t+1] = A x[t] + B u[t], y[t] = C x[t] + D u[t], the states written too.
//
// Up to 16 states: a thread owns a chunk of a row (chunks.py) and keeps the state in registers, the matrices too where they
// are small; what a warp reads and writes is turned in shared memory, unless inputs or outputs are many. More: a block owns a row and goes step by step, a warp adding up one new state or output at a time.
//
// Bytes moved: the input twice (once where a row is one chunk), outputs and states once.
// Limits: rows and lengths below 2^63 elements; above 16 states, two states and one input in 48 KiB of shared memory.
#ifndef STORAGE  // one variant, for a compiler that is only asked whether this compiles
#define STORAGE float
#define STATES 4
#define INPUTS 1
#define OUTPUTS 1
#endif
#include "chunks.cuh"

typedef STORAGE C;
typedef Edge<C>::type W;
typedef Longest<C>::type E;

struct Matrix {
  const C* at;
  i64 row;  // from one row's to the next; 0 where all share one
};
struct System { Matrix a, b, c, d, u, first; };

#if STATES <= 16
constexpr int N = STATES, THREADS = 128;
constexpr bool HELD = N * N + N * INPUTS + OUTPUTS * (N + INPUTS) <= 64;
constexpr int LONGEST = 128 / (N * sizeof(C)), STEPS = LONGEST > 8 ? 8 : LONGEST > 1 ? LONGEST : 1;
constexpr int TURNED = (STEPS * (INPUTS + OUTPUTS + N) + 3) * THREADS * sizeof(C) + 24 * THREADS;  // bytes
constexpr bool STAGED = TURNED + 2 * N * N * sizeof(E) <= 48000;

// A matrix in registers, or where it lies.
template <int SIZE> struct Held {
  const C* from;
  C item[HELD ? SIZE : 1];

  __device__ __forceinline__ Held(const Matrix& matrix, i64 row) : from(matrix.at + row * matrix.row) {
    if (HELD) {
#pragma unroll
      for (int i = 0; i < SIZE; i++) item[i] = from[i];
    }
  }
  __device__ __forceinline__ C get(int i) const { return HELD ? item[HELD ? i : 0] : from[i]; }
};

// STEPS steps of a warp's 32 chunks, so that memory is read and written in whole lines.
struct Turn {
  C u[32][STEPS * INPUTS + 1], y[32][STEPS * OUTPUTS + 1], x[32][STEPS * N + 1];
  i64 in[32], out[32], count[32];
};

// Lines of SIZE numbers to where they belong, as far as they are there; `from` is padded by one.
template <int SIZE, int PER> __device__ __forceinline__ void write(C* to, const C (&from)[32][SIZE + 1], const Turn& turn, i64 t, int lane) {
#pragma unroll 4
  for (int i = lane; i < 32 * SIZE; i += 32) {
    const int line = i / SIZE, at = i % SIZE;
    if (t + at / PER < turn.count[line]) to[(turn.out[line] + t) * PER + at] = from[line][at];
  }
}

template <bool WRITE>
__device__ __forceinline__ void simulate(const System& system, C* y, C* x, C* states, const i64* stop, i64 rows, i64 length,
                                         i64 size, i64 unit) {
  __shared__ Turn turns[STAGED ? THREADS / 32 : 1];
  Turn& turn = turns[STAGED ? threadIdx.x / 32 : 0];
  const int lane = threadIdx.x & 31;
  const i64 chunks = (length + size - 1) / size, chunk = unit % chunks;
  const bool mine = unit / chunks < rows && (WRITE || chunk < chunks - 1);  // nothing follows the last chunk
  const i64 row = mine ? unit / chunks : 0, begin = chunk * size, rest = length - begin;
  i64 count = !mine ? 0 : rest < size ? rest : size;
  if (WRITE && chunks > 1 && mine && chunk >= stop[row]) count = chunk == stop[row] ? rest : 0;
  const Held<N * N> a(system.a, row);
  const Held<N * INPUTS> b(system.b, row);
  const Held<OUTPUTS * N> c(system.c, row);
  const Held<OUTPUTS * INPUTS> d(system.d, row);
  const C* u = system.u.at;
  const i64 in = row * system.u.row + begin * INPUTS, out = row * length + begin;
  C z[N];
  C* edge = states + (row * chunks + chunk) * N;
#pragma unroll
  for (int i = 0; i < N; i++)
    z[i] = !WRITE || !mine ? Number<C>::make(0) : chunks > 1 ? edge[i] : system.first.at[row * system.first.row + i];

  auto step = [&](const C* from, C* y_to, C* x_to) {
    C given[INPUTS], next[N];
#pragma unroll
    for (int k = 0; k < INPUTS; k++) given[k] = from[k];
#pragma unroll
    for (int i = 0; i < N; i++) {
      next[i] = Number<C>::make(0);
#pragma unroll
      for (int k = 0; k < INPUTS; k++) next[i] = mul_add(b.get(i * INPUTS + k), given[k], next[i]);
#pragma unroll
      for (int j = 0; j < N; j++) next[i] = mul_add(a.get(i * N + j), z[j], next[i]);
    }
    if (WRITE) {
#pragma unroll
      for (int i = 0; i < OUTPUTS; i++) {
        C total = Number<C>::make(0);
#pragma unroll
        for (int j = 0; j < N; j++) total = mul_add(c.get(i * N + j), z[j], total);
#pragma unroll
        for (int k = 0; k < INPUTS; k++) total = mul_add(d.get(i * INPUTS + k), given[k], total);
        y_to[i] = total;
      }
#pragma unroll
      for (int i = 0; i < N; i++) x_to[i] = z[i];
    }
#pragma unroll
    for (int i = 0; i < N; i++) z[i] = next[i];
  };

  if constexpr (STAGED) {
    turn.in[lane] = in, turn.out[lane] = out, turn.count[lane] = count;
    __syncwarp();
    constexpr int LINE = STEPS * INPUTS;
    C ahead[LINE];
    auto load = [&](i64 t) {
#pragma unroll
      for (int n = 0; n < LINE; n++) {
        const int line = (n * 32 + lane) / LINE, at = (n * 32 + lane) % LINE;
        if (t + at / INPUTS < turn.count[line]) ahead[n] = u[turn.in[line] + t * INPUTS + at];
      }
    };
    load(0);
#pragma unroll 1
    for (i64 t = 0; __any_sync(~0u, t < count); t += STEPS) {
#pragma unroll
      for (int n = 0; n < LINE; n++) turn.u[(n * 32 + lane) / LINE][(n * 32 + lane) % LINE] = ahead[n];
      __syncwarp();
      load(t + STEPS);
#pragma unroll
      for (int s = 0; s < STEPS; s++)
        if (t + s < count) step(turn.u[lane] + s * INPUTS, turn.y[lane] + s * OUTPUTS, turn.x[lane] + s * N);
      __syncwarp();
      if (WRITE) {
        write<STEPS * OUTPUTS, OUTPUTS>(y, turn.y, turn, t, lane);
        write<STEPS * N, N>(x, turn.x, turn, t, lane);
        __syncwarp();
      }
    }
  } else {
#pragma unroll 2
    for (i64 t = 0; t < count; t++) step(u + in + t * INPUTS, y + (out + t) * OUTPUTS, x + (out + t) * N);
  }
  if (!WRITE && mine) {
#pragma unroll
    for (int i = 0; i < N; i++) edge[i] = z[i];
  }
}

// Blocks below `systems` make one system's matrices, the others find what chunks leave from rest.
extern "C" __global__ void __launch_bounds__(THREADS)
reduce(const __grid_constant__ System system, C* states, W* matrices, i64 systems, i64 rows, i64 length, i64 size,
       i64 size_doublings, i64 span_doublings) {
  __shared__ E matrix[2][N * N];
  if (blockIdx.x >= systems) {
    simulate<false>(system, nullptr, nullptr, states, nullptr, rows, length, size,
                    (blockIdx.x - systems) * THREADS + threadIdx.x);
    return;
  }
  for (int i = threadIdx.x; i < N * N; i += blockDim.x) matrix[0][i] = Cast<E>::of(system.a.at[blockIdx.x * system.a.row + i]);
  powers<N>(matrix, static_cast<int>(size_doublings), static_cast<int>(span_doublings), matrices + blockIdx.x * 2ll * N * N);
}

extern "C" __global__ void __launch_bounds__(CARRY_THREADS, 1)
carry(const __grid_constant__ System system, i64 rows, const W* matrices, C* states, i64 chunks, i64 span, i64* stop) {
  for (i64 row = blockIdx.x; row < rows; row += gridDim.x)
    carry_row<N, C, W, W>(matrices + (system.a.row ? row : 0) * 2 * N * N, states + row * chunks * N,
                          system.first.at + row * system.first.row, chunks, static_cast<int>(span), stop + row);
}

extern "C" __global__ void __launch_bounds__(THREADS)
run(const __grid_constant__ System system, C* y, C* x, C* states, const i64* stop, i64 rows, i64 length, i64 size) {
  simulate<true>(system, y, x, states, stop, rows, length, size, static_cast<i64>(blockIdx.x) * THREADS + threadIdx.x);
}
#else
// line (n) times z, added up over the warp's lanes in a fixed order.
__device__ __forceinline__ C product(const C* line, const C* z, int n, int lane) {
  C total = Number<C>::make(0);
  for (int j = lane; j < n; j += 32) total = mul_add(line[j], z[j], total);
#pragma unroll
  for (int by = 16; by; by /= 2) total = add(total, shuffle_down(total, by));
  return total;
}

extern "C" __global__ void __launch_bounds__(1024)
run_wide(const __grid_constant__ System system, C* y, C* x, i64 rows, i64 length, i64 states, i64 inputs, i64 outputs) {
  extern __shared__ __align__(16) u8 memory[];
  const int n = static_cast<int>(states), m = static_cast<int>(inputs), p = static_cast<int>(outputs);
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  C *now = reinterpret_cast<C*>(memory), *next = now + n, *given = next + n;
  for (i64 row = blockIdx.x; row < rows; row += gridDim.x) {
    const C *a = system.a.at + row * system.a.row, *b = system.b.at + row * system.b.row;
    const C *c = system.c.at + row * system.c.row, *d = system.d.at + row * system.d.row;
    for (int i = threadIdx.x; i < n; i += blockDim.x) now[i] = system.first.at[row * system.first.row + i];
    for (i64 t = 0; t < length; t++) {
      for (int k = threadIdx.x; k < m; k += blockDim.x) given[k] = system.u.at[row * system.u.row + t * m + k];
      __syncthreads();
      for (int i = threadIdx.x; i < n; i += blockDim.x) x[(row * length + t) * n + i] = now[i];
      for (int i = warp; i < n + p; i += warps) {
        const int o = i - n;
        const C of_state = product(i < n ? a + static_cast<i64>(i) * n : c + static_cast<i64>(o) * n, now, n, lane);
        const C of_input = product(i < n ? b + static_cast<i64>(i) * m : d + static_cast<i64>(o) * m, given, m, lane);
        const C total = add(of_state, of_input);
        if (lane == 0 && i < n) next[i] = total;
        if (lane == 0 && i >= n) y[(row * length + t) * p + o] = total;
      }
      __syncthreads();
      C* const swapped = now;
      now = next, next = swapped;
    }
    __syncthreads();
  }
}
#endif
