// The kernel of assoc.cuh, once the operator is there.
#pragma once
#include "assoc.cuh"

typedef PartOf<Element> Part;

struct Walked { Part tile[LANES ? 1 : GROUP], start; };

struct Shared {
#if LANES
  Part warp[WARPS][32], group[GROUP][32], entering[32];
  __device__ __forceinline__ u8* turn(int) { return nullptr; }
#else
  alignas(16) u8 turns[WARPS][RUN * WIDEST];  // WIDEST: bytes of the widest element as it is stored
  Part warp[WARPS], tiles[2], entering;
  Walked walked;
  __device__ __forceinline__ u8* turn(int warp) { return turns[warp]; }
#endif
};

struct Steps {
  Inputs in;
  u32 fresh;
  int count;  // steps left in the row, from this thread's first

  __device__ __forceinline__ Part step(int i) const {
    if (i >= count) return identity<Part>();
    const bool begins = RESETS && (fresh >> i & 1u);
    return {begins ? FRESH : SOME, element(in, i, begins)};
  }
  __device__ __forceinline__ Part all() const {
    Part part = step(0);
#pragma unroll
    for (int i = 1; i < STEPS; i++) part = compose(step(i), part);
    return part;
  }
  __device__ __forceinline__ void over(Outputs& out, Part state) const {
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
      state = compose(step(i), state);
      result(out, i, state.element);
    }
  }
};

#if LANES
// What enters tile k in each lane's row. The warps share the asking; warp 0 knows the answer.
__device__ __forceinline__ Part receive_lanes(const Board<Part, Part>& board, i64 row, bool mine, i64 k, Part all, Part first,
                                              Shared& shared, int lane, int warp, int warps) {
  const i64 slot = k * board.rows + row, group = k / GROUP;
  const int before = static_cast<int>(k % GROUP);
  if (warp == 0 && mine) board.tile[slot].tell(all, GOOD);
#pragma unroll 1
  for (int i = warp; i < before; i += warps) shared.group[i][lane] = board.tile[slot - (before - i) * board.rows].await();
  __syncthreads();
  if (warp) return first;
  Part entering = first;
  if (group) entering = board.begin[group * board.rows + row].await();
#pragma unroll 1
  for (int i = 0; i < before; i++) entering = compose(shared.group[i][lane], entering);
  if (before == GROUP - 1 && mine) board.begin[(group + 1) * board.rows + row].tell(compose(all, entering), GOOD);
  return entering;
}
#endif

// The same for a block that walks the tiles of its row: what it told itself is in `walked`, in the same order.
#if !LANES
__device__ __forceinline__ Part receive_walking(Walked& walked, i64 k, const Part& all, int lane) {
  const int before = static_cast<int>(k % GROUP);
  Part part = identity<Part>(), entering = walked.start, whole = all;
  if (lane < before) part = walked.tile[lane];
  part = warp_compose(part, lane, GROUP);
  part = from_lane(part, before ? before - 1 : 0);
  if (before) entering = compose(part, entering), whole = compose(all, part);
  __syncwarp();
  if (lane == 0) {
    walked.tile[before] = all;
    if (before == GROUP - 1) walked.start = compose(whole, walked.start);
  }
  __syncwarp();
  return entering;
}
#endif

extern "C" __global__ void __launch_bounds__(32 * WARPS, 2)
scan(const __grid_constant__ Layout layout, const __grid_constant__ Pointers pointers, u8* memory) {
  __shared__ Shared shared;
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const i64 rows = layout.rows, tiles = layout.tiles, length = layout.length;
#if LANES
  const i64 bundles = (rows + 31) / 32;
#else
  const i64 bundles = rows;
#endif
  const i64 only = blockIdx.x / bundles, bundle = blockIdx.x - only * bundles;  // rows have a block each, or every tile has
  const bool walks = gridDim.x == bundles;
#if LANES
  const bool mine = bundle * 32 + lane < rows;  // other lanes do as the last row's, and write nothing
  const i64 row = mine ? bundle * 32 + lane : rows - 1;
  constexpr int MOST = STEPS;
#else
  const i64 row = bundle;
  constexpr bool mine = true;
  constexpr int MOST = RUN;
#endif
  const Place place = locate(layout, row);
  u8* turn = shared.turn(warp);
  const Board<Part, Part> board = ::board<Part, Part>(memory, rows, tiles);
  Part begin = identity<Part>();
#if HAS_FIRST
  begin = {FRESH, initial(Firsts{FIRSTS(LINSCAN_FIRST)}, pointers)};
#endif
#if !LANES
  if (threadIdx.x == 0) shared.walked.start = begin;
#endif
#pragma unroll 1
  for (i64 k = only; k < (walks ? tiles : only + 1); k++) {
#if LANES
    const i64 first = (k * warps + warp) * STEPS, own = first;
#else
    const i64 first = (k * warps + warp) * RUN, own = first + lane * STEPS;
#endif
    const int count = length - first > MOST ? MOST + 1 : length < first ? 0 : static_cast<int>(length - first);
    Steps steps;
    steps.count = length - own > STEPS ? STEPS : length < own ? 0 : static_cast<int>(length - own);
    steps.fresh = 0;
    {
      Inputs& in = steps.in;
      INPUTS(LINSCAN_TAKE)
    }
    if (RESETS) {
      const i64 time = layout.operand[RESET_OPERAND].time;
      const u8* at = static_cast<const u8*>(pointers.at[RESET_OPERAND]) + place.at[RESET_OPERAND] + own * time;
      for (int i = 0; i < steps.count; i++)
        if (at[i * time]) steps.fresh |= 1u << i;
    }
    Part start = begin;
    const Part through = steps.all();
#if LANES
    shared.warp[warp][lane] = through;
    __syncthreads();
    Part all = shared.warp[0][lane];
    if (warp == 0)
      for (int w = 1; w < warps; w++) all = compose(shared.warp[w][lane], all);
    if (!walks) start = receive_lanes(board, row, mine, k, all, start, shared, lane, warp, warps);
    if (warp == 0) shared.entering[lane] = start;
    __syncthreads();
    start = shared.entering[lane];
    if (warp == 0) begin = compose(all, start);
#pragma unroll 1
    for (int w = 0; w < warp; w++) start = compose(shared.warp[w][lane], start);
#else
    const Part line = warp_compose(through, lane), left = from_below(line, 1);
    if (lane == 31) shared.warp[warp] = line;
    __syncthreads();
    if (warp == 0 && tiles > 1) {
      Part all = shared.warp[0];
      for (int w = 1; w < warps; w++) all = compose(shared.warp[w], all);
      if (walks) start = receive_walking(shared.walked, k, all, lane);
      else start = receive(board, row, k, all, true, start, shared.tiles, lane);
    }
    if (threadIdx.x == 0) shared.entering = start;
    __syncthreads();
    start = shared.entering;
#pragma unroll 1
    for (int w = 0; w < warp; w++) start = compose(shared.warp[w], start);
    if (lane) start = compose(left, start);
#endif
    Outputs out;
    steps.over(out, start);
    if (mine) {
      OUTPUTS(LINSCAN_GIVE)
    }
    if (walks) __syncthreads();  // all have read what the next tile puts in its place
  }
}
