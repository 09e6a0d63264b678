// Tiles of a row whose time axis is the last one. A warp owns ROWS lines of 32 chunks of CHUNK neighbouring steps:
//
//   item (j, lane, v) of a warp's run is step  j * 32 * CHUNK + lane * CHUNK + v.
//
// Three ways of reading and writing, the same for every thread of a block, none of which changes any arithmetic:
//   VECTOR    neighbouring in memory and aligned: 16-byte accesses
//   STAGED    anything else: single elements, neighbouring lanes on neighbouring steps, turned in shared memory
//   CONSTANT  the same element at every step (reading only)
// Loading and turning are two functions, so that several operands' loads are under way before the first is waited for.
// Steps past the row's end read as `fill` and are not written. With SPLIT the data is told to leave the cache first: what
// blocks tell each other has to stay there.
#pragma once
#include "layout.cuh"

constexpr bool AHEAD = !REVERSED;  // VECTOR operands lie in this direction
constexpr int ITEMS = ROWS * CHUNK, RUN = 32 * ITEMS;  // steps of a thread and of a warp

// A thread's items of one operand, as they are stored: 16-bit numbers two to a register.
template <class S> struct Half { static constexpr bool value = false; };
template <> struct Half<float16> { static constexpr bool value = true; };
template <> struct Half<bfloat16> { static constexpr bool value = true; };

template <class S, bool HALVES = Half<S>::value> struct Items {
  static constexpr int PACK = 16 / sizeof(S);
  struct alignas(16) Pack { S item[PACK]; };
  S item[ITEMS];

  __device__ __forceinline__ S get(int i) const { return item[i]; }
  __device__ __forceinline__ S single(int i) const { return item[i]; }
  __device__ __forceinline__ void set(int i, S x) { item[i] = x; }
  __device__ __forceinline__ void put(int j, const S (&x)[CHUNK]) {
#pragma unroll
    for (int v = 0; v < CHUNK; v++) item[j * CHUNK + v] = x[v];
  }
  __device__ __forceinline__ void unpack(int i, uint4 raw, bool ahead) {
    const Pack& pack = reinterpret_cast<const Pack&>(raw);
#pragma unroll
    for (int p = 0; p < PACK; p++) item[i + p] = pack.item[ahead ? p : PACK - 1 - p];
  }
  __device__ __forceinline__ uint4 pack(int i, bool ahead) const {
    Pack pack;
#pragma unroll
    for (int p = 0; p < PACK; p++) pack.item[p] = item[i + (ahead ? p : PACK - 1 - p)];
    return reinterpret_cast<const uint4&>(pack);
  }
};

template <class S> struct Items<S, true> {
  static constexpr int PACK = 8;
  u32 word[ITEMS / 2];

  static __device__ __forceinline__ u32 swap(u32 x) { return x << 16 | x >> 16; }
  __device__ __forceinline__ float get(int i) const { return i & 1 ? high(word[i / 2], S()) : low(word[i / 2], S()); }
  __device__ __forceinline__ S single(int i) const {
    S x;
    x.bits = static_cast<u16>(word[i / 2] >> (i & 1) * 16);
    return x;
  }
  __device__ __forceinline__ void set(int i, S x) {  // an even i first
    word[i / 2] = i & 1 ? word[i / 2] | static_cast<u32>(x.bits) << 16 : x.bits;
  }
  __device__ __forceinline__ void put(int j, const float (&x)[CHUNK]) {
#pragma unroll
    for (int v = 0; v < CHUNK; v += 2) word[(j * CHUNK + v) / 2] = ::pair<S>(x[v], x[v + 1]);
  }
  __device__ __forceinline__ void unpack(int i, uint4 x, bool ahead) {
    word[i / 2] = ahead ? x.x : swap(x.w), word[i / 2 + 1] = ahead ? x.y : swap(x.z);
    word[i / 2 + 2] = ahead ? x.z : swap(x.y), word[i / 2 + 3] = ahead ? x.w : swap(x.x);
  }
  __device__ __forceinline__ uint4 pack(int i, bool ahead) const {
    const u32 *x = word + i / 2;
    return ahead ? make_uint4(x[0], x[1], x[2], x[3]) : make_uint4(swap(x[3]), swap(x[2]), swap(x[1]), swap(x[0]));
  }
};

// The step of item i, counted from the start of the warp's run.
__device__ __forceinline__ int step_of(int i, int lane) { return (i / CHUNK * 32 + lane) * CHUNK + i % CHUNK; }

// In what follows `from` and `to` point at the run's first step, of `count` steps that are left in the row.
template <class S>
__device__ __forceinline__ void load(Items<S>& x, const S* from, i64 time, i64 mode, int count, S fill, int lane) {
  constexpr int PACK = Items<S>::PACK;
  if (mode == VECTOR && count >= RUN) {
    const S* at = AHEAD ? from + lane * CHUNK : from - lane * CHUNK - (PACK - 1);
#pragma unroll
    for (int i = 0; i < ITEMS; i += PACK) {
      const uint4* pack = reinterpret_cast<const uint4*>(AHEAD ? at + step_of(i, 0) : at - step_of(i, 0));
      x.unpack(i, SPLIT ? __ldcs(pack) : *pack, AHEAD);
    }
  } else if (mode == VECTOR) {
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
      const int t = step_of(i, lane);
      x.set(i, t < count ? AHEAD ? from[t] : from[-t] : fill);
    }
  } else if (mode == CONSTANT) {
    const S value = *from;
#pragma unroll
    for (int i = 0; i < ITEMS; i++) x.set(i, step_of(i, lane) < count ? value : fill);
  } else {
    const S* at = from + lane * time;
#pragma unroll
    for (int i = 0; i < ITEMS; i++, at += 32 * time) x.set(i, i * 32 + lane < count ? *at : fill);
  }
}

// Ask for all of a tile's steps, from `first` on: they come to the second-level cache.
template <class S> __device__ __forceinline__ void prefetch(const S* from, i64 time, i64 first, i64 length) {
  if (time != 1 && time != -1) return;
  constexpr int LINE = 128 / sizeof(S);
  for (int i = threadIdx.x * LINE; i < WARPS * RUN; i += blockDim.x * LINE)
    if (first + i < length) asm volatile("prefetch.global.L2 [%0];" ::"l"(from + (first + i) * time));
}

template <class S> __device__ __forceinline__ void turn_in(Items<S>& x, i64 mode, S* turn, int lane) {
  if (mode != STAGED) return;
#pragma unroll
  for (int i = 0; i < ITEMS; i++) turn[i * 32 + lane] = x.single(i);
  __syncwarp();
#pragma unroll
  for (int i = 0; i < ITEMS; i += Items<S>::PACK)
    x.unpack(i, *reinterpret_cast<const uint4*>(turn + step_of(i, lane)), true);
  __syncwarp();
}

template <class S>
__device__ __forceinline__ void store(const Items<S>& x, S* to, i64 time, i64 mode, int count, S* turn, int lane) {
  constexpr int PACK = Items<S>::PACK;
  if (mode == VECTOR && count >= RUN) {
    S* at = AHEAD ? to + lane * CHUNK : to - lane * CHUNK - (PACK - 1);
#pragma unroll
    for (int i = 0; i < ITEMS; i += PACK) {
      uint4* pack = reinterpret_cast<uint4*>(AHEAD ? at + step_of(i, 0) : at - step_of(i, 0));
      if (SPLIT) __stcs(pack, x.pack(i, AHEAD));
      else *pack = x.pack(i, AHEAD);
    }
  } else {
#pragma unroll
    for (int i = 0; i < ITEMS; i += PACK) *reinterpret_cast<uint4*>(turn + step_of(i, lane)) = x.pack(i, true);
    __syncwarp();
    S* at = to + lane * time;
#pragma unroll
    for (int i = 0; i < ITEMS; i++, at += 32 * time)
      if (i * 32 + lane < count) *at = turn[i * 32 + lane];
    __syncwarp();
  }
}

// What follows each chunk's last item: the next chunk's first, or in the last lane the next line's, or the next run's.
template <class S, class C>
__device__ __forceinline__ void edges(C (&edge)[ROWS], const Items<S>& x, const S* from, i64 time, int count, S fill, int lane) {
  const C beyond = widen(RUN < count ? from[RUN * time] : fill);
#pragma unroll
  for (int j = 0; j < ROWS; j++) {
    const C next = shuffle_down(x.get(j * CHUNK), 1);
    const C line = j + 1 < ROWS ? shuffle(x.get((j + 1) % ROWS * CHUNK), 0) : beyond;
    edge[j] = lane == 31 ? line : next;
  }
}

// Bit i is set where item i starts a new sequence.
__device__ __forceinline__ u32 resets(const u8* from, i64 time, int count, int lane) {
  u32 mask = 0;
#pragma unroll
  for (int i = 0; i < ITEMS; i++) {
    const int t = step_of(i, lane);
    if (t < count && from[t * time]) mask |= 1u << i;
  }
  return mask;
}
