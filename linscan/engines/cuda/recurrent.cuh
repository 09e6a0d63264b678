// Where the vectors of a recurrence lie, and how they come into shared memory. See recurrent.cu.
#pragma once
#include "heads.cuh"

typedef STORAGE C;
typedef Real<C>::type R;
enum { READ = 1, SUM };               // FEED: S += w y^T, S += w (x + y)^T
enum { BY_STEP = 1, BY_ROW, BY_COLUMN };  // DECAY
enum { WRITE = 1, MULTIPLY };         // KEEP
constexpr int EVERY = 64, TOGETHER = UNROLL;
constexpr int ROWS = LANES * PER, THREADS = 32 * WARPS, TILE = THREADS / LANES * COLUMNS;
constexpr int SHARE = COLUMNS > LANES ? COLUMNS / LANES : 1;
constexpr int NROWS = PRE + READS + WRITES + AFTER, NCOLUMNS = PRE + WRITES - (FEED == READ);
constexpr int ERASED = PRE ? READS + PRE : 0;  // the row vector that is a
constexpr int DECAYS = DECAY == BY_ROW ? ROWS : DECAY == BY_COLUMN ? TILE : 1;

struct Problem {
  i64 length, heads, rows, columns, chunks, ndim, size[6];
  i64 first_row, first_column;
  double scale;
  float scale32, unused;  // the same: converted in the loop it would be at every step
  Operand row[4], column[2], decay, first, out[3];
  C *last, *kept;
  R* dots;
};

struct alignas(16) Tile {
  C row[NROWS][DEPTH][ROWS], column[NCOLUMNS][DEPTH][TILE];
  R decay[DEPTH][DECAYS < 4 ? 4 : DECAYS];
};

// DEPTH steps of one vector on their way into shared memory, N numbers to a pack.
template <class T, int WIDTH> struct Vector {
  static constexpr int N = WIDTH % 4 == 0 ? 4 : WIDTH % 2 == 0 ? 2 : 1, PACKS = WIDTH / N;
  static constexpr int COUNT = (DEPTH * PACKS + THREADS - 1) / THREADS;
  const T* from;
  Pack<T, N> held[COUNT];

  // The next `steps` steps, of `width` numbers each.
  __device__ __forceinline__ void fetch(i64 time, i64 width, int steps, T fill) {
#pragma unroll
    for (int n = 0; n < COUNT; n++) {
      const int index = threadIdx.x + n * THREADS, t = index / PACKS, column = index % PACKS * N;
#pragma unroll
      for (int i = 0; i < N; i++) held[n].item[i] = fill;
      if (t >= steps || column >= width) continue;
      const T* const at = from + t * time + column;
      if (PACKED && N == 4) {
        held[n] = *reinterpret_cast<const Pack<T, N>*>(at);
      } else {
#pragma unroll
        for (int i = 0; i < N; i++)
          if (column + i < width) held[n].item[i] = at[i];
      }
    }
    from += steps * time;
  }
  template <int STRIDE, class F> __device__ __forceinline__ void store(T (*to)[STRIDE], F f) {
#pragma unroll
    for (int n = 0; n < COUNT; n++) {
      const int index = threadIdx.x + n * THREADS, t = index / PACKS, column = index % PACKS * N;
      if (t >= DEPTH) continue;
      Pack<T, N> x = held[n];
#pragma unroll
      for (int i = 0; i < N; i++) x.item[i] = f(x.item[i]);
      *reinterpret_cast<Pack<T, N>*>(&to[t][column]) = x;
    }
  }
};

struct Stage {
  Vector<C, ROWS> row[NROWS];
  Vector<C, TILE> column[NCOLUMNS];
  Vector<R, DECAYS> decay;
  i64 width;

  __device__ __forceinline__ Stage(const Problem& p, i64 head, i64 tile) {
    width = p.columns - tile < TILE ? p.columns - tile : TILE;
#pragma unroll
    for (int n = 0; n < NROWS; n++) row[n].from = locate<const C>(p.row[n], p, head);
#pragma unroll
    for (int n = 0; n < NCOLUMNS; n++) column[n].from = locate<const C>(p.column[n], p, head) + tile;
    if (DECAY) decay.from = locate<const R>(p.decay, p, head) + (DECAY == BY_COLUMN ? tile : 0);
  }
  __device__ __forceinline__ void fetch(const Problem& p, int steps) {
    const C zero = Number<C>::make(0);
#pragma unroll
    for (int n = 0; n < NROWS; n++) row[n].fetch(p.row[n].time, p.rows, steps, zero);
#pragma unroll
    for (int n = 0; n < NCOLUMNS; n++) column[n].fetch(p.column[n].time, width, steps, zero);
    if (DECAY) decay.fetch(p.decay.time, DECAY == BY_ROW ? p.rows : DECAY == BY_COLUMN ? width : 1, steps, 0);
  }
  // Whether one of this thread's decays is zero.
  __device__ __forceinline__ int store(Tile& to) {
    int zero = 0;
#pragma unroll
    for (int n = 0; n < NROWS; n++) row[n].store(to.row[n], [](C x) { return x; });
#pragma unroll
    for (int n = 0; n < NCOLUMNS; n++) column[n].store(to.column[n], [](C x) { return x; });
    if (DECAY)
      decay.store(to.decay, [&](R x) {
        const R e = exponential(x);
        zero |= e == 0;
        return e;
      });
    return zero;
  }
};
