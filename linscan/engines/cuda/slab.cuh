// Steps of COUNT neighbouring elements each, of a tile, in shared memory: every thread's steps in a piece of its own.
//
// Elements travel in grains of up to 16 bytes, the largest power of two that divides a step; pieces are an odd number of
// grains apart, so that threads that read the same place of their pieces hit different banks. Where a piece is one, there are
// no gaps, and a tile that lies in memory as it does here travels 16 bytes at a time, whatever its grains. So a tile whose
// time runs backwards is held turned: its last step first. Loads are asynchronous where a grain has at least four bytes and
// the card can (sm_80).
#pragma once
#include "numbers.cuh"

template <class S, int COUNT, int STEPS, int THREADS> struct Slab {
  static constexpr int BYTES = COUNT * sizeof(S);
  static constexpr int GRAIN = BYTES % 16 == 0 ? 16 : BYTES % 8 == 0 ? 8 : BYTES % 4 == 0 ? 4 : 2;
  static constexpr int EACH = BYTES / GRAIN;                      // grains of a step
  static constexpr int PIECE = (STEPS * EACH | 1) * GRAIN;        // bytes between two threads' steps
  static constexpr int HELD = GRAIN / sizeof(S);
  static constexpr bool FLAT = GRAIN < 16 && STEPS * EACH % 2 == 1;
  struct alignas(GRAIN) Grain { S item[HELD]; };
  alignas(16) u8 memory[THREADS * PIECE];

  __device__ __forceinline__ Grain* at(int slot, int grain = 0) {
    return reinterpret_cast<Grain*>(memory + slot / STEPS * PIECE) + slot % STEPS * EACH + grain;
  }
  template <class C> __device__ __forceinline__ void read(C (&x)[COUNT], int slot) {
    const Grain* from = at(slot);
#pragma unroll
    for (int g = 0; g < EACH; g++) {
      const Grain grain = from[g];
#pragma unroll
      for (int i = 0; i < HELD; i++) x[g * HELD + i] = widen(grain.item[i]);
    }
  }
  template <class C> __device__ __forceinline__ void write(const C (&x)[COUNT], int slot) {
    Grain* to = at(slot);
#pragma unroll
    for (int g = 0; g < EACH; g++) {
      Grain grain;
#pragma unroll
      for (int i = 0; i < HELD; i++) grain.item[i] = Narrow<S>::of(x[g * HELD + i]);
      to[g] = grain;
    }
  }
  // Steps 0 to `count` of the tile, `time` elements apart, the first at `from`; the first `threads` of the block call. Of a
  // tile that is held turned, `last` is its last step; else it is below 0.
  __device__ __forceinline__ void load(const S* from, i64 time, int count, int threads, int last) {
    const int packs = alike(from, time, count, last);
    const uint4* whole = reinterpret_cast<const uint4*>(from + (last < 0 ? 0 : last * time));
    for (int i = threadIdx.x; i < packs; i += threads) copy(reinterpret_cast<uint4*>(memory) + i, whole + i);
    each(packs * 16 / GRAIN, count, threads, last, [&](int step, int grain, Grain* here) {
      copy(here, reinterpret_cast<const Grain*>(from + step * time) + grain);
    });
  }
  __device__ __forceinline__ void store(S* to, i64 time, int count, int threads, int last) {
    const int packs = alike(to, time, count, last);
    uint4* whole = reinterpret_cast<uint4*>(to + (last < 0 ? 0 : last * time));
    for (int i = threadIdx.x; i < packs; i += threads) whole[i] = reinterpret_cast<const uint4*>(memory)[i];
    each(packs * 16 / GRAIN, count, threads, last,
         [&](int step, int grain, Grain* here) { reinterpret_cast<Grain*>(to + step * time)[grain] = *here; });
  }
  // How many packs of 16 bytes are the same in memory as here, from the first one on.
  static __device__ __forceinline__ int alike(const S* x, i64 time, int count, int last) {
    if (!FLAT || time != (last < 0 ? COUNT : -COUNT) || (last >= 0 && count != last + 1)) return 0;
    return reinterpret_cast<u64>(last < 0 ? x : x + last * time) % 16 ? 0 : count * BYTES / 16;
  }
  // The steps asked for so that they come to the second-level cache; one warp calls.
  static __device__ __forceinline__ void prefetch(const S* from, i64 time, int count, int lane) {
#ifdef __CUDA_ARCH__
    constexpr int LINE = BYTES < 128 ? 128 / BYTES : 1;  // steps of a line of the cache
    for (int step = lane * LINE; step < count; step += 32 * LINE)
      asm volatile("prefetch.global.L2 [%0];" ::"l"(from + step * time));
#endif
  }
  // Every grain of `count` steps but the first `done`, neighbouring threads having neighbouring ones. Where a warp's are whole
  // pieces, all that changes from one of a thread's grains to its next one are two sums.
  template <class Body> __device__ __forceinline__ void each(int done, int count, int threads, int last, Body body) {
    if constexpr (32 % (STEPS * EACH) == 0 && !FLAT) {
      const int apart = threads / EACH, grain = threadIdx.x % EACH;
      int step = threadIdx.x / EACH;
      Grain* here = at(step, grain);
#pragma unroll 4
      for (; step < count; step += apart, here += apart / STEPS * (PIECE / GRAIN)) body(step, grain, here);
    } else {
      for (int i = done + threadIdx.x; i < count * EACH; i += threads) {
        const int slot = i / EACH + (last < 0 ? 0 : last + 1 - count);
        body(last < 0 ? slot : last - slot, i % EACH, at(slot, i % EACH));
      }
    }
  }
  template <class Unit> static __device__ __forceinline__ void copy(Unit* to, const Unit* from) {
#if __CUDA_ARCH__ >= 800
    constexpr int SIZE = sizeof(Unit);
    if (SIZE >= 4) {
      const u32 place = static_cast<u32>(__cvta_generic_to_shared(to));
      asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(place), "l"(from), "n"(SIZE < 4 ? 4 : SIZE) : "memory");
      return;
    }
#endif
    *to = *from;
  }
};

// Until what this thread has asked for is there; a barrier then makes it so for the block.
__device__ __forceinline__ void arrived() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}
