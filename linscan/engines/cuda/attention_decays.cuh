// The decays of a chunk of linear attention, one a step: what lies between two of its steps.
#pragma once
#include "attention_tiles.cuh"

constexpr bool SINGLE = sizeof(S) == 4;  // float32 arrays: their decays are exact
constexpr float FORGET = -88.0f;  // e^g below the smallest normal number: what was before is no more

// Of the steps of a chunk.
struct Gates {
  float sum[STEPS], after[STEPS];  // W, and e^(W[63] - W)
  float rest[STEPS], gate[STEPS];  // of float32 arrays: what W is more than `sum`, and g
  int cut[STEPS];  // the last step up to here that forgets, -1 if the state before the chunk is still seen
};

// Two steps a lane; steps outside have a decay of 1.
__device__ __forceinline__ void logarithms(float (&x)[2], const float* g, i64 time, int begin, int end, int lane) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int t = 2 * lane + i;
    x[i] = DECAYS && begin <= t && t < end ? g[t * time] : 0.0f;
  }
}

__device__ __forceinline__ float exponential(float x) { return SINGLE ? expf(x) : __expf(x); }

template <class T> struct Sum { typedef float type; };
template <> struct Sum<float> { typedef double type; };  // differences of W are as exact as their exponential

// Sums of g over the chunk; one warp.
__device__ __forceinline__ void gates(Gates& to, const float (&g)[2], int lane) {
  typename Sum<S>::type sum[2];
  int cut[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const bool forgets = g[i] < FORGET;
    cut[i] = forgets ? 2 * lane + i : i ? cut[0] : -1;
    if (SINGLE) to.gate[2 * lane + i] = g[i];
    sum[i] = forgets ? 0.0f : g[i];
    if (i && !forgets) sum[1] += sum[0];
  }
  typename Sum<S>::type before = sum[1];
  int last = cut[1];
#pragma unroll
  for (int by = 1; by < 32; by *= 2) {
    const typename Sum<S>::type left = shuffle_up(before, by);
    const int cut_left = shuffle_up(last, by);
    if (lane >= by && last < 0) before += left, last = cut_left;
  }
  const typename Sum<S>::type all = shuffle(before, 31);
  const int end = shuffle(last, 31);
  before = shuffle_up(before, 1), last = shuffle_up(last, 1);
  if (!lane) before = 0, last = -1;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const bool open = cut[i] < 0;
    const int s = 2 * lane + i;
    sum[i] = open ? before + sum[i] : sum[i];
    to.sum[s] = static_cast<float>(sum[i]);
    if (SINGLE) to.rest[s] = static_cast<float>(sum[i] - to.sum[s]);
    to.cut[s] = open ? last : cut[i];
    to.after[s] = s >= end ? exponential(static_cast<float>(all - sum[i])) : 0.0f;
  }
}

// e^(W[t] - W[s]), zero where step t no longer sees step s. A sum that restarts is below any that went before.
__device__ __forceinline__ float between(const Gates& gates, int t, int s) {
  if (s < gates.cut[t]) return 0.0f;
  const float apart = gates.sum[t] - gates.sum[s];
  return exponential(SINGLE ? apart + (gates.rest[t] - gates.rest[s]) : apart);
}
__device__ __forceinline__ float since_start(const Gates& gates, int t) { return gates.cut[t] < 0 ? exponential(gates.sum[t]) : 0.0f; }
