// From tile to tile of one row, for any composition of maps: what carry.cuh does for the maps h -> a h + b of numbers.
//
// Asked of a map and of a state are `identity<Map>()`, `compose(after, before)`, `apply(map, state)`, and `is_good` of
// both: a map that is not good does not stand for its steps (it overflows, or is the small difference of large numbers),
// and then the state that was really left is used.
//
// Tiles form groups of GROUP. What enters a tile is the state its group began with, under the composite of the group's
// tiles before it; groups go on from one to the next by the composite of all their tiles. Who computes what, and in which
// order, follows from a tile's place alone: bits depend neither on timing nor on the card.
//
// Blocks tell each other through memory that starts as zeros: each word of 32 bits goes with a word that says that it is
// there, in one access. So no fence and no atomic operation is needed. A block only ever waits for blocks of a lower
// index, and the card starts blocks in that order.
#pragma once
#include "numbers.cuh"

template <class Map> struct Identity;  // Identity<Map>::make() is the map that does nothing
template <class Map> __device__ __forceinline__ Map identity() { return Identity<Map>::make(); }

// A little while, for others.
__device__ __forceinline__ void rest() {
#ifdef __CUDA_ARCH__
  asm volatile("nanosleep.u32 100;");
#endif
}

enum { NOTHING, GOOD, WILD };  // of a slot: nothing there, usable, there but not to be used

// A struct of whole words, as blocks tell each other of it.
template <class X> struct Slot {
  static_assert(sizeof(X) % 4 == 0, "whole words");
  static constexpr int WORDS = sizeof(X) / 4;
  u64 word[WORDS];

  __device__ __forceinline__ void tell(X x, u32 how) {
#pragma unroll
    for (int i = 0; i < WORDS; i++)
      reinterpret_cast<volatile u64*>(word)[i] = static_cast<u64>(how) << 32 | reinterpret_cast<const u32*>(&x)[i];
  }
  // The same by all lanes of a warp.
  __device__ __forceinline__ void tell(const X* x, u32 how, int lane) {
#pragma unroll 1
    for (int i = lane; i < WORDS; i += 32)
      reinterpret_cast<volatile u64*>(word)[i] = static_cast<u64>(how) << 32 | reinterpret_cast<const u32*>(x)[i];
  }
  __device__ __forceinline__ u32 look() const {
    return static_cast<u32>(*reinterpret_cast<const volatile u64*>(word) >> 32);
  }
  // Into `x` what is there, if all of it is.
  __device__ __forceinline__ u32 peek(X& x) const {
    u32 how = GOOD | WILD;
#pragma unroll
    for (int i = 0; i < WORDS; i++) {
      const u64 seen = reinterpret_cast<const volatile u64*>(word)[i];
      reinterpret_cast<u32*>(&x)[i] = static_cast<u32>(seen);
      how &= static_cast<u32>(seen >> 32);
    }
    return how;
  }
  __device__ __forceinline__ X await() const {
    X x;
    while (!peek(x)) {}
    return x;
  }
};

// Any struct of whole words, moved between lanes.
template <class X> __device__ __forceinline__ X from_lane(X x, int lane) {
  X y;
#pragma unroll
  for (int i = 0; i < sizeof(X) / 4; i++)
    reinterpret_cast<u32*>(&y)[i] = __shfl_sync(~0u, reinterpret_cast<const u32*>(&x)[i], lane);
  return y;
}
template <class X> __device__ __forceinline__ X from_below(X x, int by) {
  X y;
#pragma unroll
  for (int i = 0; i < sizeof(X) / 4; i++)
    reinterpret_cast<u32*>(&y)[i] = __shfl_up_sync(~0u, reinterpret_cast<const u32*>(&x)[i], by);
  return y;
}

// Inclusive scan over the first `lanes` (a power of two) of a warp, in a fixed order (Kogge-Stone).
template <class Map> __device__ __forceinline__ Map warp_compose(Map map, int lane, int lanes = 32) {
#pragma unroll 1
  for (int by = 1; by < lanes; by *= 2) {
    const Map before = from_below(map, by);
    if (lane >= by) map = compose(map, before);
  }
  return map;
}

// The memory of one launch. The slot of (tile, row) is tile * rows + row, that of a group likewise.
template <class Map, class State> struct Board {
  Slot<Map> *tile, *group;     // what a tile does, and what all tiles of a group do
  Slot<State> *left, *begin;   // the state a tile left, and the one a group begins with
  i64 rows;
};

template <class Map, class State> __device__ __forceinline__ Board<Map, State> board(u8* memory, i64 rows, i64 tiles) {
  const i64 groups = tiles / GROUP + 1;
  Slot<Map>* tile = reinterpret_cast<Slot<Map>*>(memory);
  Slot<State>* left = reinterpret_cast<Slot<State>*>(tile + (tiles + groups) * rows);
  return {tile, tile + tiles * rows, left, left + tiles * rows, rows};
}

// The state group g begins with. Asking only the group before would make every state wait for the one before it to travel
// through memory; so up to 32 groups back are asked, and what they are known to do is done here, in the same order.
template <class Map, class State>
__device__ __forceinline__ State group_start(const Board<Map, State>& board, i64 row, i64 g, State first, int lane) {
  const i64 mine = g - 1 - lane;  // lane 0 asks the group before; `first` is what comes before the first of all
  const i64 slot = mine * board.rows + row;
  u32 map = mine < 0 ? GOOD : NOTHING, state = mine == -1 ? GOOD : NOTHING;
  State start = first;
  Map next = identity<Map>();
  u32 states, maps;
  int from;
  while (true) {
    if (!map && board.group[slot].look()) map = board.group[slot].peek(next);
    if (mine >= 0 && !state) state = board.begin[slot + board.rows].peek(start);
    states = __ballot_sync(~0u, state != NOTHING), maps = __ballot_sync(~0u, map != NOTHING);
    from = __ffs(static_cast<int>(states)) - 1;
    if (from >= 0 && !(~maps & ((1u << from) - 1))) break;
    rest();
  }
  start = from_lane(start, from);
  bool good = true;
#pragma unroll 1
  for (int i = from - 1; i >= 0; i--) {
    const bool usable = __shfl_sync(~0u, map, i) == GOOD;
    start = apply(from_lane(next, i), start);
    good = good && usable && is_good(start);
  }
  if (!good) start = board.begin[g * board.rows + row].await();
  return start;
}

// What enters tile k of a row that several blocks share; the whole warp calls. `all` is what tile k does. What all lanes
// need to know of the tiles before is in `shared`: two maps, which need not take the place of registers.
template <class Map, class State>
__device__ __forceinline__ State receive(const Board<Map, State>& board, i64 row, i64 k, const Map& all, bool good,
                                         State first, Map* shared, int lane) {
  static_assert(GROUP <= 32, "a lane asks for one tile");
  const i64 slot = k * board.rows + row, group = k / GROUP;
  const int before = static_cast<int>(k % GROUP);
  if (lane == 0) board.tile[slot].tell(all, good ? GOOD : WILD);
  const i64 asked = slot - (before - lane) * board.rows;
  u32 there = lane < before ? NOTHING : GOOD;
  Map map = identity<Map>();
  while (!__all_sync(~0u, there != NOTHING))
    if (!there) there = board.tile[asked].peek(map);
  if (there != GOOD) map = identity<Map>();
  map = warp_compose(map, lane, GROUP);
  const bool fine = __all_sync(~0u, lane >= before || (there == GOOD && is_good(map)));
  if (lane == before - 1) shared[0] = map;
  __syncwarp();
  const bool last = before == GROUP - 1;
  bool sound = fine && good;
  if (last) {
    Map whole = all;
    if (before) whole = compose(all, shared[0]);
    sound = sound && is_good(whole);
    if (lane == 0) board.group[group * board.rows + row].tell(whole, sound ? GOOD : WILD), shared[1] = whole;
  }
  State start = first;
  if (group) start = group_start(board, row, group, first, lane);
  if (last && sound && lane == 0) {
    const State next = apply(shared[1], start);
    if (is_good(next)) board.begin[(group + 1) * board.rows + row].tell(next, GOOD);
  }
  if (!before) return start;
  State entering = apply(shared[0], start);
  if (!fine || !is_good(entering)) {
    entering = start;
#pragma unroll 1
    for (i64 at = slot - before * board.rows; at < slot; at += board.rows) {
      State next = entering;
      bool usable = board.tile[at].peek(map) == GOOD;
      if (usable) next = apply(map, entering), usable = is_good(next);
      entering = usable ? next : board.left[at].await();
    }
  }
  return entering;
}

// The same for blocks with a warp that does nothing but look back, while the others work on the tile. It goes through the
// tiles before it as they become known: what enters tile k of a row, and into `begin` the state its group began with.
template <class Map, class State>
__device__ __forceinline__ State look_back(const Board<Map, State>& board, i64 row, i64 k, State first, State& begin, int lane) {
  const i64 group = k / GROUP, slot = group * GROUP * board.rows + row;  // of the group's first tile
  const int before = static_cast<int>(k % GROUP);
  begin = group ? group_start(board, row, group, first, lane) : first;
  State entering = begin;
  u32 there = NOTHING;
  Map map = identity<Map>();
  for (int done = 0; done < before;) {
    if (lane < before && !there && board.tile[slot + lane * board.rows].look()) there = board.tile[slot + lane * board.rows].peek(map);
    const u32 seen = __ballot_sync(~0u, there != NOTHING), usable = __ballot_sync(~0u, there == GOOD);
    if (!(seen >> done & 1u)) rest();
#pragma unroll 1
    for (; done < before && (seen >> done & 1u); done++) {
      const State next = apply(from_lane(map, done), entering);
      const bool good = (usable >> done & 1u) && is_good(next);
      entering = good ? next : board.left[slot + done * board.rows].await();
    }
  }
  return entering;
}

// And what such a block's others tell of it: `all`, what the tile does, in shared memory, and what its group does if it is
// the last of that, which is left in `whole`. Returns whether that may be used. The whole warp calls.
template <class Map, class State>
__device__ __forceinline__ bool publish(const Board<Map, State>& board, i64 row, i64 k, const Map& all, bool good, Map* whole, int lane) {
  static_assert(GROUP <= 32, "a lane asks for one tile");
  const i64 group = k / GROUP, slot = group * GROUP * board.rows + row;
  board.tile[k * board.rows + row].tell(&all, good ? GOOD : WILD, lane);
  if (k % GROUP != GROUP - 1) return false;
  u32 there = lane < GROUP - 1 ? NOTHING : GOOD;
  Map map = identity<Map>();
  while (!__all_sync(~0u, there != NOTHING))
    if (!there) there = board.tile[slot + lane * board.rows].peek(map);
  if (lane == GROUP - 1) map = all;
  map = warp_compose(map, lane, GROUP);
  const bool sound = __all_sync(~0u, lane >= GROUP || (there == GOOD && is_good(map))) && good;
  if (lane == GROUP - 1) board.group[group * board.rows + row].tell(map, sound ? GOOD : WILD), *whole = map;
  return sound;
}

// Tells the tiles after it what tile k left; whoever can do without has gone on already.
template <class Map, class State>
__device__ __forceinline__ void leave(const Board<Map, State>& board, i64 row, i64 k, State state) {
  board.left[k * board.rows + row].tell(state, GOOD);
  Slot<State>& next = board.begin[(k + 1) / GROUP * board.rows + row];
  if ((k + 1) % GROUP == 0 && !next.look()) next.tell(state, GOOD);
}
