// h[t] = a[t] h[t-1] + b[t] along any axis but the last, and its pullback: neighbouring lanes hold neighbouring rows.
//
// A warp owns STEPS consecutive steps of 32 rows, a thread those of one row: no shuffles, and one warp reads whole lines
// wherever rows are neighbours in memory. The warps of a block own consecutive runs of steps; their composites are
// composed in order through shared memory, and so on from tile to tile (carry.cuh) in one block, or with SPLIT across
// blocks. Any strides are right; strides that put lanes far apart are slower. Where composites are not tame (affine.cuh),
// the tile is run again strictly in order, in the rows concerned.
//
// BOTH: the second half of the rows runs backwards, and in the pullback the first.
// SUMMED, where a is the same at all times: of the pullback's slopes a tile leaves the sum, at (tile, row).
//
// Bytes moved: every input once, every output once (3 arrays for the scan, 5 for the pullback).
// Limits: rows and lengths below 2^63 elements; up to 6 batch axes after folding.
#include "affine.cuh"
#include "carry.cuh"
#include "layout.cuh"

typedef STORAGE S;
typedef Compute<S>::type C;
constexpr bool PULL = PULLBACK;

struct Run {
  C a[STEPS], b[STEPS], before[STEPS];
  u32 reset;

  // From `state` over the run; with WRITE, b becomes the output and `before` the slope.
  template <bool WRITE> __device__ __forceinline__ C over(C state) {
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
      const bool fresh = RESETS && (reset >> i & 1u);
      C delta = PULL ? add(state, b[i]) : state;
      state = advance<PULL>(a[i], b[i], state, fresh);
      if (WRITE) {
        if (PULL) before[i] = fresh ? Number<C>::make(0) : mul(conj(before[i]), delta);
        b[i] = PULL ? delta : state;
      }
    }
    return state;
  }
  __device__ __forceinline__ Affine<C> composite() {
    C a_all = Number<C>::make(1);
#pragma unroll
    for (int i = 0; i < STEPS; i++) a_all = RESETS && (reset >> i & 1u) ? Number<C>::make(0) : mul(a[i], a_all);
    return {a_all, over<false>(Number<C>::make(0))};
  }
};

struct Shared {
  Affine<C> warp[WARPS][32];
  Affine<C> group[SPLIT ? GROUP : 1][32];
  C state[32];
  u32 bad[WARPS];
};

// Steps first to first + STEPS of one row; those not below `length` read as `fill`.
template <class S>
__device__ __forceinline__ void load(C (&x)[STEPS], const S* row, i64 time, i64 first, i64 length, C fill) {
  const S* at = row + first * time;
  const int count = length - first > STEPS ? STEPS : static_cast<int>(length - first);
#pragma unroll
  for (int i = 0; i < STEPS; i++, at += time) x[i] = i < count ? widen(*at) : fill;
}

__device__ __forceinline__ void store(const C (&x)[STEPS], S* row, i64 time, i64 first, i64 length) {
  S* at = row + first * time;
  const int count = length - first > STEPS ? STEPS : static_cast<int>(length - first);
#pragma unroll
  for (int i = 0; i < STEPS; i++, at += time)
    if (i < count) *at = Narrow<S>::of(x[i]);
}

// The run's starting state in the rows of `bad`, found one run after the other.
__device__ __forceinline__ C in_order(Run& run, C start, C state, bool good, Shared& shared, int lane, int warp, int warps) {
  const u32 ballot = __ballot_sync(~0u, !good);
  if (lane == 0) shared.bad[warp] = ballot;
  __syncthreads();
  u32 bad = 0;
#pragma unroll 1
  for (int w = 0; w < warps; w++) bad |= shared.bad[w];
#pragma unroll 1
  for (int w = 0; w < warps; w++) {
    if (warp == w) {
      if (w) state = shared.state[lane];
      if (bad >> lane & 1u) start = state;
      shared.state[lane] = run.over<false>(state);
    }
    __syncthreads();
  }
  return start;
}

// The sum of the first `count` slopes of every warp's run, in order.
__device__ __forceinline__ C sum_tile(const C (&x)[STEPS], i64 count, Shared& shared, int lane, int warp, int warps) {
  C sum = Number<C>::make(0);
#pragma unroll
  for (int i = 0; i < STEPS; i++)
    if (i < count) sum = add(sum, x[i]);
  shared.warp[warp][lane].b = sum;
  __syncthreads();
#pragma unroll 1
  for (int w = 1; warp == 0 && w < warps; w++) sum = add(sum, shared.warp[w][lane].b);
  __syncthreads();
  return sum;
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS)
scan(const __grid_constant__ Layout layout, const S* decay, const S* input, const S* history, S* out, S* slope,
     const u8* reset, const S* first_state, C* last_flow, u8* memory) {
  __shared__ Shared shared;
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const i64 length = layout.length, rows = layout.rows, tiles = layout.tiles, bundles = (rows + 31) / 32;
  const Operand* operand = layout.operand;
  const C zero = Number<C>::make(0), one = Number<C>::make(1);

  const Board<C> board = ::board<C>(memory, rows, tiles);
  const i64 tile_index = SPLIT ? blockIdx.x / bundles : 0;
  i64 bundle = blockIdx.x - tile_index * bundles;  // 32 rows
  for (; bundle < bundles; bundle += gridDim.x) {
    const bool mine = bundle * 32 + lane < rows;  // other lanes work on an empty row, and write nothing
    const i64 row = mine ? bundle * 32 + lane : rows - 1, own_length = mine ? length : 0;
    Place place = locate(layout, row);
    const bool turned = BOTH && (row >= rows / 2) != PULL;
    const auto time = [&](int n) { return turned ? -operand[n].time : operand[n].time; };
#pragma unroll
    for (int n = DECAY; turned && n <= SLOPE; n++) place.at[n] += (length - 1) * operand[n].time;
    const C known = first_state ? widen(first_state[place.at[FIRST]]) : zero;  // h0
    Carry<C> carry = {identity<C>(), PULL ? zero : known};
    C entering = carry.start;
    for (i64 k = tile_index; k < (SPLIT ? tile_index + 1 : tiles); k++) {
      const i64 first = (k * warps + warp) * STEPS;
      Run run;
      load(run.a, decay + place.at[DECAY], time(DECAY), first, own_length, one);
      load(run.b, input + place.at[INPUT], time(INPUT), first, own_length, zero);
      if (PULL) {
        load(run.before, history + place.at[BEFORE], time(BEFORE), first + 1, own_length, known);
#pragma unroll
        for (int i = 0; i < STEPS; i++) run.a[i] = conj(run.a[i]);
      }
      run.reset = 0;
      if (RESETS) {
        const u8* at = reset + place.at[RESET] + first * operand[RESET].time;
#pragma unroll
        for (int i = 0; i < STEPS; i++, at += operand[RESET].time)
          if (first + i < own_length && *at) run.reset |= 1u << i;
      }

      shared.warp[warp][lane] = run.composite();
      __syncthreads();
      Affine<C> all = identity<C>(), ahead = all;
#pragma unroll 1
      for (int w = 0; w < warps; w++) {
        if (w == warp) ahead = all;
        all = compose(shared.warp[w][lane], all);
      }
      if (SPLIT) {
        if (warp == 0 && mine) board.tell(board.map + k * rows + row, all);
        const int before = static_cast<int>(k % GROUP);
        const i64 slot = k * rows + row;
        const C* begin = k >= GROUP ? board.state + slot - (before + 1) * rows : nullptr;
        bool known = !begin, there = false;
        while (!there) {  // asked for together, because an answer takes as long as a hundred instructions
          there = true;
#pragma unroll
          for (int i = 0; i < GROUP; i += WARPS)
            if (i + warp < before) there = board.peek(board.map + slot - (before - i - warp) * rows, shared.group[i + warp][lane]) && there;
          if (!known) known = peek(begin, carry.start);
        }
        __syncthreads();
        bool tame = true;
#pragma unroll 4
        for (int i = 0; i < before; i++) {
          carry.prefix = compose(shared.group[i][lane], carry.prefix);
          tame = tame && is_tame(carry.prefix);
        }
        if (!known) carry.start = await(begin);
        if (!tame) carry = walk(board, row, k, carry.start);
        if (k) {
          entering = carry.next();
          if (!is_finite(entering)) entering = await(board.state + (k - 1) * rows + row);
        }
      }
      const bool ask = needs_left(carry, all);
      if (SPLIT && warp == 0 && mine && !ask && (k + 1) % GROUP == 0)
        publish(board.state + k * rows + row, apply(compose(all, carry.prefix), carry.start));

      C start = apply(ahead, entering);
      const bool good = is_finite(start) && is_tame(ahead.a);
      if (__syncthreads_or(!good)) start = in_order(run, start, entering, good, shared, lane, warp, warps);
      C left = run.over<true>(start);

      const bool is_last = warp == warps - 1;
      if (SPLIT && is_last && mine && ask) publish(board.state + k * rows + row, left);
      if (PULL && is_last && mine && k == tiles - 1) last_flow[row] = left;
      if (!SPLIT) {
        if (__any_sync(~0u, ask)) {  // the same in every warp, which all hold the same rows
          if (is_last) shared.state[lane] = left;
          __syncthreads();
          left = shared.state[lane];
          __syncthreads();
        }
        carry.pass(k, all, left);
        entering = carry.next();
        if (!is_finite(entering)) entering = left;
      }
      store(run.b, out + place.at[OUT], time(OUT), first, own_length);
      if (SUMMED) {
        const C sum = sum_tile(run.before, own_length - first, shared, lane, warp, warps);
        if (warp == 0 && mine) reinterpret_cast<C*>(slope)[k * rows + row] = sum;
      } else if (PULL) {
        store(run.before, slope + place.at[SLOPE], time(SLOPE), first, own_length);
      }
    }
    if (SPLIT) break;
  }
}
