// The Cauchy sums of a diagonal plus low-rank kernel, in double precision whatever the dtype:
//
//   sums[j, k] = sum_n w[j, n] / D[n, k],   D[n, k] = base_k + alpha_n p_k + beta_n q_k,   w, alpha, beta real,
//
// and their gradient: dw[j, n] = Re sum_k g[j, k] conj(1 / D) and, with dD = -conj(1 / D^2) sum_j w[j, n] g[j, k],
// dalpha_n = Re sum_k dD conj(p_k), dbeta_n = Re sum_k dD conj(q_k).
//
// A reciprocal serves SUMS values of j. Forward, a thread owns a node k, the block a batch of states in shared memory.
// Backward, a warp owns a state and its lanes the nodes of a tile; sums over lanes and, in `finish`, over tiles have a
// fixed order. Bytes moved: the sums once for every SUMS of them. Limits: below 2^63 elements.
#include "numbers.cuh"

constexpr int THREADS = 128, SUMS = 8, STATES = 32, NODES = 128, WARPS = THREADS / 32, PARTS = 2 + SUMS;

__device__ __forceinline__ complex128 reciprocal(double alpha, double beta, complex128 base, complex128 p,
                                                 complex128 q) {
  const complex128 d = mul_add(beta, q, mul_add(alpha, p, base));
  const double scale = 1.0 / mul_add(d.re, d.re, d.im * d.im);
  return {d.re * scale, -d.im * scale};
}

__device__ __forceinline__ int at_most_of(i64 left, int limit) { return left < limit ? static_cast<int>(left) : limit; }

extern "C" __global__ void __launch_bounds__(THREADS)
cauchy(const double* alpha, const double* beta, const double* w, const complex128* base, const complex128* p,
       const complex128* q, complex128* sums, i64 channels, i64 count, i64 states, i64 nodes) {
  __shared__ double mode[2][STATES], weight[SUMS][STATES];
  const i64 tiles = (nodes + THREADS - 1) / THREADS, groups = (count + SUMS - 1) / SUMS;
  for (i64 unit = blockIdx.x; unit < channels * groups * tiles; unit += gridDim.x) {
    const i64 row = unit / tiles, channel = row / groups, first = row % groups * SUMS;
    const i64 k = (unit - row * tiles) * THREADS + threadIdx.x, node = k < nodes ? k : nodes - 1;
    const int here = at_most_of(count - first, SUMS);
    const complex128 b = base[node], x = p[node], y = q[node];
    complex128 sum[SUMS] = {};
    for (i64 n0 = 0; n0 < states; n0 += STATES) {
      const int batch = at_most_of(states - n0, STATES);
      for (int i = threadIdx.x; i < STATES * (SUMS + 2); i += THREADS) {
        const int n = i % STATES, j = i / STATES;
        if (n >= batch) continue;
        if (j < SUMS) weight[j][n] = j < here ? w[(channel * count + first + j) * states + n0 + n] : 0.0;
        else mode[j - SUMS][n] = (j == SUMS ? alpha : beta)[channel * states + n0 + n];
      }
      __syncthreads();
      for (int n = 0; n < batch; n++) {
        const complex128 term = reciprocal(mode[0][n], mode[1][n], b, x, y);
#pragma unroll
        for (int j = 0; j < SUMS; j++) sum[j] = mul_add(weight[j][n], term, sum[j]);
      }
      __syncthreads();
    }
#pragma unroll
    for (int j = 0; j < SUMS; j++)
      if (k < nodes && j < here) sums[(channel * count + first + j) * nodes + k] = sum[j];
  }
}

__device__ __forceinline__ double dot(complex128 x, complex128 y) { return mul_add(x.re, y.re, x.im * y.im); }

extern "C" __global__ void __launch_bounds__(THREADS)
cauchy_back(const double* alpha, const double* beta, const double* w, const complex128* base, const complex128* p,
            const complex128* q, const complex128* dsums, double* partial, i64 channels, i64 count, i64 states,
            i64 nodes) {
  __shared__ complex128 flow[SUMS][NODES], node[3][NODES];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const i64 tiles = (nodes + NODES - 1) / NODES, groups = (count + SUMS - 1) / SUMS;
  for (i64 unit = blockIdx.x; unit < channels * groups * tiles; unit += gridDim.x) {
    const i64 row = unit / tiles, k0 = (unit - row * tiles) * NODES, channel = row / groups;
    const i64 first = row % groups * SUMS;
    const int here = at_most_of(count - first, SUMS), width = at_most_of(nodes - k0, NODES);
    for (int i = threadIdx.x; i < NODES * (SUMS + 3); i += THREADS) {
      const int k = i % NODES, j = i / NODES;
      if (k >= width) continue;
      if (j < SUMS)
        flow[j][k] = j < here ? dsums[(channel * count + first + j) * nodes + k0 + k] : complex128{0.0, 0.0};
      else node[j - SUMS][k] = (j == SUMS ? base : j == SUMS + 1 ? p : q)[k0 + k];
    }
    __syncthreads();
    for (i64 n = warp; n < states; n += WARPS) {
      const double a = alpha[channel * states + n], b = beta[channel * states + n];
      double found[PARTS] = {}, weight[SUMS];
#pragma unroll
      for (int j = 0; j < SUMS; j++) weight[j] = j < here ? w[(channel * count + first + j) * states + n] : 0.0;
      for (int k = lane; k < width; k += 32) {
        const complex128 y = reciprocal(a, b, node[0][k], node[1][k], node[2][k]);
        complex128 e = {};
#pragma unroll
        for (int j = 0; j < SUMS; j++) {
          const complex128 g = flow[j][k];
          e = mul_add(weight[j], g, e);
          found[2 + j] += dot(g, y);
        }
        const complex128 d = negative(mul(conj(mul(y, y)), e));
        found[0] += dot(d, node[1][k]);
        found[1] += dot(d, node[2][k]);
      }
#pragma unroll
      for (int i = 0; i < PARTS; i++) {
#pragma unroll
        for (int by = 16; by; by /= 2) found[i] += shuffle_down(found[i], by);
        if (lane == 0) partial[(unit * states + n) * PARTS + i] = found[i];
      }
    }
    __syncthreads();
  }
}

// Tiles, and for alpha and beta groups of sums too, one after the other.
extern "C" __global__ void finish(const double* partial, double* dalpha, double* dbeta, double* dw, i64 channels,
                                  i64 count, i64 states, i64 nodes) {
  const i64 tiles = (nodes + NODES - 1) / NODES, groups = (count + SUMS - 1) / SUMS, rows = channels * (2 + count);
  const i64 begin = blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x;
  const i64 step = gridDim.x * static_cast<i64>(blockDim.x);
  for (i64 item = begin; item < rows * states; item += step) {
    const i64 row = item / states, n = item - row * states, channel = row / (2 + count);
    const i64 j = row - channel * (2 + count) - 2;  // -2 is alpha, -1 beta
    const i64 first = j < 0 ? 0 : j / SUMS, last = j < 0 ? groups : first + 1, part = j < 0 ? 2 + j : 2 + j % SUMS;
    double sum = 0.0;
    for (i64 unit = (channel * groups + first) * tiles; unit < (channel * groups + last) * tiles; unit++)
      sum += partial[(unit * states + n) * PARTS + part];
    double* to = j < 0 ? (j == -2 ? dalpha : dbeta) + channel * states : dw + (channel * count + j) * states;
    to[n] = sum;
  }
}
