// What the kernels of the selective scan share: where things lie, one step's arithmetic, tiles of B and C.
//
// A channel's states lie in LANES neighbouring lanes, PER to each. What a step needs that all states share (step size,
// input, gate) is an item, made once by one thread of the block and handed on in shared memory: items of one step are
// neighbours in memory and in threads, so that u, dt and z are read without gaps.
// Rows, and groups of channels that share B and C, have blocks of their own, and so has every chunk of a long time axis.
#pragma once
#include "affine.cuh"

template <class S> struct Real { typedef S type; };
template <class R> struct Real<complex<R>> { typedef R type; };

typedef STORAGE S;
typedef Compute<S>::type C;
typedef Real<S>::type SR;
typedef Real<C>::type R;
constexpr int WIDE = LANES * PER, CHANNELS = THREADS / LANES;
constexpr bool PADDED = WIDE != STATES;  // lanes hold states that are none: zero, but for inf * 0

struct Sequence { u64 at; i64 row, time, channel, state; };  // strides in elements; of B and C, `channel` is the group's
struct Problem {
  i64 rows, length, channels, groups, chunk, chunks;
  Sequence u, dt, z, B, C, dy, reset;
  u64 A, D, bias, h0;  // contiguous, in the dtype of the arithmetic; 0 where there is none
};

// A thread's place: row, chunk [lo, hi) of time, group, channel and first state.
struct Spot {
  i64 row, chunk, lo, hi, group, channel, state;
  bool mine;     // false for threads past the group's channels: they work on its last channel and write nothing
  int slot;      // the channel's place in the block
  i64 item;      // the channel of the items this thread makes, those of steps `step`, step + LANES, ...
  int seat, step;
  bool item_mine;

  __device__ __forceinline__ i64 flat(const Problem& p) const { return row * p.channels + channel; }
};

__device__ __forceinline__ Spot spot(const Problem& p, i64 block) {
  const i64 width = p.channels / p.groups, blocks = (width + CHANNELS - 1) / CHANNELS;
  Spot x;
  const i64 origin = block % blocks * CHANNELS, first = origin + threadIdx.x / LANES;
  block /= blocks;
  x.group = block % p.groups, block /= p.groups;
  x.row = block % p.rows, x.chunk = block / p.rows;
  x.lo = x.chunk * p.chunk, x.hi = x.lo + p.chunk < p.length ? x.lo + p.chunk : p.length;
  x.mine = first < width;
  x.channel = x.group * width + (x.mine ? first : width - 1);
  x.state = threadIdx.x % LANES * PER;
  x.slot = threadIdx.x / LANES, x.seat = threadIdx.x % CHANNELS, x.step = threadIdx.x / CHANNELS;
  x.item_mine = origin + x.seat < width;
  x.item = x.group * width + (x.item_mine ? origin + x.seat : width - 1);
  return x;
}

template <class T> __device__ __forceinline__ const T* row_of(const Sequence& x, i64 row, i64 channel) {
  return reinterpret_cast<const T*>(x.at) + row * x.row + channel * x.channel;
}

__device__ __forceinline__ float real_part(float x) { return x; }
__device__ __forceinline__ double real_part(double x) { return x; }
template <class T> __device__ __forceinline__ T real_part(complex<T> x) { return x.re; }
template <class T> struct From {
  static __device__ __forceinline__ T real(T x) { return x; }
};
template <class T> struct From<complex<T>> {
  static __device__ __forceinline__ complex<T> real(T x) { return {x, static_cast<T>(0)}; }
};

// A number on its way from memory: a register of its own also for 16 bits, for two packed into one register would have
// to wait for each other.
template <class T> struct Word {
  T x;
  __device__ __forceinline__ void fetch(const T* from) { x = *from; }
  __device__ __forceinline__ T number() const { return x; }
};
template <class T> struct Half {
  u32 x;
  __device__ __forceinline__ void fetch(const T* from) { x = from->bits; }
  __device__ __forceinline__ T number() const { return {static_cast<u16>(x)}; }
};
template <> struct Word<float16> : Half<float16> {};
template <> struct Word<bfloat16> : Half<bfloat16> {};

// What drives the states: u, or dy, which is real if only the real part of the sum was the output.
template <bool REAL_ALONE> struct Drive {
  typedef S type;
  static __device__ __forceinline__ C wide(S x) { return widen(x); }
};
template <> struct Drive<true> {
  typedef SR type;
  static __device__ __forceinline__ C wide(SR x) { return From<C>::real(widen(x)); }
};
typedef Drive<REAL> Cotangent;

__device__ __forceinline__ C cotangent(const Problem& p, i64 row, i64 channel, i64 t) {
  return Cotangent::wide(row_of<Cotangent::type>(p.dy, row, channel)[t * p.dy.time]);
}

// Over the lanes of one channel.
template <class T> __device__ __forceinline__ T sum_lanes(T x) {
#pragma unroll
  for (int by = LANES / 2; by > 0; by /= 2) x = add(x, shuffle_xor(x, by));
  return x;
}

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float log_one_plus(float x) { return log1pf(x); }
__device__ __forceinline__ double log_one_plus(double x) { return log1p(x); }

__device__ __forceinline__ float quotient(float x, float y) { return __fdividef(x, y); }  // 2 ulp, y below 2^126
__device__ __forceinline__ double quotient(double x, double y) { return x / y; }

template <class T> __device__ __forceinline__ T sigmoid(T x) {  // overflows nowhere, small where it should be
  const T e = exponential(x < 0 ? x : -x);
  return quotient(x < 0 ? e : 1, 1 + e);
}
template <class T> __device__ __forceinline__ T silu(T x) { return x * sigmoid(x); }
template <class T> __device__ __forceinline__ T softplus(T x) {
  return (x > 0 ? x : T(0)) + log_one_plus(exponential(x > 0 ? -x : x));
}
__device__ __forceinline__ R step_size(SR dt, R bias) {
  const R v = widen(dt) + bias;
  return SOFTPLUS ? softplus(v) : v;
}

// exp(Δ A). Real eigenvalues come multiplied by log2(e): the card's own exponential is that of two (2 ulp; a decay
// below 2^-126 is zero).
__device__ __forceinline__ float power_of_two(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}
__device__ __forceinline__ float decay(float delta, float a) { return power_of_two(delta * a); }
__device__ __forceinline__ double decay(double delta, double a) { return exp(delta * a); }
__device__ __forceinline__ complex<float> decay(float delta, complex<float> a) {
  const float size = expf(delta * a.re);
  float s, c;
  sincosf(delta * a.im, &s, &c);
  return {size * c, size * s};
}
__device__ __forceinline__ complex<double> decay(double delta, complex<double> a) {
  const double size = exp(delta * a.re);
  double s, c;
  sincos(delta * a.im, &s, &c);
  return {size * c, size * s};
}
__device__ __forceinline__ float eigenvalue(float a) { return static_cast<float>(1.4426950408889634 * a); }
template <class T> __device__ __forceinline__ T eigenvalue(T a) { return a; }
// What a product with such eigenvalues would be without that factor.
template <class T> struct Plain {
  static __device__ __forceinline__ R of(R x) { return x; }
};
template <> struct Plain<float> {
  static __device__ __forceinline__ float of(float x) { return 0.69314718f * x; }
};

__device__ __forceinline__ bool live(const Spot& x, int i) { return !PADDED || x.state + i < STATES; }

// This thread's states of an array (channel, state); zero past the last one.
__device__ __forceinline__ void take(C (&to)[PER], const C* from, const Problem& p, const Spot& x) {
#pragma unroll
  for (int i = 0; i < PER; i++) to[i] = live(x, i) ? from[x.state + i] : Number<C>::make(0);
}
__device__ __forceinline__ void give(C* to, const C (&from)[PER], const Problem& p, const Spot& x) {
#pragma unroll
  for (int i = 0; i < PER; i++)
    if (x.mine && live(x, i)) to[x.state + i] = from[i];
}
__device__ __forceinline__ void take_eigenvalues(C (&A)[PER], const Problem& p, const Spot& x) {
  take(A, reinterpret_cast<const C*>(p.A) + x.channel * STATES, p, x);
#pragma unroll
  for (int i = 0; i < PER; i++) A[i] = eigenvalue(A[i]);
}

// COUNT steps of B or C, all states, in the dtype of the arithmetic. A block reads them once for all its channels: first
// into registers, later into shared memory, so that the wait lies behind other work.
template <int COUNT> struct Vectors {
  static constexpr int EACH = (COUNT * WIDE + THREADS - 1) / THREADS;
  Word<S> item[EACH];

  // Step s of the tile is at time first + s, or first - s backwards; steps from `count` on, which nobody looks at, are the
  // last one again: reading them is quicker than asking.
  __device__ __forceinline__ void fetch(const Sequence& from, const Spot& x, i64 first, i64 count, bool back) {
    const S* at = row_of<S>(from, x.row, x.group);
#pragma unroll
    for (int j = 0; j < EACH; j++) {
      const int index = j * THREADS + threadIdx.x, step = index / WIDE, n = index % WIDE;
      const i64 s = step < count ? step : count - 1;
      if (!PADDED || n < STATES) item[j].fetch(at + (back ? first - s : first + s) * from.time + n * from.state);
      else item[j] = Word<S>();
    }
  }
  __device__ __forceinline__ void settle(C (&tile)[COUNT][WIDE]) const {
#pragma unroll
    for (int j = 0; j < EACH; j++) {
      const int index = j * THREADS + threadIdx.x;
      if (index < COUNT * WIDE) tile[index / WIDE][index % WIDE] = widen(item[j].number());
    }
  }
};
