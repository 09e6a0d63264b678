// Enough of CUDA for a host compiler: a block's threads take turns, from barrier to barrier, and blocks run one by one.
//
// Blind to races and memory models; but it is the device code itself that runs, on machines without a GPU. A thread has a
// stack of its own, which makecontext begins; later switches are jumps, for those of ucontext go through the kernel.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __device__
#define __global__
#define __grid_constant__
#define __shared__ static
#define __forceinline__ inline
#define __noinline__
#define __align__(n) alignas(n)
#define __launch_bounds__(...)

struct Index { unsigned x; };
inline Index threadIdx, blockIdx, blockDim, gridDim;

struct Fiber {
  ucontext_t start;
  jmp_buf place;
  std::unique_ptr<char[]> stack{new char[1 << 18]};
  bool begun = false, done = false;
};
inline std::vector<Fiber> fibers;
inline jmp_buf scheduler;
inline std::function<void()> whole;  // what each of them runs

inline void wait_turn() {
  if (!_setjmp(fibers[threadIdx.x].place)) _longjmp(scheduler, 1);
}

struct Barrier {
  unsigned size = 0, arrived = 0, passed = 0;
  void arrive_and_wait() {
    const unsigned turn = passed;
    if (++arrived == size) arrived = 0, passed++;
    else
      while (passed == turn) wait_turn();
  }
};

struct Warp {
  Barrier barrier{32};
  char word[32][32];
};
inline std::vector<Warp> warps;
inline Barrier block;
inline std::vector<int> votes;

inline void __syncthreads() { block.arrive_and_wait(); }
inline Barrier some;
inline void some_meet(unsigned threads) { some.size = threads, some.arrive_and_wait(); }
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __syncwarp() { warps[threadIdx.x / 32].barrier.arrive_and_wait(); }
inline int __syncthreads_or(int vote) {
  votes[threadIdx.x] = vote;
  __syncthreads();
  int any = 0;
  for (int one : votes) any |= one != 0;
  __syncthreads();
  return any;
}
template <class T> T __shfl_sync(unsigned, T x, int lane) {
  Warp& warp = warps[threadIdx.x / 32];
  std::memcpy(warp.word[threadIdx.x % 32], &x, sizeof x);
  __syncwarp();
  std::memcpy(&x, warp.word[lane % 32], sizeof x);
  __syncwarp();
  return x;
}
template <class T> T __shfl_up_sync(unsigned all, T x, int by) {
  const int lane = threadIdx.x % 32;
  return __shfl_sync(all, x, lane < by ? lane : lane - by);
}
template <class T> T __shfl_down_sync(unsigned all, T x, int by) {
  const int lane = threadIdx.x % 32;
  return __shfl_sync(all, x, lane + by > 31 ? lane : lane + by);
}
template <class T> T __shfl_xor_sync(unsigned all, T x, int by) { return __shfl_sync(all, x, (threadIdx.x % 32) ^ by); }
inline int __any_sync(unsigned all, int vote) {
  int any = 0;
  for (int lane = 0; lane < 32; lane++) any |= __shfl_sync(all, vote, lane);
  return any;
}
inline int __all_sync(unsigned all, int vote) { return !__any_sync(all, !vote); }

inline float __fdividef(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline double __fma_rn(double x, double y, double z) { return std::fma(x, y, z); }
inline unsigned __ballot_sync(unsigned all, int vote) {
  unsigned votes = 0;
  for (int lane = 0; lane < 32; lane++) votes |= static_cast<unsigned>(__shfl_sync(all, vote, lane) != 0) << lane;
  return votes;
}
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __ffsll(long long bits) { return __builtin_ffsll(bits); }
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof x);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline double __longlong_as_double(long long bits) {
  double x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
template <class T> T __ldcs(const T* from) { return *from; }
template <class T> void __stcs(T* to, T x) { *to = x; }
inline long long __double_as_longlong(double x) {
  long long bits;
  std::memcpy(&bits, &x, sizeof x);
  return bits;
}
template <class T> T atomicMin(T* slot, T x) {
  const T old = *slot;
  if (x < old) *slot = x;
  return old;
}

template <class T> T atomicMax(T* slot, T x) {
  const T old = *slot;
  if (x > old) *slot = x;
  return old;
}

inline void begin() {
  whole();
  fibers[threadIdx.x].done = true;
  _longjmp(scheduler, 1);
}

template <class Body> void launch(long long blocks, long long threads, Body body) {
  blockDim.x = threads, gridDim.x = blocks;
  warps = std::vector<Warp>(threads / 32);
  block = Barrier{static_cast<unsigned>(threads)};
  votes.assign(threads, 0);
  fibers = std::vector<Fiber>(threads);
  whole = [=] {
    for (unsigned b = 0; b < blocks; b++) {
      blockIdx.x = b;
      body();
      block.arrive_and_wait();
    }
  };
  for (Fiber& fiber : fibers) {
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get(), fiber.start.uc_stack.ss_size = 1 << 18;
    makecontext(&fiber.start, begin, 0);
  }
  for (bool busy = true; busy;) {
    busy = false;
    for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++) {
      Fiber& fiber = fibers[threadIdx.x];
      if (fiber.done) continue;
      busy = true;
      if (_setjmp(scheduler)) continue;
      if (fiber.begun) _longjmp(fiber.place, 1);
      fiber.begun = true;
      setcontext(&fiber.start);
    }
  }
}
