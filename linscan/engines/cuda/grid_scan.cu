// Matrix states on the edges of a grid (pLSTM), forwards and backwards. At a cell with r and d coming in, pair = k v^T:
//
//   o = q^T (m0 r + m1 d),   r <- t00 r + t01 d + s0 pair  (on in x),   d <- t10 r + t11 d + s1 pair  (on in y)
//
// The numbers of a state do not meet before a query reads them. So a block owns KEYS lines and 32 columns of the states of
// one grid; a lane holds one column. Its warps go along neighbouring rows of the grid, each one cell behind the one before
// it: a wavefront. d stays in registers, r goes from row to row through memory. Sums over all lines or columns are left
// in parts, one for each block.
//
// Backwards, r is kept where every WARPS-th row begins; rows are run again, last ones first, with what came in at their
// cells kept in the block's own scratch memory, and then the wavefront goes back over them.
//
// Bytes moved: the inputs once for every 32 columns and KEYS lines, the states along one line of the grid from cache.
#ifndef STORAGE
#define STORAGE float
#define KEYS 8
#define WARPS 8
#define BLOCKS 1
#endif
#include "numbers.cuh"

typedef STORAGE S;
typedef Compute<S>::type C;

struct Grid { i64 grids, width, height, keys, values; };
struct Inputs { const S *q, *k, *v, *transition, *source, *mark; };

struct Gates {
  C t[4], s[2], m[2];
  __device__ __forceinline__ Gates(const Inputs& in, i64 cell) {
#pragma unroll
    for (int i = 0; i < 4; i++) t[i] = widen(in.transition[cell * 4 + i]);
#pragma unroll
    for (int i = 0; i < 2; i++) s[i] = widen(in.source[cell * 2 + i]), m[i] = widen(in.mark[cell * 2 + i]);
  }
};

struct Unit {
  i64 grid, key, value, part_k, part_v, groups_k, groups_v;
  int keys;     // of this block
  bool inside;  // whether this lane has a column

  __device__ __forceinline__ Unit(const Grid& size, i64 unit, int lane) {
    groups_k = (size.keys + KEYS - 1) / KEYS, groups_v = (size.values + 31) / 32;
    part_v = unit % groups_v, part_k = unit / groups_v % groups_k, grid = unit / groups_v / groups_k;
    key = part_k * KEYS, value = part_v * 32 + lane;
    keys = size.keys - key < KEYS ? static_cast<int>(size.keys - key) : KEYS;
    inside = value < size.values;
  }
  __device__ __forceinline__ void read(C (&x)[KEYS], const C* states, i64 at, const Grid& size) const {
#pragma unroll
    for (int i = 0; i < KEYS; i++)
      x[i] = i < keys && inside ? states[(at * size.keys + key + i) * size.values + value] : Number<C>::make(0);
  }
  __device__ __forceinline__ void write(const C (&x)[KEYS], C* states, i64 at, const Grid& size) const {
#pragma unroll
    for (int i = 0; i < KEYS; i++)
      if (i < keys && inside) states[(at * size.keys + key + i) * size.values + value] = x[i];
  }
  // This block's lines of a vector of a cell; zeros past the last.
  __device__ __forceinline__ void lines(C (&x)[KEYS], const S* from, i64 cell, const Grid& size) const {
#pragma unroll
    for (int i = 0; i < KEYS; i++) x[i] = i < keys ? widen(from[cell * size.keys + key + i]) : Number<C>::make(0);
  }
  __device__ __forceinline__ C column(const S* from, i64 cell, const Grid& size) const {
    return inside ? widen(from[cell * size.values + value]) : Number<C>::make(0);
  }
};

// From cell to cell; in r and d what comes in becomes what goes out.
template <class G> __device__ __forceinline__ void step(C (&r)[KEYS], C (&d)[KEYS], const G& g, const C (&k)[KEYS], C v) {
#pragma unroll
  for (int i = 0; i < KEYS; i++) {
    const C pair = mul(k[i], v), right = mul_add(g.s[0], pair, mul_add(g.t[1], d[i], mul(g.t[0], r[i])));
    d[i] = mul_add(g.s[1], pair, mul_add(g.t[3], d[i], mul(g.t[2], r[i])));
    r[i] = right;
  }
}

// A block's own memory, in lines of 32 columns: KEYS lines for each place.
__device__ __forceinline__ void get(C (&x)[KEYS], const C* memory, i64 place, int lane) {
#pragma unroll
  for (int i = 0; i < KEYS; i++) x[i] = memory[(place * KEYS + i) * 32 + lane];
}
__device__ __forceinline__ void put(const C (&x)[KEYS], C* memory, i64 place, int lane) {
#pragma unroll
  for (int i = 0; i < KEYS; i++) memory[(place * KEYS + i) * 32 + lane] = x[i];
}

// What a cell needs apart from the states; asked for one cell ahead.
struct Cell {
  C q[KEYS], k[KEYS], v, t[4], s[2], m[2];
  __device__ __forceinline__ void load(const Unit& unit, const Grid& size, const Inputs& in, i64 cell) {
    unit.lines(q, in.q, cell, size);
    unit.lines(k, in.k, cell, size);
    v = unit.column(in.v, cell, size);
#pragma unroll
    for (int i = 0; i < 4; i++) t[i] = widen(in.transition[cell * 4 + i]);
#pragma unroll
    for (int i = 0; i < 2; i++) s[i] = widen(in.source[cell * 2 + i]), m[i] = widen(in.mark[cell * 2 + i]);
  }
};

extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS)
forward(Grid size, const S* q, const S* k, const S* v, const S* transition, const S* source, const S* mark, C* r, C* d, C* o) {
  __shared__ C handed[WARPS][2][KEYS][32];  // r, from warp to warp; every other cell in the same place
  const Inputs in = {q, k, v, transition, source, mark};
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  const Unit unit(size, blockIdx.x, lane);
  const i64 cells = size.grids * size.width * size.height;
  C right[KEYS], down[KEYS];
  Cell now;
  for (i64 begin = 0; begin < size.width; begin += WARPS) {
    const i64 x = begin + warp, row = (unit.grid * size.width + x) * size.height, line = unit.grid * size.height;
    const bool mine = x < size.width, last = warp == WARPS - 1 || x == size.width - 1;
    if (mine) unit.read(down, d, unit.grid * size.width + x, size), now.load(unit, size, in, row);
    if (warp == 0) unit.read(right, r, line, size);
#pragma unroll 1
    for (i64 y = -warp; y < size.height + WARPS - 1 - warp; y++) {
      const int place = static_cast<int>(y + warp) & 1;
      if (mine && y >= 0 && y < size.height) {
        const Cell cell = now;
        if (warp) {
#pragma unroll
          for (int i = 0; i < KEYS; i++) right[i] = handed[warp - 1][1 - place][i][lane];
        }
        C came[KEYS], sum = Number<C>::make(0);
#pragma unroll
        for (int i = 0; i < KEYS; i++) came[i] = right[i];
        if (y + 1 < size.height) now.load(unit, size, in, row + y + 1);
        if (warp == 0 && y + 1 < size.height) unit.read(right, r, line + y + 1, size);
#pragma unroll
        for (int i = 0; i < KEYS; i++)
          sum = mul_add(cell.q[i], mul_add(cell.m[0], came[i], mul(cell.m[1], down[i])), sum);
        if (unit.inside) o[(unit.part_k * cells + row + y) * size.values + unit.value] = sum;
        step(came, down, cell, cell.k, cell.v);
        if (last) unit.write(came, r, line + y, size);
        else {
#pragma unroll
          for (int i = 0; i < KEYS; i++) handed[warp][place][i][lane] = came[i];
        }
      }
      __syncthreads();
    }
    if (mine) unit.write(down, d, unit.grid * size.width + x, size);
  }
}

__device__ __forceinline__ C sum_lanes(C x) {
#pragma unroll
  for (int by = 16; by; by /= 2) x = add(x, shuffle_xor(x, by));
  return x;
}

// Where a block keeps what it must: r where every WARPS-th row begins and on the line it has come to, and what came in.
struct Kept {
  C *fronts, *line, *right, *down;
  __device__ __forceinline__ Kept(C* memory, const Grid& size) {
    const i64 place = KEYS * 32, passes = (size.width + WARPS - 1) / WARPS;
    fronts = memory + blockIdx.x * (passes + 1 + 2 * WARPS) * size.height * place;
    line = fronts + passes * size.height * place;
    right = line + size.height * place, down = right + WARPS * size.height * place;
  }
};

// The rows from `begin` on, forwards; with KEEP, what comes in at every cell.
template <bool KEEP>
__device__ __forceinline__ void rerun(const Unit& unit, const Grid& size, const Inputs& in, const Kept& kept, i64 begin,
                                      const C* r, const C* d, int lane, int warp) {
  C right[KEYS], down[KEYS], key[KEYS];
  const i64 x = begin + warp, pass = begin / WARPS;
  if (x < size.width) unit.read(down, d, unit.grid * size.width + x, size);
#pragma unroll 1
  for (i64 y = -warp; y < size.height + WARPS - 1 - warp; y++) {
    if (x < size.width && y >= 0 && y < size.height) {
      const i64 cell = (unit.grid * size.width + x) * size.height + y, place = pass * size.height + y;
      if (warp == 0 && pass == 0) unit.read(right, r, unit.grid * size.height + y, size);
      else if (warp == 0 && KEEP) get(right, kept.fronts, place, lane);
      else get(right, kept.line, y, lane);
      if (warp == 0 && !KEEP) put(right, kept.fronts, place, lane);
      if (KEEP) put(right, kept.right, warp * size.height + y, lane), put(down, kept.down, warp * size.height + y, lane);
      unit.lines(key, in.k, cell, size);
      step(right, down, Gates(in, cell), key, unit.column(in.v, cell, size));
      put(right, kept.line, y, lane);
    }
    __syncthreads();
  }
}

struct Slopes { C *q, *k, *v, *gates; };  // in parts: q and k for every 32 columns, v for every KEYS lines, gates for both

// One cell, backwards: `right` and `down`, the gradients of what goes out, become those of what came in.
__device__ __forceinline__ void back(C (&right)[KEYS], C (&down)[KEYS], const Unit& unit, const Grid& size, const Inputs& in,
                                     const S* slope, const Kept& kept, const Slopes& to, i64 cell, i64 place, int lane) {
  const Gates g(in, cell);
  const C v = unit.column(in.v, cell, size), given = unit.column(slope, cell, size), zero = Number<C>::make(0);
  C query[KEYS], key[KEYS], r[KEYS], d[KEYS], dv = zero, sums[8] = {zero, zero, zero, zero, zero, zero, zero, zero};
  unit.lines(query, in.q, cell, size);
  unit.lines(key, in.k, cell, size);
  get(r, kept.right, place, lane);
  get(d, kept.down, place, lane);
  const i64 cells = size.grids * size.width * size.height, line = (unit.part_v * cells + cell) * size.keys + unit.key;
#pragma unroll
  for (int i = 0; i < KEYS; i++) {
    const C out[2] = {right[i], down[i]}, came[2] = {conj(r[i]), conj(d[i])};
    const C seen = mul(conj(query[i]), given), pair = conj(mul(key[i], v));
#pragma unroll
    for (int a = 0; a < 2; a++) {
      sums[2 * a] = mul_add(out[a], came[0], sums[2 * a]), sums[2 * a + 1] = mul_add(out[a], came[1], sums[2 * a + 1]);
      sums[4 + a] = mul_add(out[a], pair, sums[4 + a]), sums[6 + a] = mul_add(came[a], seen, sums[6 + a]);
    }
    const C into = mul_add(conj(g.s[0]), out[0], mul(conj(g.s[1]), out[1]));
    dv = mul_add(conj(key[i]), into, dv);
    const C dq = sum_lanes(mul(conj(mul_add(g.m[0], r[i], mul(g.m[1], d[i]))), given));
    const C dk = sum_lanes(mul(into, conj(v)));
    if (lane == 0 && i < unit.keys) to.q[line + i] = dq, to.k[line + i] = dk;
    right[i] = mul_add(conj(g.t[0]), out[0], mul_add(conj(g.t[2]), out[1], mul(conj(g.m[0]), seen)));
    down[i] = mul_add(conj(g.t[1]), out[0], mul_add(conj(g.t[3]), out[1], mul(conj(g.m[1]), seen)));
  }
  if (unit.inside) to.v[(unit.part_k * cells + cell) * size.values + unit.value] = dv;
  const i64 part = unit.part_k * unit.groups_v + unit.part_v;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    sums[i] = sum_lanes(sums[i]);
    if (lane == 0) to.gates[(part * cells + cell) * 8 + i] = sums[i];
  }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS)
backward(Grid size, const S* q, const S* k, const S* v, const S* transition, const S* source, const S* mark, const C* r,
         const C* d, const S* slope, C* dr, C* dd, C* dq, C* dk, C* dv, C* dgates, C* memory) {
  const Inputs in = {q, k, v, transition, source, mark};
  const Slopes to = {dq, dk, dv, dgates};
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  const Kept kept(memory, size);
  const i64 last = (size.width - 1) / WARPS * WARPS, units = Unit(size, 0, lane).groups_k * Unit(size, 0, lane).groups_v * size.grids;
  for (i64 index = blockIdx.x; index < units; index += gridDim.x) {
    const Unit unit(size, index, lane);
    for (i64 begin = 0; begin <= last; begin += WARPS) rerun<false>(unit, size, in, kept, begin, r, d, lane, warp);
    C right[KEYS], down[KEYS];
    for (i64 begin = last; begin >= 0; begin -= WARPS) {
      rerun<true>(unit, size, in, kept, begin, r, d, lane, warp);
      const i64 x = begin + warp;
      const int behind = WARPS - 1 - warp;
      if (x < size.width) unit.read(down, dd, unit.grid * size.width + x, size);
#pragma unroll 1
      for (i64 y = size.height - 1 + behind; y >= -warp; y--) {
        if (x < size.width && y >= 0 && y < size.height) {
          const i64 at = unit.grid * size.height + y, cell = (unit.grid * size.width + x) * size.height + y;
          unit.read(right, dr, at, size);
          back(right, down, unit, size, in, slope, kept, to, cell, warp * size.height + y, lane);
          unit.write(right, dr, at, size);
        }
        __syncthreads();
      }
      if (x < size.width) unit.write(down, dd, unit.grid * size.width + x, size);
    }
  }
}
