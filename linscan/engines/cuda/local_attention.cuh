// What the kernels of sliding-window attention share: which keys a block of queries sees, and the biases of the pairs.
//
// Queries and keys are numbered by the keys' steps: query t stands at `past` + t. A block has QUERIES of them, and visits
// the tiles of keys from its first query's place upwards, then from there downwards. Sums of gates are levels, in double
// and counted from that place: the bias of a pair is the difference of its levels.
#pragma once
#include "elementary.cuh"
#include "layout.cuh"

typedef STORAGE S;
typedef Compute<S>::type C;

enum { Q, K, V, G, OWN, SEEN, TOTAL };  // operands of the layout

struct Sizes {
  i64 past, window, keys, values, causal;  // `keys` and `values` are widths
  double scale;
};

struct Marks {
  double level[64], row[QUERIES < 32 ? 32 : QUERIES];
  int own[QUERIES], seen[64];
};

__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }
__device__ __forceinline__ C larger(C x, C y) { return x > y || y != y ? x : y; }

// A block's place: the first and last of its queries, and the keys any of them may see.
struct Span { i64 row, first, last, low, high; };

__device__ __forceinline__ Span span(const Layout& layout, const Sizes& sizes) {
  const i64 tiles = (layout.length + QUERIES - 1) / QUERIES, all = sizes.past + layout.length;
  Span x;
  x.row = blockIdx.x / tiles, x.first = sizes.past + blockIdx.x % tiles * QUERIES;
  x.last = (x.first + QUERIES < all ? x.first + QUERIES : all) - 1;
  x.low = x.first - sizes.window + 1, x.high = sizes.causal ? x.last : x.last + sizes.window - 1;
  x.low = x.low < 0 ? 0 : x.low, x.high = x.high < all ? x.high : all - 1;
  return x;
}

// Whether the query at i sees the key at j, but for what `own` and `seen` say.
__device__ __forceinline__ bool sees(const Sizes& sizes, i64 i, i64 j) {
  const i64 lag = i - j;
  return lag < sizes.window && (lag >= 0 || (!sizes.causal && -lag < sizes.window));
}
// Whether all queries of the block see all of `count` keys from `j` on.
__device__ __forceinline__ bool all_see(const Sizes& sizes, const Span& x, i64 j, int count) {
  return j >= x.low && j + count - 1 <= x.high && sees(sizes, x.last, j) && sees(sizes, x.first, j + count - 1);
}

// Levels of COUNT keys from `first` on, made by one warp: `edge` is that of the key before, or, downwards, of the one after.
template <int COUNT>
__device__ __forceinline__ void levels(Marks& marks, double& edge, const S* g, i64 time, i64 first, i64 origin, i64 end, bool up) {
  constexpr int EACH = COUNT / 32;
  const int lane = threadIdx.x & 31;
  double sum[EACH];
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int n = lane * EACH + i;  // from the edge on
    const i64 at = up ? first + n : first + COUNT - n;
    const double x = at > 0 && at < end && !(up && at == origin) ? static_cast<double>(widen(g[at * time])) : 0.0;
    sum[i] = i ? sum[i - 1] + x : x;
  }
  double before = sum[EACH - 1];
#pragma unroll
  for (int by = 1; by < 32; by *= 2) {
    const double left = shuffle_up(before, by);
    if (lane >= by) before += left;
  }
  const double whole = shuffle(before, 31), left = shuffle_up(before, 1);
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int n = lane * EACH + i;
    const double x = lane ? left + sum[i] : sum[i];
    if (up) marks.level[n] = edge + x;
    else marks.level[COUNT - 1 - n] = edge - x;
  }
  edge = up ? edge + whole : edge - whole;
}

struct Pointers {
  const S *q, *k, *v, *g;  // at step 0 of the row; q at that of the keys
  const int *own, *seen;
};

__device__ __forceinline__ Pointers pointers(const Layout& layout, const Sizes& sizes, const Place& place, const S* q, const S* k,
                                             const S* v, const S* g, const int* own, const int* seen) {
  Pointers x;
  x.q = q + place.at[Q] - sizes.past * layout.operand[Q].time;
  x.k = k + place.at[K], x.v = v + place.at[V], x.g = g + (GATED ? place.at[G] : 0);
  x.own = own + (MARKED ? place.at[OWN] - sizes.past * layout.operand[OWN].time : 0);
  x.seen = seen + (MARKED ? place.at[SEEN] : 0);
  return x;
}

// The levels and numbers of a tile of COUNT steps, and of the block's rows; nobody may be reading any.
template <int COUNT>
__device__ __forceinline__ void mark(Marks& marks, double& edge, const Layout& layout, const Sizes& sizes, const Pointers& from,
                                     const Span& x, i64 first, bool up, const int* numbers, i64 step) {
  if (GATED && threadIdx.x < 32)
    levels<COUNT>(marks, edge, from.g, layout.operand[G].time, first, x.first, sizes.past + layout.length, up);
  if (MARKED)
    for (int i = threadIdx.x; i < COUNT; i += THREADS) {
      const i64 at = first + i;
      marks.seen[i] = at >= x.low && at <= x.high ? numbers[at * step] : -1;
    }
}
__device__ __forceinline__ void mark_rows(Marks& marks, const Layout& layout, const Sizes& sizes, const Pointers& from,
                                          const Span& x, const int* numbers, i64 step) {
  if (GATED && threadIdx.x < 32) {
    double edge = 0.0;
    for (int n = 0; n < QUERIES; n += 32) {
      levels<32>(marks, edge, from.g, layout.operand[G].time, x.first + n, x.first, sizes.past + layout.length, true);
      __syncwarp();
      marks.row[n + threadIdx.x] = marks.level[threadIdx.x];
      __syncwarp();
    }
  }
  if (MARKED)
    for (int i = threadIdx.x; i < QUERIES; i += THREADS)
      marks.own[i] = x.first + i <= x.last ? numbers[(x.first + i) * step] : -2;
}

// The bias of a pair, row i of the block and column j of the tile that begins at `first`; -inf where it is not seen.
template <bool BY_KEYS>
__device__ __forceinline__ C bias(const Marks& marks, const Sizes& sizes, const Span& x, i64 first, int i, int j, bool all) {
  const i64 row = x.first + i, column = first + j;
  if (!all && !(column >= x.low && column <= x.high && sees(sizes, BY_KEYS ? column : row, BY_KEYS ? row : column)))
    return C(-INFINITY);
  if (MARKED && marks.own[i] != marks.seen[j]) return C(-INFINITY);
  if (!GATED) return C(0);
  const double apart = marks.row[i] - marks.level[j];
  return static_cast<C>(column <= row ? apart : -apart);
}
