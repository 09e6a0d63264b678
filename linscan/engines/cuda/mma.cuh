// Tensor cores with float32 sums: 16 x 8 products over 16 of 16-bit numbers; 8 x 8 tiles out of shared memory.
//
// Of a warp, lane 4 g + t holds (row, column) as pairs of neighbouring columns:
//   A  16 x 16   (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8)
//   B  16 x 8    (2t, g), (2t + 8, g), neighbours being rows here
//   D  16 x 8    (g, 2t), (g + 8, 2t)
#pragma once
#include "numbers.cuh"

__device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, bfloat16) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}
__device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, float16) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// Two numbers as float16 in one word, and back.
__device__ __forceinline__ u32 halves(float x, float y) { return pair<float16>(x, y); }
__device__ __forceinline__ float2 both(u32 word) { return {low(word, float16()), high(word, float16())}; }

// Four 8 x 8 tiles, of which lane l points at row l % 8 of tile l / 8; with TURNED each is transposed on the way.
template <bool TURNED> __device__ __forceinline__ void load_tiles(u32 (&x)[4], const void* row) {
  const u32 at = static_cast<u32>(__cvta_generic_to_shared(row));
  if (TURNED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(at));
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(at));
}

// An 8 x 8 tile of pairs, transposed.
__device__ __forceinline__ u32 transposed(u32 x) {
  u32 y;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// Fetches 128 bytes into the cache.
__device__ __forceinline__ void prefetch(const void* at) {
#if __CUDA_ARCH__
  asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
#endif
}

// 16 bytes to shared memory in the background, zeros if not `present`; here after `arrived`, of all but the LATER last
// commits, and a barrier.
__device__ __forceinline__ void copy16(void* to, const void* from, bool present) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<u32>(__cvta_generic_to_shared(to))), "l"(from),
               "r"(present ? 16 : 0)
               : "memory");
#endif
}
__device__ __forceinline__ void commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int LATER> __device__ __forceinline__ void arrived() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(LATER) : "memory");
#endif
}
