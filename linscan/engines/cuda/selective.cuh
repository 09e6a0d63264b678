// What the kernels of the selective scan share: where things lie, one step's arithmetic, tiles of B and C.
//
// A channel's states lie in LANES neighbouring lanes, PER to each. What a step needs that all states share (step size,
// input, gate) is an item, made once by one thread of the block and handed on in shared memory: items of one step are
// neighbours in memory and in threads, so that u, dt and z are read without gaps.
// Rows, and groups of channels that share B and C, have blocks of their own, and so has every chunk of a long time axis.
#pragma once
#include "affine.cuh"
#include "elementary.cuh"

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

// Sums over WAYS lanes that are APART, COUNT sums at once: at each halving a lane hands half of its numbers on and adds
// what it is handed of the others. Those from `from` on, LEFT of them, stay in the first places of `v`; `owner` is one of
// the lanes that hold the same ones.
template <int COUNT, int WAYS, int APART> struct Halving {
  static constexpr int LEFT = COUNT > WAYS ? COUNT / WAYS : 1;
  int from;
  bool owner;

  __device__ __forceinline__ Halving() : from(0), owner(true) {
    int count = COUNT;
#pragma unroll
    for (int by = WAYS * APART / 2; by >= APART; by /= 2) {
      const bool upper = threadIdx.x & by;
      if (count == 1) owner = owner && !upper;
      else count /= 2, from += upper ? count : 0;
    }
  }
  static __device__ __forceinline__ void sum(C (&v)[COUNT]) {
    int count = COUNT;
#pragma unroll
    for (int by = WAYS * APART / 2; by >= APART; by /= 2) {
      const bool upper = threadIdx.x & by;
      if (count == 1) {
        v[0] = add(v[0], shuffle_xor(v[0], by));
        continue;
      }
      count /= 2;
#pragma unroll
      for (int i = 0; i < COUNT / 2; i++) {
        if (i >= count) break;
        const C low = v[i], high = v[i + count];
        v[i] = add(upper ? high : low, shuffle_xor(upper ? low : high, by));
      }
    }
  }
};

// 2^x by the card's own instruction (2 ulp; below 2^-126 zero).
__device__ __forceinline__ float power_of_two(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

constexpr float LOG2_E = 1.44269504f;
__device__ __forceinline__ float small_exponential(float x) { return power_of_two(fabsf(x) * -LOG2_E); }  // exp(-|x|)
__device__ __forceinline__ double small_exponential(double x) { return exp(-fabs(x)); }

// log(1 + e) / e for e from 0 to 1: the best polynomial, within 5e-9.
__device__ __forceinline__ float log_quotient(float e) {
  float sum = mul_add(e, -0.00324404589f, 0.019851597f);
  sum = mul_add(e, sum, -0.0569598749f), sum = mul_add(e, sum, 0.106037006f), sum = mul_add(e, sum, -0.153056279f);
  sum = mul_add(e, sum, 0.196759552f), sum = mul_add(e, sum, -0.249541372f), sum = mul_add(e, sum, 0.333299637f);
  return mul_add(e, mul_add(e, sum, -0.499999017f), 1.0f);
}
__device__ __forceinline__ float softplus(float x, float small) {
  return mul_add(small, log_quotient(small), fmaxf(x, 0.0f));
}
__device__ __forceinline__ double softplus(double x, double small) { return fmax(x, 0.0) + log1p(small); }

// `small` is exp(-|x|): nothing overflows, and what should be small is.
template <class T> __device__ __forceinline__ T sigmoid(T x, T small) {
  const T share = reciprocal(1 + small);
  return x < 0 ? small * share : share;
}
template <class T> __device__ __forceinline__ T silu(T x) { return x * sigmoid(x, small_exponential(x)); }
__device__ __forceinline__ R step_size(SR dt, R bias) {
  const R v = widen(dt) + bias;
  return SOFTPLUS ? softplus(v, small_exponential(v)) : v;
}

// exp(Δ A). Real eigenvalues come multiplied by log2(e).
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

// One sequence on its way through a tile: words of steps `step`, step + LANES, ... of those that begin at `origin`.
// Unless the tile is FULL, another step is read instead of those from `left` on, which nobody looks at.
template <bool FULL, class T, int COUNT>
__device__ __forceinline__ void read(Word<T> (&to)[COUNT], const T* origin, i64 time, int step, int left) {
  const T* at = FULL || step < left ? origin + step * time : origin;
#pragma unroll
  for (int j = 0; j < COUNT; j++) {
    to[j].fetch(at);
    if (FULL || step + (j + 1) * LANES < left) at += LANES * time;
  }
}

// COUNT steps of B or C, all states, in the dtype of the arithmetic. A block reads them once for all its channels: first
// into registers, later into shared memory, so that the wait lies behind other work.
template <int COUNT> struct Vectors {
  static constexpr int EACH = (COUNT * WIDE + THREADS - 1) / THREADS;  // powers of two: indices are sums of their parts
  Word<S> item[EACH];

  template <bool FULL> __device__ __forceinline__ void fetch(const S* origin, i64 time, i64 state, int left) {
    const int step = threadIdx.x / WIDE, n = threadIdx.x % WIDE;
#pragma unroll
    for (int j = 0; j < EACH; j++) {
      const int s = step + j * THREADS / WIDE, k = n + j * THREADS % WIDE;
      if (!PADDED || k < STATES) item[j].fetch(origin + (FULL && s < COUNT || s < left ? s * time : 0) + k * state);
      else item[j] = Word<S>();
    }
  }
  __device__ __forceinline__ void settle(C (&tile)[COUNT][WIDE]) const {
    const int step = threadIdx.x / WIDE, n = threadIdx.x % WIDE;
#pragma unroll
    for (int j = 0; j < EACH; j++) {
      const int s = step + j * THREADS / WIDE, k = n + j * THREADS % WIDE;
      if (COUNT * WIDE % THREADS == 0 || s < COUNT) tile[s][k] = widen(item[j].number());
    }
  }
};
