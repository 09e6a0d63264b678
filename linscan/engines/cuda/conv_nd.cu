// What surrounds cuFFT in a convolution over up to three axes, y[t] = sum of k[j] u[start + t - j], t and j triples:
//   pad     rows of the signal, cast and padded with zeros, into boxes of numbers; NaN and inf are marked (conv.cuh)
//   window  the part of each box that is asked for into the result
//   mend    rows with NaN or inf: adds what the plain sum has of them. Ends at once where there are none.
// A row is all of one signal; a warp has one line of it at a time, along the last axis. The product of the spectra is that
// of conv_passes.cu.
//
// Bytes moved: what is read and written once each; limits: three axes (missing ones have size 1), six batch axes.
#ifndef STORAGE  // one variant, for a compiler that is only asked whether this compiles
#define STORAGE float
#endif
#include "conv.cuh"

constexpr int THREADS = 256, WARPS = THREADS / 32;
struct Box { i64 size[3], step[3]; };  // of an array's last three axes
struct Sum { i64 start[3], period[3]; };  // period: of circular axes; 0 of others

// Calls at(row, i, j) for every line of every row of this batch.
template <class F> __device__ __forceinline__ void lines_of(const Window& w, const i64 (&size)[3], F at) {
  const i64 warp = static_cast<i64>(blockIdx.x) * WARPS + threadIdx.x / 32, lines = size[0] * size[1];
  for (i64 line = warp; line < w.count * lines; line += static_cast<i64>(gridDim.x) * WARPS) {
    const i64 row = line / lines, rest = line - row * lines;
    at(row, rest / size[1], rest % size[1]);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
pad(const __grid_constant__ Layout layout, const __grid_constant__ Window w, const __grid_constant__ Box from,
    const __grid_constant__ Box to, const S* u, C* boxes, u8* mark) {
  const int lane = threadIdx.x & 31;
  lines_of(w, to.size, [&](i64 row, i64 i, i64 j) {
    const Place place = locate(layout, w.begin + row);
    const S* line = u + place.at[INPUT_ROW] + i * from.step[0] + j * from.step[1];
    C* out = boxes + ((row * to.size[0] + i) * to.size[1] + j) * to.size[2];
    const i64 count = i < from.size[0] && j < from.size[1] ? from.size[2] : 0;
    bool bad = false;
    for (i64 l = lane; l < to.size[2]; l += 32)
      out[l] = l < count ? clean(widen(line[l * from.step[2]]), bad) : Number<C>::make(0);
    if (bad) mark[place.at[INPUT_MARK]] = 1;
  });
}

extern "C" __global__ void __launch_bounds__(THREADS)
window(const __grid_constant__ Layout layout, const __grid_constant__ Window w, const __grid_constant__ Box from,
       const __grid_constant__ Box to, const __grid_constant__ Sum sum, const C* boxes, S* y) {
  const int lane = threadIdx.x & 31;
  lines_of(w, to.size, [&](i64 row, i64 i, i64 j) {
    const Place place = locate(layout, w.begin + row);
    S* line = y + place.at[OUTPUT_ROW] + i * to.step[0] + j * to.step[1];
    const i64 first = (row * from.size[0] + sum.start[0] + i) * from.size[1] + sum.start[1] + j;
    for (i64 l = lane; l < to.size[2]; l += 32)
      line[l * to.step[2]] = Narrow<S>::of(boxes[first * from.size[2] + sum.start[2] + l]);
  });
}

__device__ __forceinline__ bool is_nan(float x) { return x != x; }
__device__ __forceinline__ bool is_nan(double x) { return x != x; }
template <class R> __device__ __forceinline__ bool is_nan(complex<R> x) { return is_nan(x.re) || is_nan(x.im); }

// The index of the output that s and j meet at, along one axis; whether there is one.
__device__ __forceinline__ bool meets(i64& t, i64 s, i64 j, const Sum& sum, int axis, i64 length) {
  t = s + j - sum.start[axis];
  if (sum.period[axis] && t >= sum.period[axis]) t -= sum.period[axis];  // neither is longer than the period
  return t >= 0 && t < length;
}

// Adds x[s] z[j] to the output where they meet, for every s at which x is not finite; runs of NaN along a line at once.
__device__ __forceinline__ void add_terms(const S* x, const Box& in, const S* z, const Box& taps, S* y, const Box& out, const Sum& sum) {
  __shared__ u32 bad_words[WARPS], nan_words[WARPS];
  const i64 tiles = (in.size[2] + THREADS - 1) / THREADS;
  for (i64 tile = 0; tile < in.size[0] * in.size[1] * tiles; tile++) {
    const i64 line = tile / tiles, first = tile % tiles * THREADS, i = line / in.size[1], j = line % in.size[1];
    const S* from = x + i * in.step[0] + j * in.step[1];
    const i64 mine = first + threadIdx.x;
    const C own = mine < in.size[2] ? widen(from[mine * in.step[2]]) : Number<C>::make(0);
    const u32 bad = __ballot_sync(~0u, !is_finite(own)), nan = __ballot_sync(~0u, is_nan(own));
    if ((threadIdx.x & 31) == 0) bad_words[threadIdx.x / 32] = bad, nan_words[threadIdx.x / 32] = nan;
    __syncthreads();
    for (int word = 0; word < WARPS; word++) {
      for (u32 left = bad_words[word]; left;) {
        const int bit = __ffs(left) - 1;
        const u32 nans = nan_words[word] >> bit;
        const int run = nans & 1u ? nans == ~0u ? 32 : __ffs(~nans) - 1 : 1;
        left = bit + run < 32 ? left >> (bit + run) << (bit + run) : 0;
        const i64 s = first + word * 32 + bit, span = taps.size[2] + run - 1;
        const C value = widen(from[s * in.step[2]]);
        for (i64 a = 0; a < taps.size[0]; a++) {
          i64 t0, t1, t2;
          if (!meets(t0, i, a, sum, 0, out.size[0])) continue;
          for (i64 b = 0; b < taps.size[1]; b++) {
            if (!meets(t1, j, b, sum, 1, out.size[1])) continue;
            S* to = y + t0 * out.step[0] + t1 * out.step[1];
            const S* with = z + a * taps.step[0] + b * taps.step[1];
            for (i64 c = threadIdx.x; c < span; c += THREADS) {
              if (!meets(t2, s, c, sum, 2, out.size[2])) continue;
              S& one = to[t2 * out.step[2]];
              one = Narrow<S>::of(nans & 1u ? value : add(widen(one), mul(value, widen(with[c * taps.step[2]]))));
            }
          }
        }
        __syncthreads();
      }
    }
    __syncthreads();
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)  // room for all registers it wants
mend(const __grid_constant__ Layout layout, const __grid_constant__ Box in, const __grid_constant__ Box taps,
     const __grid_constant__ Box out, const __grid_constant__ Sum sum, const S* u, const S* k, S* y, const u8* u_mark,
     const u8* k_mark) {
  for (i64 row = blockIdx.x; row < layout.rows; row += gridDim.x) {
    const Place place = locate(layout, row);
    const S *signal = u + place.at[INPUT_ROW], *kernel = k + place.at[KERNEL_ROW];
    S* result = y + place.at[OUTPUT_ROW];
    if (u_mark[place.at[INPUT_MARK]]) add_terms(signal, in, kernel, taps, result, out, sum);
    if (k_mark[place.at[KERNEL_MARK]]) add_terms(kernel, taps, signal, in, result, out, sum);
  }
}
