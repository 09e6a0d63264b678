// Steps of COUNT neighbouring elements each, of a tile, in shared memory: every thread's steps in a piece of its own.
//
// Elements travel in grains of up to 16 bytes, the largest power of two that divides a step; pieces are an odd number of
// grains apart, so that threads that read the same place of their pieces hit different banks. Loads are asynchronous where
// a grain has at least four bytes and the card can (sm_80).
#pragma once
#include "numbers.cuh"

template <class S, int COUNT, int STEPS, int THREADS> struct Slab {
  static constexpr int BYTES = COUNT * sizeof(S);
  static constexpr int GRAIN = BYTES % 16 == 0 ? 16 : BYTES % 8 == 0 ? 8 : BYTES % 4 == 0 ? 4 : 2;
  static constexpr int EACH = BYTES / GRAIN;                      // grains of a step
  static constexpr int PIECE = (STEPS * EACH | 1) * GRAIN;        // bytes between two threads' steps
  static constexpr int HELD = GRAIN / sizeof(S);
  struct alignas(GRAIN) Grain { S item[HELD]; };
  alignas(16) u8 memory[THREADS * PIECE];

  __device__ __forceinline__ Grain* at(int step, int grain = 0) {
    return reinterpret_cast<Grain*>(memory + step / STEPS * PIECE) + step % STEPS * EACH + grain;
  }
  template <class C> __device__ __forceinline__ void read(C (&x)[COUNT], int step) {
    const Grain* from = at(step);
#pragma unroll
    for (int g = 0; g < EACH; g++) {
      const Grain grain = from[g];
#pragma unroll
      for (int i = 0; i < HELD; i++) x[g * HELD + i] = widen(grain.item[i]);
    }
  }
  template <class C> __device__ __forceinline__ void write(const C (&x)[COUNT], int step) {
    Grain* to = at(step);
#pragma unroll
    for (int g = 0; g < EACH; g++) {
      Grain grain;
#pragma unroll
      for (int i = 0; i < HELD; i++) grain.item[i] = Narrow<S>::of(x[g * HELD + i]);
      to[g] = grain;
    }
  }
  // Steps 0 to `count` of the tile, `time` elements apart, the first at `from`; the first `threads` of the block call.
  __device__ __forceinline__ void load(const S* from, i64 time, int count, int threads, int shift = 0) {
    each(count - shift, threads, [&](int step, int grain, Grain* here) {
      copy(here, reinterpret_cast<const Grain*>(from + (step + shift) * time) + grain);
    });
  }
  __device__ __forceinline__ void store(S* to, i64 time, int count, int threads) {
    each(count, threads, [&](int step, int grain, Grain* here) { reinterpret_cast<Grain*>(to + step * time)[grain] = *here; });
  }
  // Every grain of `count` steps, neighbouring threads having neighbouring ones. Where a warp's are whole pieces, all that
  // changes from one of a thread's grains to its next one are two sums.
  template <class Body> __device__ __forceinline__ void each(int count, int threads, Body body) {
    if constexpr (32 % (STEPS * EACH) == 0) {
      const int apart = threads / EACH, grain = threadIdx.x % EACH;
      int step = threadIdx.x / EACH;
      Grain* here = at(step, grain);
#pragma unroll 4
      for (; step < count; step += apart, here += apart / STEPS * (PIECE / GRAIN)) body(step, grain, here);
    } else {
      for (int i = threadIdx.x; i < count * EACH; i += threads) body(i / EACH, i % EACH, at(i / EACH, i % EACH));
    }
  }
  static __device__ __forceinline__ void copy(Grain* to, const Grain* from) {
#if __CUDA_ARCH__ >= 800
    if (GRAIN >= 4) {
      const u32 place = static_cast<u32>(__cvta_generic_to_shared(to));
      asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(place), "l"(from), "n"(GRAIN < 4 ? 4 : GRAIN) : "memory");
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
