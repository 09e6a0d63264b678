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
// Decays of a tile are multiplied if none is smaller, or larger than its inverse: 2^-30 for all of them is safe in float32.
constexpr double NEAREST = DEPTH >= 8 ? 0.0743 : DEPTH == 4 ? 0.0055 : DEPTH == 2 ? 3.05e-5 : 9.3e-10;
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

__device__ __forceinline__ float reciprocal(float x) { return __fdividef(1.0f, x); }
__device__ __forceinline__ double reciprocal(double x) { return 1 / x; }

struct alignas(16) Tile {
  C row[NROWS][DEPTH][ROWS], column[NCOLUMNS][DEPTH][TILE];
  R last[DECAY == BY_ROW ? ROWS : 4];                                       // the product of all decays
  R factor[DECAY == BY_COLUMN ? DEPTH : 1][DECAY == BY_COLUMN ? TILE : 4];  // up to each step
};
typedef R Decays[DEPTH][DECAYS < 4 ? 4 : DECAYS];

// Products of decays before step `reached`, and with it.
template <int N> struct Product {
  R before[N], with[N];
  int reached;

  __device__ __forceinline__ void start() {
    reached = -1;
#pragma unroll
    for (int i = 0; i < N; i++) before[i] = with[i] = 1;
  }
  __device__ __forceinline__ R factor(int i, bool inverse, const R (&of)[N]) const {
    const R x = of[N > 1 ? i : 0];
    return inverse ? reciprocal(x) : x;
  }
  __device__ __forceinline__ void put(R* to) const {
#pragma unroll
    for (int i = 0; i < N; i++) to[i] = with[i];
  }
  __device__ __forceinline__ void reach(int t, const Decays& decays, int column) {
#pragma unroll 1
    while (reached < t) {
      R e[N];
      take<N>(e, &decays[++reached][column]);
#pragma unroll
      for (int i = 0; i < N; i++) before[i] = with[i], with[i] *= e[i];
    }
  }
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
  // Calls f(pack, step, first column) for each of this thread's packs of a tile.
  template <class F> static __device__ __forceinline__ void each(F f) {
#pragma unroll
    for (int n = 0; n < COUNT; n++) {
      const int index = threadIdx.x + n * THREADS, t = index / PACKS;
      if (t < DEPTH) f(n, t, index % PACKS * N);
    }
  }
  template <int STRIDE, class F> __device__ __forceinline__ void put(T (*to)[STRIDE], int n, int t, int column, F f) {
    Pack<T, N> x = held[n];
#pragma unroll
    for (int i = 0; i < N; i++) x.item[i] = f(x.item[i], i);
    *reinterpret_cast<Pack<T, N>*>(&to[t][column]) = x;
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
  }
  __device__ __forceinline__ void fetch_decays(const Problem& p, int steps) {
    if (DECAY) decay.fetch(p.decay.time, DECAY == BY_ROW ? p.rows : DECAY == BY_COLUMN ? width : 1, steps, 0);
  }
  // Whether one of this thread's decays is too far from 1 for a tile's to be multiplied.
  __device__ __forceinline__ int store_decays(Decays& to) {
    int far = 0;
    if (DECAY)
      decay.each([&](int n, int t, int column) {
        decay.put(to, n, t, column, [&](R x, int) {
          const R e = exponential(x);
          far |= !(e >= R(NEAREST) && e <= R(1 / NEAREST));
          return e;
        });
      });
    return far;
  }
  // With `scaled`, for a state that is decayed at the end of the tile alone: what it is read with is multiplied with the
  // decays up to there, what is written is divided by them.
  __device__ __forceinline__ void store(Tile& to, const Decays& decays, bool scaled) {
    typedef Vector<C, ROWS> Row;
    typedef Vector<C, TILE> Column;
    constexpr bool BY_ROWS = DECAY == BY_STEP || DECAY == BY_ROW, BY_COLUMNS = DECAY == BY_COLUMN;
    Product<DECAY == BY_ROW ? 4 : 1> rows;
    rows.start();
    Row::each([&](int n, int t, int at) {
      if (BY_ROWS) {
        if (THREADS % Row::PACKS) rows.start();
        if (scaled) rows.reach(t, decays, DECAY == BY_ROW ? at : 0);
        if (t == DEPTH - 1 && (DECAY == BY_ROW || at == 0)) rows.put(&to.last[at]);
      }
#pragma unroll
      for (int v = 0; v < NROWS; v++)
        row[v].put(to.row[v], n, t, at, [&](C x, int i) {
          return !BY_ROWS ? x : mul(v < PRE + READS ? rows.factor(i, v < PRE, rows.before) : rows.factor(i, v < NROWS - AFTER, rows.with), x);
        });
    });
    Product<BY_COLUMNS ? Column::N : 1> columns;
    columns.start();
    Column::each([&](int n, int t, int at) {
      if (BY_COLUMNS) {
        if (THREADS % Column::PACKS) columns.start();
        if (scaled) columns.reach(t, decays, at);
        columns.put(&to.factor[BY_COLUMNS ? t : 0][BY_COLUMNS ? at : 0]);
      }
#pragma unroll
      for (int v = 0; v < NCOLUMNS; v++)
        column[v].put(to.column[v], n, t, at, [&](C x, int i) {
          return !BY_COLUMNS ? x : mul(columns.factor(i, true, v < PRE ? columns.before : columns.with), x);
        });
    });
  }
};
