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
constexpr int CHANNELS = DECAY == BY_ROW ? ROWS : DECAY == BY_COLUMN ? TILE : 1;  // that decay in their own way
// A tile's decays are multiplied if none of them is below this, nor much above 1: the state, not decayed until the tile
// ends, is then too large by 2^60 at most.
constexpr double NEAREST = DEPTH >= 8 ? 0.0743 : DEPTH == 4 ? 3.05e-5 : 9.3e-10, LARGEST = 1.5;

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
};
struct alignas(16) Decays {
  R each[DEPTH][CHANNELS], all[DEPTH][CHANNELS];  // one step's, and the product of those up to it

  __device__ __forceinline__ R until(int t, int channel) const { return t < 0 ? R(1) : all[t][CHANNELS > 1 ? channel : 0]; }
};
struct Shared {
  Tile tiles[2];
  Decays decays[3];
};

__device__ __forceinline__ float reciprocal(float x) { return __fdividef(1.0f, x); }
__device__ __forceinline__ double reciprocal(double x) { return 1 / x; }

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

// The decays of a tile on their way: a thread has all steps of a channel, or, if there is but one, a step.
struct Gates {
  static constexpr int COUNT = (CHANNELS + THREADS - 1) / THREADS, HELD = CHANNELS > 1 ? DEPTH : 1;
  const R* from;
  R held[COUNT][HELD];

  __device__ __forceinline__ void fetch(i64 time, i64 channels, int steps) {
#pragma unroll
    for (int n = 0; n < COUNT; n++) {
      const int channel = threadIdx.x + n * THREADS;
#pragma unroll
      for (int t = 0; t < HELD; t++) {
        const int step = CHANNELS > 1 ? t : threadIdx.x;
        held[n][t] = step < steps && (CHANNELS == 1 || channel < channels) ? from[step * time + (CHANNELS > 1 ? channel : 0)] : R(0);
      }
    }
    from += steps * time;
  }
  // Whether one of this thread's decays is too far from 1 for a tile's to be multiplied.
  __device__ __forceinline__ int store(Decays& to) {
    int far = 0;
#pragma unroll
    for (int n = 0; n < COUNT; n++) {
      const int channel = threadIdx.x + n * THREADS;
      R product = 1;
#pragma unroll
      for (int t = 0; t < HELD; t++) {
        const R e = exponential(held[n][t]);
        far |= !(e >= R(NEAREST) && e <= R(LARGEST));
        product *= e;
        if (CHANNELS == 1) {
#pragma unroll
          for (int by = 1; by < DEPTH; by *= 2) {
            const R left = shuffle_up(product, by);
            if (threadIdx.x % 32 >= by) product *= left;
          }
          if (threadIdx.x < DEPTH) to.each[threadIdx.x][0] = e, to.all[threadIdx.x][0] = product;
        } else if (channel < CHANNELS) {
          to.each[t][channel] = e, to.all[t][channel] = product;
        }
      }
    }
    return far;
  }
};

struct Stage {
  Vector<C, ROWS> row[NROWS];
  Vector<C, TILE> column[NCOLUMNS];
  Gates gates;
  i64 width;

  __device__ __forceinline__ Stage(const Problem& p, i64 head, i64 tile) {
    width = p.columns - tile < TILE ? p.columns - tile : TILE;
#pragma unroll
    for (int n = 0; n < NROWS; n++) row[n].from = locate<const C>(p.row[n], p, head);
#pragma unroll
    for (int n = 0; n < NCOLUMNS; n++) column[n].from = locate<const C>(p.column[n], p, head) + tile;
    if (DECAY) gates.from = locate<const R>(p.decay, p, head) + (DECAY == BY_COLUMN ? tile : 0);
  }
  __device__ __forceinline__ void fetch(const Problem& p, int steps) {
    const C zero = Number<C>::make(0);
#pragma unroll
    for (int n = 0; n < NROWS; n++) row[n].fetch(p.row[n].time, p.rows, steps, zero);
#pragma unroll
    for (int n = 0; n < NCOLUMNS; n++) column[n].fetch(p.column[n].time, width, steps, zero);
  }
  __device__ __forceinline__ void fetch_decays(const Problem& p, int steps) {
    if (DECAY) gates.fetch(p.decay.time, DECAY == BY_ROW ? p.rows : width, steps);
  }
  __device__ __forceinline__ int store_decays(Decays& to) { return DECAY ? gates.store(to) : 0; }

  // With `scaled`, for a state that is decayed at the end of the tile alone: what is written is divided by the decays up to
  // there, what it is read with is multiplied with them; columns that are added to what was read are not yet what is written.
  __device__ __forceinline__ void store(Tile& to, const Decays& decays, bool scaled) {
    Vector<C, ROWS>::each([&](int n, int t, int at) {
      R before[4], with[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const bool on = DECAY == BY_ROW && scaled;
        before[i] = on ? decays.until(t - 1, at + i) : R(1), with[i] = on ? decays.until(t, at + i) : R(1);
      }
#pragma unroll
      for (int v = 0; v < NROWS; v++)
        row[v].put(to.row[v], n, t, at, [&](C x, int i) {
          const R factor = v < PRE + READS ? before[i] : with[i];
          return DECAY != BY_ROW ? x : mul(v < PRE || (v >= PRE + READS && v < NROWS - AFTER) ? reciprocal(factor) : factor, x);
        });
    });
    Vector<C, TILE>::each([&](int n, int t, int at) {
#pragma unroll
      for (int v = 0; v < NCOLUMNS; v++)
        column[v].put(to.column[v], n, t, at, [&](C x, int i) {
          const bool on = (DECAY == BY_STEP || DECAY == BY_COLUMN) && !(FEED == SUM && v == PRE);
          return on && scaled ? mul(reciprocal(decays.until(v < PRE ? t - 1 : t, at + i)), x) : x;
        });
    });
  }
};
