// Enough of CUDA for a host compiler: a block's threads are threads, its barriers barriers, and blocks run one by one.
//
// Slow, and blind to races and memory models; but it is the device code itself that runs, on machines without a GPU.
#pragma once
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
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
inline thread_local Index threadIdx, blockIdx;
inline Index blockDim, gridDim;

struct Warp {
  std::unique_ptr<std::barrier<>> barrier = std::make_unique<std::barrier<>>(32);
  char word[32][32];
};
inline std::vector<Warp> warps;
inline std::unique_ptr<std::barrier<>> block;
inline std::vector<int> votes;
inline std::mutex atomic;

inline void __syncthreads() { block->arrive_and_wait(); }
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __syncwarp() { warps[threadIdx.x / 32].barrier->arrive_and_wait(); }
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
template <class T> T atomicMin(T* slot, T x) {
  std::lock_guard<std::mutex> guard(atomic);
  const T old = *slot;
  if (x < old) *slot = x;
  return old;
}

template <class Body> void launch(long long blocks, long long threads, Body body) {
  blockDim.x = threads, gridDim.x = blocks;
  warps = std::vector<Warp>(threads / 32);
  block = std::make_unique<std::barrier<>>(threads);
  votes.assign(threads, 0);
  std::vector<std::thread> running;
  for (unsigned i = 0; i < threads; i++)
    running.emplace_back([=] {
      threadIdx.x = i;
      for (unsigned b = 0; b < blocks; b++) {
        blockIdx.x = b;
        body();
        block->arrive_and_wait();
      }
    });
  for (std::thread& thread : running) thread.join();
}
