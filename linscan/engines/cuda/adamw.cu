// One step of AdamW on a long array of parameters, in place; one thread to each.
//
// Bytes moved: x, m and v there and back, g once.
#ifndef STORAGE  // the launcher's macro, as the tests compile it
#define STORAGE float
#endif
#include "numbers.cuh"

typedef STORAGE S;

struct Rates {
  double shrink, rate, first, second, correction, eps;  // x (1 - rate decay); rate / (1 - b1^t), 1 - b1, 1 - b2, 1 - b2^t
};

extern "C" __global__ void adamw(S* x, const S* g, S* m, S* v, const S* share, const Rates rates, i64 size) {
  const i64 i = blockIdx.x * i64(blockDim.x) + threadIdx.x;
  if (i >= size) return;
  const S slope = g[i] * *share, first = mul_add(S(rates.first), slope - m[i], m[i]);
  const S second = mul_add(S(rates.second), slope * slope - v[i], v[i]);
  const S root = sqrt(second / S(rates.correction)) + S(rates.eps);
  m[i] = first, v[i] = second;
  x[i] = x[i] * S(rates.shrink) - S(rates.rate) * first / root;
}
