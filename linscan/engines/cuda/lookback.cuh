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
// Blocks tell each other through memory: data first, then a flag. A block only ever waits for blocks of a lower index,
// and the card starts blocks in that order.
#pragma once
#include "numbers.cuh"

template <class Map> struct Identity;  // Identity<Map>::make() is the map that does nothing
template <class Map> __device__ __forceinline__ Map identity() { return Identity<Map>::make(); }

enum { NOTHING, GOOD, WILD };  // a flag: nothing there, usable, there but not to be used

__device__ __forceinline__ u32 look(const u32* flag) { return *reinterpret_cast<const volatile u32*>(flag); }

// Any struct of whole words: read past the cache of this multiprocessor, or moved between lanes.
template <class X> __device__ __forceinline__ X fetch(const X* from) {
  static_assert(sizeof(X) % 4 == 0, "whole words");
  X x;
#pragma unroll
  for (int i = 0; i < sizeof(X) / 4; i++) reinterpret_cast<u32*>(&x)[i] = reinterpret_cast<const volatile u32*>(from)[i];
  return x;
}
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

// The memory of one launch: flags, which start as zeros, then data. Slot of (tile, row) is tile * rows + row.
template <class Map, class State> struct Board {
  u32 *tile_flag, *left_flag, *group_flag, *begin_flag;
  Map *tile, *group;     // what a tile does, and what all tiles of a group do
  State *left, *begin;   // the state a tile left, and the one a group begins with
  i64 rows;

  template <class X> static __device__ __forceinline__ void tell(u32* flag, X* slot, X x, u32 how) {
    *slot = x;
    __threadfence();
    *reinterpret_cast<volatile u32*>(flag) = how;
  }
  template <class X> static __device__ __forceinline__ X await(const u32* flag, const X* slot) {
    while (!look(flag)) {}
    __threadfence();
    return fetch(slot);
  }
  __device__ __forceinline__ void leave(i64 row, i64 k, State state) const {
    tell(left_flag + k * rows + row, left + k * rows + row, state, GOOD);
  }
  __device__ __forceinline__ void start_group(i64 row, i64 g, State state) const {
    tell(begin_flag + g * rows + row, begin + g * rows + row, state, GOOD);
  }
  // The state tile k really began with.
  __device__ __forceinline__ State really(i64 row, i64 k) const {
    return await(left_flag + (k - 1) * rows + row, left + (k - 1) * rows + row);
  }
};

template <class Map, class State> __device__ __forceinline__ Board<Map, State> board(u8* memory, i64 rows, i64 tiles) {
  const i64 groups = tiles / GROUP + 1, flags = (2 * (tiles + groups) * rows + 3) / 4 * 4;
  Board<Map, State> it;
  it.rows = rows;
  it.tile_flag = reinterpret_cast<u32*>(memory);
  it.left_flag = it.tile_flag + tiles * rows;
  it.group_flag = it.left_flag + tiles * rows;
  it.begin_flag = it.group_flag + groups * rows;
  it.tile = reinterpret_cast<Map*>(memory + flags * 4);
  it.group = it.tile + tiles * rows;
  it.left = reinterpret_cast<State*>(it.group + groups * rows);
  it.begin = it.left + tiles * rows;
  return it;
}

// The state group g begins with. Asking only the group before would make every state wait for the one before it to travel
// through memory; so up to 32 groups back are asked, and what they are known to do is done here, in the same order.
template <class Map, class State>
__device__ __forceinline__ State group_start(const Board<Map, State>& board, i64 row, i64 g, State first, int lane) {
  const i64 mine = g - 1 - lane;  // lane 0 asks the group before; `first` is what comes before the first of all
  const i64 slot = mine * board.rows + row;
  u32 map = mine < 0 ? GOOD : NOTHING, state = mine == -1 ? GOOD : NOTHING;
  while (true) {
    if (!map) map = look(board.group_flag + slot);
    if (mine >= 0 && !state) state = look(board.begin_flag + slot + board.rows);
    const u32 states = __ballot_sync(~0u, state != NOTHING), maps = __ballot_sync(~0u, map != NOTHING);
    const int from = __ffs(static_cast<int>(states)) - 1;
    if (from < 0 || (~maps & ((1u << from) - 1))) continue;
    __threadfence();
    State start = mine >= 0 && lane == from ? fetch(board.begin + slot + board.rows) : first;
    Map next = identity<Map>();
    if (lane < from && map == GOOD) next = fetch(board.group + slot);
    start = from_lane(start, from);
    bool good = true;
#pragma unroll 1
    for (int i = from - 1; i >= 0; i--) {
      start = apply(from_lane(next, i), start);
      good = good && __shfl_sync(~0u, map, i) == GOOD && is_good(start);
    }
    return good ? start : board.await(board.begin_flag + g * board.rows + row, board.begin + g * board.rows + row);
  }
}

// What enters tile k of a row that several blocks share; the whole warp calls. `all` is what tile k does.
template <class Map, class State>
__device__ __forceinline__ State receive(const Board<Map, State>& board, i64 row, i64 k, Map all, bool good, State first,
                                         int lane) {
  static_assert(GROUP <= 32, "a lane asks for one tile");
  const i64 slot = k * board.rows + row, group = k / GROUP;
  const int before = static_cast<int>(k % GROUP);
  if (lane == 0) board.tell(board.tile_flag + slot, board.tile + slot, all, good ? GOOD : WILD);
  const i64 asked = slot - (before - lane) * board.rows;
  u32 flag = lane < before ? NOTHING : GOOD;
  while (!__all_sync(~0u, flag != NOTHING))
    if (!flag) flag = look(board.tile_flag + asked);
  __threadfence();
  Map map = identity<Map>();
  if (lane < before && flag == GOOD) map = fetch(board.tile + asked);
  map = warp_compose(map, lane, GROUP);
  const bool fine = __all_sync(~0u, lane >= before || (flag == GOOD && is_good(map)));
  map = from_lane(map, before ? before - 1 : 0);
  Map whole = all;
  if (before) whole = compose(all, map);
  const bool last = before == GROUP - 1, sound = fine && good && is_good(whole);
  if (last && lane == 0)
    board.tell(board.group_flag + group * board.rows + row, board.group + group * board.rows + row, whole,
               sound ? GOOD : WILD);
  const State start = k >= GROUP ? group_start(board, row, group, first, lane) : first;
  if (last && sound && lane == 0) {
    const State next = apply(whole, start);
    if (is_good(next)) board.start_group(row, group + 1, next);
  }
  if (!before) return start;
  State entering = apply(map, start);
  if (!fine || !is_good(entering)) {
    entering = start;
#pragma unroll 1
    for (int i = 0; i < before; i++) {
      const i64 at = slot - (before - i) * board.rows;
      State next = entering;
      bool usable = look(board.tile_flag + at) == GOOD;
      if (usable) next = apply(fetch(board.tile + at), entering), usable = is_good(next);
      entering = usable ? next : board.really(row, k - before + i + 1);
    }
  }
  return entering;
}

// Tells the tiles after it what tile k left; whoever can do without has gone on already.
template <class Map, class State>
__device__ __forceinline__ void leave(const Board<Map, State>& board, i64 row, i64 k, State state) {
  board.leave(row, k, state);
  const i64 next = (k + 1) / GROUP;
  if ((k + 1) % GROUP == 0 && !look(board.begin_flag + next * board.rows + row)) board.start_group(row, next, state);
}
