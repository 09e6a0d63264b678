// z^(2^i) of every state of diagonal models, i < bits, in double precision. A thread owns a state.
#ifndef STORAGE
#define STORAGE complex64
#endif
#include "powers.cuh"

extern "C" __global__ void squares(const STORAGE* a, complex128* to, i64 count, int bits) {
  const i64 step = gridDim.x * static_cast<i64>(blockDim.x);
  for (i64 i = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x; i < count; i += step) {
    complex128 z = wide(widen(a[i]));
    for (int bit = 0; bit < bits; bit++, z = mul(z, z)) to[bit * count + i] = z;
  }
}
