// What surrounds cuFFT in a long convolution, one pass each over a batch of tasks (conv.cuh):
//   gather    rows of the signal, cast and padded with zeros, into lines of `pitch` numbers
//   multiply  by the kernel's spectrum and 1/n
//   add_up    dy's spectrum times the conjugate of the signal's, summed over the rows that share a kernel
//   scatter   the window of each line into the result
//   mend      rows with NaN or inf: adds what the plain sum has of them. Ends at once where there are none.
// Where time is not the dense axis (TURN), gather and scatter turn squares of 32 x 32 in shared memory.
#ifndef STORAGE  // one variant, for a compiler that is only asked whether this compiles
#define STORAGE float
#define TURN 1
#define CLEAN 1
#endif
#include "conv.cuh"

template <class R> struct Spectral { typedef complex<R> type; };
template <class R> struct Spectral<complex<R>> { typedef complex<R> type; };
typedef Spectral<C>::type Z;
constexpr int THREADS = 256, TILE = TURN ? 32 : 4 * THREADS;

template <class F> __device__ __forceinline__ void squares(i64 tasks, i64 length, F at) {
  // Calls at(task, i, lane-by-task?) so that neighbouring lanes are neighbouring i, or with TURN neighbouring tasks.
  const i64 tiles = (length + TILE - 1) / TILE, lines = TURN ? (tasks + 31) / 32 : tasks;
  for (i64 block = blockIdx.x; block < lines * tiles; block += gridDim.x) at(block / tiles, block % tiles * TILE);
}

extern "C" __global__ void __launch_bounds__(THREADS)
gather(const __grid_constant__ Layout layout, const __grid_constant__ Window w, const S* u, C* lines, i64 pitch, u8* mark) {
  __shared__ C turned[TURN ? 32 : 1][33];
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  const i64 time = layout.operand[INPUT_ROW].time;
  squares(w.count, w.n, [&](i64 line, i64 first) {
    const i64 task = TURN ? line * 32 + lane : line, index = w.begin + (task < w.count ? task : w.count - 1);
    const i64 block = index / layout.rows;
    const Place place = locate(layout, index - block * layout.rows);
    const S* from = u + place.at[INPUT_ROW];
    const i64 p0 = shift(w, block);
    bool bad = false;
    auto read = [&](i64 i) {
      const i64 p = p0 + i;
      if (i >= w.n || p < 0 || p >= w.samples) return Number<C>::make(0);
      return CLEAN ? clean(widen(from[p * time]), bad) : widen(from[p * time]);
    };
    if (TURN) {
#pragma unroll
      for (int r = warp; r < 32; r += THREADS / 32) turned[TURN ? r : 0][lane] = read(first + r);
      __syncthreads();
#pragma unroll
      for (int r = warp; r < 32; r += THREADS / 32)
        if (line * 32 + r < w.count && first + lane < w.n) lines[(line * 32 + r) * pitch + first + lane] = turned[TURN ? lane : 0][r];
      __syncthreads();
    } else {
#pragma unroll
      for (int r = 0; r < TILE / THREADS; r++) {
        const i64 i = first + r * THREADS + threadIdx.x;
        if (i < w.n) lines[task * pitch + i] = read(i);
      }
    }
    if (CLEAN && bad) mark[place.at[INPUT_MARK]] = 1;
  });
}

extern "C" __global__ void __launch_bounds__(THREADS)
scatter(const __grid_constant__ Layout layout, const __grid_constant__ Window w, const C* lines, i64 pitch, S* y) {
  __shared__ C turned[TURN ? 32 : 1][33];
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  const i64 time = layout.operand[OUTPUT_ROW].time;
  squares(w.count, w.step, [&](i64 line, i64 first) {
    const i64 task = TURN ? line * 32 + lane : line, index = w.begin + (task < w.count ? task : w.count - 1);
    const i64 block = index / layout.rows;
    const Place place = locate(layout, index - block * layout.rows);
    S* to = y + place.at[OUTPUT_ROW] + block * w.step * time;
    const i64 length = task < w.count ? outputs(w, layout, block) : 0;
    if (TURN) {
#pragma unroll
      for (int r = warp; r < 32; r += THREADS / 32)
        if (line * 32 + r < w.count && first + lane < w.step)
          turned[TURN ? r : 0][lane] = lines[(line * 32 + r) * pitch + w.skip + first + lane];
      __syncthreads();
#pragma unroll
      for (int r = warp; r < 32; r += THREADS / 32)
        if (first + r < length) to[(first + r) * time] = Narrow<S>::of(turned[lane][TURN ? r : 0]);
      __syncthreads();
    } else {
#pragma unroll
      for (int r = 0; r < TILE / THREADS; r++) {
        const i64 t = first + r * THREADS + threadIdx.x;
        if (t < length) to[t * time] = Narrow<S>::of(lines[task * pitch + w.skip + t]);
      }
    }
  });
}

extern "C" __global__ void __launch_bounds__(THREADS)
multiply(const __grid_constant__ Layout layout, const __grid_constant__ Window w, Z* lines, const Z* spectrum, i64 bins) {
  const Z scale = Number<Z>::make(1.0 / static_cast<double>(w.n));
  const i64 tiles = (bins + 4 * THREADS - 1) / (4 * THREADS);
  for (i64 tile = blockIdx.x; tile < w.count * tiles; tile += gridDim.x) {
    const i64 task = tile / tiles, first = tile % tiles * 4 * THREADS;
    const Z* k = spectrum + locate(layout, (w.begin + task) % layout.rows).at[SPECTRUM];
    Z* x = lines + task * bins;
#pragma unroll
    for (int r = 0; r < 4; r++) {
      const i64 f = first + r * THREADS + threadIdx.x;
      if (f < bins) {
        const Z h = k[f];
        x[f] = mul(x[f], Z{h.re * scale.re, h.im * scale.re});
      }
    }
  }
}

// Tasks are rows, `share` of them to a kernel; total[row / share] += dy conj(u) / n. A thread owns a kernel's bin.
extern "C" __global__ void __launch_bounds__(THREADS)
add_up(const __grid_constant__ Window w, const Z* dy, const Z* u, Z* total, i64 share, i64 bins) {
  const i64 first = w.begin / share, last = (w.begin + w.count - 1) / share;
  for (i64 i = static_cast<i64>(blockIdx.x) * THREADS + threadIdx.x; i < (last - first + 1) * bins; i += static_cast<i64>(gridDim.x) * THREADS) {
    const i64 kernel = first + i / bins, f = i % bins;
    i64 row = kernel * share, end = row + share;
    row = row < w.begin ? w.begin : row, end = end > w.begin + w.count ? w.begin + w.count : end;
    double re = 0, im = 0;
    for (; row < end; row++) {
      const Z x = mul(dy[(row - w.begin) * bins + f], conj(u[(row - w.begin) * bins + f]));
      re += x.re, im += x.im;
    }
    Z& sum = total[kernel * bins + f];
    sum.re += re / w.n, sum.im += im / w.n;
  }
}

__device__ __forceinline__ bool is_nan(float x) { return x != x; }
__device__ __forceinline__ bool is_nan(double x) { return x != x; }
template <class R> __device__ __forceinline__ bool is_nan(complex<R> x) { return is_nan(x.re) || is_nan(x.im); }

// Adds x[s] z[j] to the output at s + j - start, for every s at which x is not finite; runs of NaN at once.
__device__ __forceinline__ void add_terms(const Window& w, i64 length, const S* x, i64 x_time, i64 size, const S* z, i64 z_time, i64 reach,
                          S* y, i64 y_time) {
  __shared__ u32 bad_words[THREADS / 32], nan_words[THREADS / 32];
  for (i64 tile = 0; tile < size; tile += THREADS) {
    const i64 mine = tile + threadIdx.x;
    const C own = mine < size ? widen(x[mine * x_time]) : Number<C>::make(0);
    const u32 bad = __ballot_sync(~0u, !is_finite(own)), nan = __ballot_sync(~0u, is_nan(own));
    if ((threadIdx.x & 31) == 0) bad_words[threadIdx.x / 32] = bad, nan_words[threadIdx.x / 32] = nan;
    __syncthreads();
    for (int word = 0; word < THREADS / 32; word++) {
      for (u32 left = bad_words[word]; left;) {
        const int bit = __ffs(left) - 1;
        const u32 nans = nan_words[word] >> bit;
        const int run = nans & 1u ? nans == ~0u ? 32 : __ffs(~nans) - 1 : 1;
        left = bit + run < 32 ? left >> (bit + run) << (bit + run) : 0;
        const i64 s = tile + word * 32 + bit;
        const C value = widen(x[s * x_time]);
        const i64 span = reach + run - 1;
        for (i64 j = threadIdx.x; j < span; j += THREADS) {
          const i64 t = w.circular ? (s + j) % w.n : s + j - w.start;
          if (t < 0 || t >= length) continue;
          S& out = y[t * y_time];
          out = Narrow<S>::of(nans & 1u ? value : add(widen(out), mul(value, widen(z[j * z_time]))));
        }
        __syncthreads();
      }
    }
    __syncthreads();
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)  // room for all registers it wants
mend(const __grid_constant__ Layout layout, const __grid_constant__ Window w, const S* u, const S* k, S* y, const u8* u_mark,
     const u8* k_mark) {
  const Operand* o = layout.operand;
  for (i64 row = blockIdx.x; row < layout.rows; row += gridDim.x) {
    const Place place = locate(layout, row);
    const S *u_row = u + place.at[INPUT_ROW], *k_row = k + place.at[KERNEL_ROW];
    S* y_row = y + place.at[OUTPUT_ROW];
    const i64 ut = o[INPUT_ROW].time, kt = o[KERNEL_ROW].time, yt = o[OUTPUT_ROW].time;
    if (u_mark[place.at[INPUT_MARK]]) add_terms(w, layout.length, u_row, ut, w.samples, k_row, kt, w.taps, y_row, yt);
    if (k_mark && k_mark[place.at[KERNEL_MARK]]) add_terms(w, layout.length, k_row, kt, w.taps, u_row, ut, w.samples, y_row, yt);
  }
}
