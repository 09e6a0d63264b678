// h[t] = a[t] h[t-1] + b[t] along the last axis, and its pullback in one pass over the data.
//
// A block owns one row and walks its tiles with the state in registers; with SPLIT, every tile has its
// block, and they hand the state on (carry.cuh). A thread composes its chunks of CHUNK steps, a warp scans the chunks by
// shuffles, the warps' composites are composed in order through shared memory; then every thread runs its chunks from their
// true starting states. Where composites are not tame (affine.cuh), the tile is run again strictly in order.
//
// Bytes moved: every input once, every output once (3 arrays for the scan, 5 for the pullback).
// Limits: rows and lengths below 2^63 elements; up to 6 batch axes after folding; with SPLIT below 2^31 tiles.
#include "affine.cuh"
#include "carry.cuh"
#include "layout.cuh"
#include "tiles.cuh"

typedef STORAGE S;
typedef Compute<S>::type C;
constexpr bool PULL = PULLBACK;
constexpr i64 PREFETCH = 128;  // how many blocks ahead the cache is told of a tile

struct Tile {
  Items<S> a, b, before;
  C edge[ROWS];
  u32 reset;

  __device__ __forceinline__ bool fresh(int i) const { return RESETS && (reset >> i & 1u); }
  __device__ __forceinline__ C decay(int i) const { return PULL ? conj(a.get(i)) : a.get(i); }

  // From `state` over chunk j; with WRITE, b becomes the output and `before` the slope.
  template <bool WRITE> __device__ __forceinline__ C chunk(int j, C state) {
    C out[CHUNK], slope[CHUNK];
#pragma unroll
    for (int v = 0; v < CHUNK; v++) {
      const int i = j * CHUNK + v;
      const C input = b.get(i), delta = PULL ? add(state, input) : state;
      state = advance<PULL>(decay(i), input, state, fresh(i));
      out[v] = PULL ? delta : state;
      if (WRITE && PULL) {
        const C earlier = v + 1 < CHUNK ? before.get((i + 1) % ITEMS) : edge[j];
        slope[v] = fresh(i) ? Number<C>::make(0) : mul(conj(earlier), delta);
      }
    }
    if (WRITE) b.put(j, out);
    if (WRITE && PULL) before.put(j, slope);
    return state;
  }
  __device__ __forceinline__ Affine<C> composite(int j) {
    C a_all = Number<C>::make(1);
#pragma unroll
    for (int i = j * CHUNK; i < (j + 1) * CHUNK; i++) a_all = fresh(i) ? Number<C>::make(0) : mul(decay(i), a_all);
    return {a_all, chunk<false>(j, Number<C>::make(0))};
  }
};

struct Arrays {
  const S *decay, *input, *history;
  S *out, *slope;
  const u8* reset;
  const S* first;
  C* last;
};

struct Shared {
  alignas(16) S turn[WARPS][RUN];
  Affine<C> warp[WARPS], group[SPLIT ? GROUP : 1];
  Carry<C> carry;
  C entering, state;
};

__device__ __forceinline__ int steps_left(i64 length, i64 first) {  // as far as a warp cares
  return length - first > RUN ? RUN + 1 : static_cast<int>(length - first);
}

__device__ __forceinline__ S initial(const Layout& layout, const Arrays& arrays, const Place& place) {
  return arrays.first ? arrays.first[place.at[FIRST]] : Narrow<S>::of(Number<C>::make(0));
}

__device__ __forceinline__ void begin_loads(Tile& tile, const Layout& layout, const Arrays& arrays, i64 row, i64 first, int lane) {
  const Place place = locate(layout, row);
  const Operand *a = layout.operand + DECAY, *b = layout.operand + INPUT, *h = layout.operand + BEFORE;
  const int count = steps_left(layout.length, first);
  const S zero = Narrow<S>::of(Number<C>::make(0)), one = Narrow<S>::of(Number<C>::make(1));
  load(tile.a, arrays.decay + place.at[DECAY] + first * a->time, a->time, a->mode, count, one, lane);
  load(tile.b, arrays.input + place.at[INPUT] + first * b->time, b->time, b->mode, count, zero, lane);
  if (PULL)
    load(tile.before, arrays.history + place.at[BEFORE] + first * h->time, h->time, h->mode, count,
         initial(layout, arrays, place), lane);
}

// Where blocks share rows, loads of a tile wait for a tile before it to leave its registers; the memory need not.
__device__ __forceinline__ void prefetch_ahead(const Layout& layout, const Arrays& arrays, i64 row, i64 k, int warps) {
  const i64 ahead = PREFETCH / layout.rows, first = (k + ahead) * warps * RUN;
  if (ahead == 0 || first >= layout.length) return;
  const Place place = locate(layout, row);
  const Operand* operand = layout.operand;
  prefetch(arrays.decay + place.at[DECAY], operand[DECAY].time, first, layout.length);
  prefetch(arrays.input + place.at[INPUT], operand[INPUT].time, first, layout.length);
  if (PULL) prefetch(arrays.history + place.at[BEFORE], operand[BEFORE].time, first, layout.length);
}

__device__ __forceinline__ void end_loads(Tile& tile, const Layout& layout, const Arrays& arrays, const Place& place, i64 first,
                                          S* turn, int lane) {
  const Operand *h = layout.operand + BEFORE, *r = layout.operand + RESET;
  const int count = steps_left(layout.length, first);
  turn_in(tile.a, layout.operand[DECAY].mode, turn, lane);
  turn_in(tile.b, layout.operand[INPUT].mode, turn, lane);
  if (PULL) {
    turn_in(tile.before, h->mode, turn, lane);
    edges(tile.edge, tile.before, arrays.history + place.at[BEFORE] + first * h->time, h->time, count,
          initial(layout, arrays, place), lane);
  }
  tile.reset = RESETS ? resets(arrays.reset + place.at[RESET] + first * r->time, r->time, count, lane) : 0u;
}

// The starts of every chunk, found one chunk after the other: the plain loop.
__device__ __forceinline__ void in_order(Tile& tile, C (&start)[ROWS], C state, Shared& shared, int lane, int warp, int warps) {
#pragma unroll 1
  for (int w = 0; w < warps; w++) {
    if (warp == w) {
      if (w) state = shared.state;
      __syncwarp();  // all have read it before lane 0 writes it
#pragma unroll
      for (int j = 0; j < ROWS; j++) {
#pragma unroll 1
        for (int l = 0; l < 32; l++) {
          const C end = tile.chunk<false>(j, state);
          if (lane == l) start[j] = state;
          state = shuffle(end, l);
        }
      }
      if (lane == 0) shared.state = state;
    }
    __syncthreads();
  }
}

// The state group g begins with. Asking only the group before would make every state wait for the one before it to travel
// through memory; so up to 32 groups back are asked, and what they are known to do is done here, in the same order.
__device__ __forceinline__ C group_start(const Board<C>& board, i64 row, i64 g, C state, int lane) {
  const i64 mine = g - 1 - lane;  // lane 0 asks the group before; `state` is what comes before the first of all
  bool has_map = mine < 0, has_state = mine == -1;
  Affine<C> map = identity<C>();
  const Affine<C>* group = board.group + mine * board.rows + row;
  const C* left = board.state + ((mine + 1) * GROUP - 1) * board.rows + row;
  while (true) {
    if (!has_map) has_map = board.peek(group, map);
    if (mine >= 0 && !has_state) has_state = peek(left, state);
    const u32 states = __ballot_sync(~0u, has_state), maps = __ballot_sync(~0u, has_map);
    const int from = __ffs(states) - 1;
    if (from < 0 || (~maps & ((1u << from) - 1))) continue;
    C start = shuffle(state, from);
    bool good = true;
#pragma unroll 1
    for (int i = from - 1; i >= 0; i--) {
      const Affine<C> next = {shuffle(map.a, i), shuffle(map.b, i)};
      start = apply(next, start);
      good = good && is_tame(next) && is_finite(start);
    }
    return good ? start : await(board.state + (g * GROUP - 1) * board.rows + row);
  }
}

// What enters tile k of a row that several blocks share; one warp asks for all. Tells the tiles after it what it can.
__device__ __forceinline__ void receive(const Board<C>& board, i64 row, i64 k, Affine<C> all, Carry<C> carry, C entering,
                                        Shared& shared, int lane) {
  static_assert(GROUP <= 32, "a lane asks for one tile");
  const i64 slot = k * board.rows + row;
  const int before = static_cast<int>(k % GROUP);
  if (lane == 0) board.tell(board.map + slot, all);
  bool there = lane >= before, tame = true;
  while (!__all_sync(~0u, there))
    if (!there) there = board.peek(board.map + slot - (before - lane) * board.rows, shared.group[lane]);
  __syncwarp();
#pragma unroll 8
  for (int i = 0; i < before; i++) {
    carry.prefix = compose(shared.group[i], carry.prefix);
    tame = tame && is_tame(carry.prefix);
  }
  const bool last = before == GROUP - 1;
  if (last && lane == 0) {  // what the group does, or, where that does not stand for its steps, a map that is not tame
    Affine<C> whole = compose(all, carry.prefix);
    if (!tame) whole.b = Number<C>::make(__longlong_as_double(0x7ff8000000000000ll));
    board.tell(board.group + (k / GROUP) * board.rows + row, whole);
  }
  if (k >= GROUP) carry.start = group_start(board, row, k / GROUP, carry.start, lane);
  if (!tame) carry = walk(board, row, k, carry.start);
  if (k) {
    entering = carry.next();
    if (!is_finite(entering)) entering = await(board.state + slot - board.rows);
  }
  if (lane == 0) {
    if (last && !needs_left(carry, all)) publish(board.state + slot, apply(compose(all, carry.prefix), carry.start));
    shared.carry = carry, shared.entering = entering;
  }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS)
scan(const __grid_constant__ Layout layout, const S* decay, const S* input, const S* history, S* out, S* slope,
     const u8* reset, const S* first_state, C* last_flow, u8* memory) {
  __shared__ Shared shared;
  const Arrays arrays = {decay, input, history, out, slope, reset, first_state, last_flow};
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const i64 rows = layout.rows, tiles = layout.tiles;
  S* turn = shared.turn[warp];
  const Board<C> board = ::board<C>(memory, rows, tiles);
  Carry<C> carry;
  C entering;
  Tile tile;

  i64 k = SPLIT ? blockIdx.x / rows : 0, row = blockIdx.x - k * rows;
  while (row < rows) {
    begin_loads(tile, layout, arrays, row, (k * warps + warp) * RUN, lane);
    if (SPLIT) prefetch_ahead(layout, arrays, row, k, warps);
    const Place place = locate(layout, row);
    const i64 first = (k * warps + warp) * RUN;
    if (SPLIT || k == 0) {
      entering = PULL ? Number<C>::make(0) : widen(initial(layout, arrays, place));
      carry = {identity<C>(), entering};
    }
    end_loads(tile, layout, arrays, place, first, turn, lane);

    Affine<C> chunk[ROWS], line = identity<C>();  // from the start of the warp's run to each chunk
#pragma unroll
    for (int j = 0; j < ROWS; j++) {
      const Affine<C> through = warp_scan(tile.composite(j), lane);
      const Affine<C> left = {shuffle_up(through.a, 1), shuffle_up(through.b, 1)};
      chunk[j] = lane ? compose(left, line) : line;
      const Affine<C> whole = {shuffle(through.a, 31), shuffle(through.b, 31)};
      line = compose(whole, line);
    }
    if (lane == 0) shared.warp[warp] = line;
    __syncthreads();
    Affine<C> all = identity<C>(), mine = all;
#pragma unroll 1
    for (int w = 0; w < warps; w++) {
      if (w == warp) mine = all;
      all = compose(shared.warp[w], all);
    }
    if (SPLIT) {
      if (warp == 0) receive(board, row, k, all, carry, entering, shared, lane);
      __syncthreads();
      carry = shared.carry, entering = shared.entering;
    }
    const bool ask = needs_left(carry, all);

    C start[ROWS];
    bool good = true;
    const C run_start = apply(mine, entering);
#pragma unroll
    for (int j = 0; j < ROWS; j++) {
      start[j] = apply(chunk[j], run_start);
      good = good && is_finite(start[j]) && is_tame(mul(chunk[j].a, mine.a));
    }
    if (__syncthreads_or(!good)) in_order(tile, start, entering, shared, lane, warp, warps);
    C left;
#pragma unroll
    for (int j = 0; j < ROWS; j++) left = tile.chunk<true>(j, start[j]);

    const bool is_last = threadIdx.x == blockDim.x - 1;
    if (SPLIT && is_last && ask) publish(board.state + k * rows + row, left);
    if (PULL && is_last && k == tiles - 1) arrays.last[row] = left;
    if (!SPLIT) {
      if (ask) {
        if (is_last) shared.state = left;
        __syncthreads();
        left = shared.state;
        __syncthreads();
      }
      carry.pass(k, all, left);
      entering = carry.next();
      if (!is_finite(entering)) entering = left;
    }
    const Operand *h = layout.operand + OUT, *g = layout.operand + SLOPE;
    const int count = steps_left(layout.length, first);
    store(tile.b, arrays.out + place.at[OUT] + first * h->time, h->time, h->mode, count, turn, lane);
    if (PULL) store(tile.before, arrays.slope + place.at[SLOPE] + first * g->time, g->time, g->mode, count, turn, lane);

    if (SPLIT) break;
    if (++k == tiles) k = 0, row += gridDim.x;
  }
}
