// h[t] = A[t] h[t-1] + b[t] with matrices of N <= 8 rows, and its pullback, which runs against it:
//
//   scan       h    <- A h + b
//   pullback   flow <- A^H (flow + dh),  db = flow + dh,  dA = (flow + dh) conj(h_before)^T
//
// A block owns a tile: CHUNK consecutive steps for each of its threads, in shared memory (slab.cuh), where results take the
// place of inputs. A thread composes its steps' maps in registers, a warp scans the threads', the warps' are gone through
// in order; what enters the tile comes from the tiles before it (lookback.cuh), which one more warp finds out meanwhile.
// Then every thread runs its steps from their true starting state. Where composites are not good (an entry above 1024, or
// not finite) the tile is run in order.
//
// Bytes moved: every input once, every output once. Limits: those of layout.cuh; below 2^31 tiles.
#ifndef STORAGE
#define STORAGE float
#define N 4
#define PULLBACK 1
#define SLOPES 1
#define RESETS 1
#define CHUNK 4
#define WARPS 3
#define GROUP 32
#define BLOCKS 2
#endif
#include "blocks.cuh"
#include "layout.cuh"
#include "lookback.cuh"
#include "slab.cuh"

typedef STORAGE S;
typedef Compute<S>::type C;
typedef Vector<C> State;
typedef Block<C> Map;
constexpr bool PULL = PULLBACK, SLOPE_OUT = PULLBACK && SLOPES;
constexpr int THREADS = 32 * WARPS;
constexpr bool TURNS = N % 2;   // tiles whose time runs backwards are held turned (slab.cuh); steps of 16 bytes need not be
constexpr int PREFETCH = 64;    // how many blocks ahead the cache is told of a tile

struct Shared {
  Slab<S, N * N, CHUNK, THREADS> matrix;  // becomes dA
  Slab<S, N, CHUNK, THREADS> input;       // becomes h, or db
  Slab<S, N, SLOPE_OUT ? CHUNK : 1, SLOPE_OUT ? THREADS : 1> before;
  Map warp[WARPS], product[2], group;
  bool tame[WARPS];
  State entering, begin;
};

// The first `threads` of the block meet.
__device__ __forceinline__ void meet(int threads) {
#ifdef __CUDA_ARCH__
  asm volatile("bar.sync 1, %0;" ::"r"(threads) : "memory");
#else
  some_meet(threads);
#endif
}

struct Steps {
  Shared& shared;
  int first, count;  // of this thread in the tile; those past the end of the row do nothing
  u32 reset;
  int last;  // of a tile that is held turned, its last step; else below 0

  __device__ __forceinline__ int slot(int v) const { return TURNS && last >= 0 ? last - first - v : first + v; }

  __device__ __forceinline__ bool fresh(int v) const { return RESETS && (reset >> v & 1u); }
  __device__ __forceinline__ void read(C (&a)[N * N], C (&b)[N], int v) const {
    C given[N * N];
    shared.matrix.read(given, slot(v));
    shared.input.read(b, slot(v));
#pragma unroll
    for (int i = 0; i < N * N; i++) a[i] = PULL ? conj(given[i % N * N + i / N]) : given[i];
  }
  __device__ __forceinline__ Map step(int v) const {
    Map map;
    C b[N];
    read(map.a, b, v);
#pragma unroll
    for (int i = 0; i < N; i++) {
      C sum = b[i];
      if (PULL) {
        sum = mul(map.a[i * N], b[0]);
#pragma unroll
        for (int k = 1; k < N; k++) sum = mul_add(map.a[i * N + k], b[k], sum);
      }
      map.b[i] = sum;
    }
    if (fresh(v)) {
#pragma unroll
      for (int i = 0; i < N * N; i++) map.a[i] = Number<C>::make(0);
#pragma unroll
      for (int i = 0; i < N; i++) map.b[i] = PULL ? Number<C>::make(0) : map.b[i];
    }
    return map;
  }
  __device__ __forceinline__ Map composite() const {
    Map all = count > 0 ? step(0) : identity<Map>();
#pragma unroll 1
    for (int v = 1; v < count; v++) {
      const Map next = step(v);
      all = fresh(v) ? next : compose(next, all);
    }
    return all;
  }
  // From `state` over the steps; with WRITE, outputs take the place of inputs.
  template <bool WRITE> __device__ __forceinline__ State over(State state) const {
#pragma unroll 1
    for (int v = 0; v < count; v++) {
      Block<C> map;
      read(map.a, map.b, v);
      const bool forget = fresh(v);
      if (PULL) {
        C delta[N];
#pragma unroll
        for (int i = 0; i < N; i++) delta[i] = add(state.at[i], map.b[i]), map.b[i] = Number<C>::make(0);
        if (WRITE) shared.input.write(delta, slot(v));
        if (WRITE && SLOPE_OUT) slopes(delta, v);
#pragma unroll
        for (int i = 0; i < N; i++) state.at[i] = delta[i];
      }
      const State next = apply(map, state);
#pragma unroll
      for (int i = 0; i < N; i++) state.at[i] = forget ? map.b[i] : next.at[i];
      if (WRITE && !PULL) shared.input.write(state.at, slot(v));
    }
    return state;
  }
  __device__ __forceinline__ void slopes(const C (&delta)[N], int v) const {
    C before[N], slope[N * N];
    shared.before.read(before, slot(v));
#pragma unroll
    for (int i = 0; i < N * N; i++)
      slope[i] = fresh(v) ? Number<C>::make(0) : mul(delta[i / N], conj(before[i % N]));
    shared.matrix.write(slope, slot(v));
  }
};

// Loads the tile; of `before` the state before each step, which in the pullback's direction is the next one.
__device__ __forceinline__ void load_tile(Shared& shared, const Layout& layout, const Place& place, i64 first, int count, int threads, int last,
                                          const S* decay, const S* input, const S* history, const S* known) {
  const i64 a = layout.operand[DECAY].time, b = layout.operand[INPUT].time, h = layout.operand[BEFORE].time;
  shared.matrix.load(decay + place.at[DECAY] + first * a, a, count, threads, last);
  shared.input.load(input + place.at[INPUT] + first * b, b, count, threads, last);
  if (SLOPE_OUT) {
    const bool ends = first + count == layout.length;
    shared.before.load(history + place.at[BEFORE] + (first + 1) * h, h, count - ends, threads, last);
    if (ends && threadIdx.x < N) {
      S* slot = reinterpret_cast<S*>(shared.before.at(last < 0 ? count - 1 : 0));
      slot[threadIdx.x] = known ? known[place.at[FIRST] + threadIdx.x] : Narrow<S>::of(Number<C>::make(0));
    }
  }
}

// A tile's loads wait for room in shared memory; the memory need not wait, and the cache is told of a later tile of the row.
__device__ __forceinline__ void prefetch_ahead(Shared& shared, const Layout& layout, const Place& place, int k, int tile, int lane,
                                               const S* decay, const S* input) {
  const int ahead = PREFETCH / static_cast<u32>(layout.rows);
  const i64 first = (k + ahead) * i64(tile), left = layout.length - first;
  if (ahead == 0 || left <= 0) return;
  const int count = left > tile ? tile : static_cast<int>(left);
  const i64 a = layout.operand[DECAY].time, b = layout.operand[INPUT].time;
  shared.matrix.prefetch(decay + place.at[DECAY] + first * a, a, count, lane);
  shared.input.prefetch(input + place.at[INPUT] + first * b, b, count, lane);
}

extern "C" __global__ void __launch_bounds__(THREADS + 32, BLOCKS)
scan(const __grid_constant__ Layout layout, const S* decay, const S* input, const S* history, S* out, S* slope,
     const u8* reset, const S* first_state, C* last_flow, u8* memory) {
  __shared__ Shared shared;
  const u32 rows = static_cast<u32>(layout.rows);
  const int tiles = static_cast<int>(layout.tiles), k = blockIdx.x / rows, row = blockIdx.x % rows;
  const bool split = tiles > 1;  // then the last warp looks back
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, warps = blockDim.x / 32 - split, threads = 32 * warps;
  const int tile = threads * CHUNK;
  const i64 first = k * i64(tile);
  const int count = layout.length - first > tile ? tile : static_cast<int>(layout.length - first);
  const Place place = locate(layout, row);
  const Board<Map, State> board = ::board<Map, State>(memory, rows, tiles);

  const int last = TURNS && layout.operand[OUT].time < 0 ? count - 1 : -1;
  Steps steps = {shared, static_cast<int>(threadIdx.x) * CHUNK, 0, 0, last};
  steps.count = count - steps.first > CHUNK ? CHUNK : count - steps.first;
  State entering;
#pragma unroll
  for (int i = 0; i < N; i++)
    entering.at[i] = PULL || !first_state ? Number<C>::make(0) : widen(first_state[place.at[FIRST] + i]);
  Map ahead = identity<Map>();
  bool good = true, told = false;  // `told`: what this tile's group does is known, and may be used
  if (warp == warps) {
    prefetch_ahead(shared, layout, place, k, tile, lane, decay, input);
    State begin;
    entering = look_back(board, row, k, entering, begin, lane);
    if (lane == 0) shared.entering = entering, shared.begin = begin;
  } else {
    load_tile(shared, layout, place, first, count, threads, last, decay, input, history, first_state);
    if (RESETS) {
      const i64 time = layout.operand[RESET].time;
      for (int v = 0; v < steps.count; v++)
        if (reset[place.at[RESET] + (first + steps.first + v) * time]) steps.reset |= 1u << v;
    }
    arrived();
    meet(threads);
    const Map through = warp_compose(steps.composite(), lane);
    ahead = from_below(through, 1);
    good = is_good(through);
    const bool tame = __all_sync(~0u, good);
    if (lane == 31) shared.warp[warp] = through, shared.tame[warp] = tame;
    meet(threads);
    if (warp == 0 && split) {
      const Map* all = shared.warp;
      bool sound = shared.tame[0];
      for (int w = 1; w < warps; w++) {
        Map* const both = shared.product + (w & 1);
        sound = compose(*both, shared.warp[w], *all, lane) && sound && shared.tame[w];
        all = both;
      }
      told = publish(board, row, k, *all, sound, &shared.group, lane);
    }
    if (!split && threadIdx.x == 0) shared.entering = entering;
  }
  __syncthreads();
  if (threadIdx.x == 0 && told) {
    const State next = apply(shared.group, shared.begin);
    if (is_good(next)) board.begin[(k / GROUP + 1) * board.rows + row].tell(next, GOOD);
  }
  entering = shared.entering;
  State start = entering;
#pragma unroll 1
  for (int w = 0; w < warp && w < warps; w++) {
    const Map next = shared.warp[w];
    start = apply(next, start);
    good = good && is_good(next) && is_good(start);
  }
  if (lane) start = apply(ahead, start);
  good = good && is_good(start);
  if (__syncthreads_or(!good && warp < warps)) {  // strictly in order
#pragma unroll 1
    for (int i = 0; i < threads; i++) {
      if (threadIdx.x == i) start = shared.entering, shared.entering = steps.over<false>(start);
      __syncthreads();
    }
  }
  const State left = steps.over<true>(start);
  if (threadIdx.x == threads - 1) {
    if (k + 1 < tiles) leave(board, row, k, left);
    if (PULL && k + 1 == tiles)
      for (int i = 0; i < N; i++) last_flow[i64(row) * N + i] = left.at[i];
  }
  __syncthreads();
  if (warp == warps) return;
  const i64 h = layout.operand[OUT].time, g = layout.operand[SLOPE].time;
  shared.input.store(out + place.at[OUT] + first * h, h, count, threads, last);
  if (SLOPE_OUT) shared.matrix.store(slope + place.at[SLOPE] + first * g, g, count, threads, last);
}
