// dg of linear attention with one decay a step, from <S, dS> between chunks and q . dq, k . dk at every step:
//   dg[t] = <e^g[t] S[t-1], dS[t]>,   dg[t+1] = dg[t] + k[t] . dk[t] - q[t] . dq[t].
// The sums begin anew in each chunk, for over a whole sequence they would be small differences of large numbers.
//
// A warp owns a chunk, a lane two steps. All three come in parts, (part, row, ...), that are added here; `dots` and `written`
// run backwards in time. Bytes moved: the parts, g and dg once.
#include "layout.cuh"

constexpr int STEPS = 64;

// What the three are made of.
struct Parts { i64 dots, read, written; };

__device__ __forceinline__ float total(const float* x, i64 parts, i64 apart) {
  float sum = 0.0f;
  for (i64 n = 0; n < parts; n++) sum += x[n * apart];
  return sum;
}

extern "C" __global__ void gates(const __grid_constant__ Layout layout, const float* g, const float* dots, const float* read,
                                 const float* written, float* dg, double scale, const __grid_constant__ Parts parts) {
  const i64 length = layout.length, chunks = (length + STEPS - 1) / STEPS, each = layout.rows * length;
  const i64 index = (blockIdx.x * i64(blockDim.x) + threadIdx.x) / 32, row = index / chunks, chunk = index % chunks;
  if (row >= layout.rows) return;
  const int lane = threadIdx.x & 31;
  const i64 t0 = chunk * STEPS + 2 * lane;
  g += locate(layout, row).at[0];
  float flow[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const i64 before = t0 + i - 1;
    if (lane + i == 0) {
      flow[i] = expf(g[t0 * layout.operand[0].time]) * (static_cast<float>(scale) *
                total(dots + row * chunks + chunks - 1 - chunk, parts.dots, layout.rows * chunks));
    } else {
      flow[i] = before + 1 < length ? total(written + row * length + length - 1 - before, parts.written, each) -
                                          total(read + row * length + before, parts.read, each)
                                    : 0.0f;
    }
  }
  float sum = flow[0] + flow[1];
#pragma unroll
  for (int by = 1; by < 32; by *= 2) {
    const float left = shuffle_up(sum, by);
    if (lane >= by) sum += left;
  }
  sum = shuffle_up(sum, 1);
  if (!lane) sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    sum += flow[i];
    const i64 t = t0 + i;
    if (t < length) dg[row * length + t] = expf(g[t * layout.operand[0].time]) == 0.0f ? 0.0f : sum;
  }
}
