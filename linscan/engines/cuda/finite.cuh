// Which of two 16-bit numbers in a word are not finite.
#pragma once
#include "numbers.cuh"

// The highest bit of either of two numbers says whether it is NaN or infinite: its exponent is all ones.
__device__ __forceinline__ u32 full(u32 two, bfloat16) { return (two & 0x7f807f80u) + 0x00800080u; }
__device__ __forceinline__ u32 full(u32 two, float16) { return (two & 0x7c007c00u) + 0x04000400u; }
template <class S> __device__ __forceinline__ bool not_finite(u32 two) { return full(two, S()) & 0x80008000u; }
__device__ __forceinline__ float not_a_number() { return __uint_as_float(0x7fc00000u); }
