// y[t] = bias + sum_j w[j] x[first + t - step j]: filters of a few taps, forwards, backwards and as their own gradient.
//
// Three forms, which give the same bits (bias first, then one multiply-add a tap, newest first):
//   PACKS    time is last and dense: a thread owns PACK neighbouring steps, four times, and reads those before them too;
//            PHASED, rows begin anywhere, but signal and result at the same place of a pack: packs lie as memory does
//   WINDOW   neighbouring lanes hold neighbouring rows, PACK each; a thread walks run * STEPS steps (step apart), its
//            last taps' inputs in registers
//   SINGLE   anything else, any strides and resets: one output at a time, lanes along time (TIME) or along rows
//
// Bytes moved: every input once (a few again, out of the cache), every output once.
// Limits: rows and lengths below 2^63 elements; up to 6 batch axes after folding; TAPS = 0 takes any number of taps.
#ifndef STORAGE  // one variant, for a compiler that is only asked whether this compiles
#define STORAGE float
#define FORM WINDOW
#define TAPS 4
#define PACK 4
#define TIME 0
#define BACK 0
#define WARPS 4
#define STEPS 8
#define BLOCKS 4
#define PHASED 0
#define RESETS 0
#define STRICT 0
#define CONJUGATE 0
#endif
#include "fir.cuh"

enum { SINGLE, PACKS, WINDOW };
constexpr int THREADS = 32 * WARPS, REPEAT = 4;
constexpr bool EARLY = sizeof(S) == 2;  // packs are fetched a group ahead: those of 16-bit types take few registers
constexpr int WIDTH = TAPS > 0 ? TAPS : 1, UNROLL = TAPS > 0 ? TAPS : 4;

struct alignas(sizeof(S) * PACK) Pack { S item[PACK]; };

template <class T> __device__ __forceinline__ Pack packed(const T (&x)[PACK]) {
  Pack pack;
  if constexpr (sizeof(S) == 2 && PACK > 1) {
#pragma unroll
    for (int v = 0; v < PACK; v += 2) reinterpret_cast<u32*>(&pack)[v / 2] = pair<S>(x[v], x[v + 1]);
  } else {
#pragma unroll
    for (int v = 0; v < PACK; v++) pack.item[v] = Narrow<S>::of(x[v]);
  }
  return pack;
}

struct Arrays {
  const S *u, *w, *bias, *past;
  S* y;
  const u8* reset;
};

__device__ __forceinline__ C weight(const S* w) { return CONJUGATE ? conj(widen(*w)) : widen(*w); }
__device__ __forceinline__ C offset(const S* bias) { return bias ? widen(*bias) : Number<C>::make(0); }
__device__ __forceinline__ const S* at(const S* x, i64 place) { return x ? x + place : nullptr; }

__device__ __forceinline__ void packs(const Layout& layout, const Span& span, const Arrays& a, i64 row, i64 tile) {
  constexpr int HALO = (WIDTH - 1 + PACK - 1) / PACK * PACK, ALL = HALO + PACK;
  const Place place = locate(layout, row);
  const Seen x = seen(layout, place, a.u, a.past, nullptr);
  C w[WIDTH];
#pragma unroll
  for (int j = 0; j < WIDTH; j++) w[j] = weight(a.w + place.at[WEIGHT] + j * layout.operand[WEIGHT].time);
  const C bias = offset(at(a.bias, place.at[OFFSET]));
  S* to = a.y + place.at[RESULT];
  const int phase = PHASED ? static_cast<int>(reinterpret_cast<u64>(to) / sizeof(S) % PACK) : 0;
#pragma unroll
  for (int r = 0; r < REPEAT; r++) {
    const i64 t = ((tile * REPEAT + r) * THREADS + threadIdx.x) * PACK - phase;
    if (t >= layout.length) return;
    const i64 low = span.first + t - (BACK ? 0 : HALO);
    C in[ALL], out[PACK];
#pragma unroll
    for (int i = 0; i < ALL; i += PACK) {
      if (low + i >= 0 && low + i + PACK <= span.samples) {
        const Pack pack = *reinterpret_cast<const Pack*>(x.signal + low + i);
#pragma unroll
        for (int v = 0; v < PACK; v++) in[i + v] = widen(pack.item[v]);
      } else {
#pragma unroll
        for (int v = 0; v < PACK; v++) in[i + v] = fetch(x, span, low + i + v);
      }
    }
#pragma unroll
    for (int v = 0; v < PACK; v++) {
      out[v] = bias;
#pragma unroll
      for (int j = 0; j < WIDTH; j++) out[v] = mul_add(w[j], in[BACK ? v + j : HALO + v - j], out[v]);
    }
    const Pack pack = packed(out);
    if ((!PHASED || t >= 0) && t + PACK <= layout.length) {
      *reinterpret_cast<Pack*>(to + t) = pack;
    } else {
#pragma unroll
      for (int v = 0; v < PACK; v++)
        if ((!PHASED || t + v >= 0) && t + v < layout.length) to[t + v] = pack.item[v];
    }
  }
}

__device__ __forceinline__ void window(const Layout& layout, const Span& span, const Arrays& a, i64 bundle, i64 tile) {
  const i64 row = (bundle * 32 + (threadIdx.x & 31)) * PACK;
  if (row >= layout.rows) return;
  const Place place = locate(layout, row);
  const Operand* o = layout.operand;
  const int inner = layout.ndim ? static_cast<int>(layout.ndim) - 1 : 0;
  const S *x = a.u + place.at[SIGNAL], *past = at(a.past, place.at[PAST]);
  C w[WIDTH][PACK], bias[PACK], in[WIDTH - 1 + STEPS][PACK];
#pragma unroll
  for (int v = 0; v < PACK; v++) {
#pragma unroll
    for (int j = 0; j < WIDTH; j++) w[j][v] = weight(a.w + place.at[WEIGHT] + v * o[WEIGHT].batch[inner] + j * o[WEIGHT].time);
    bias[v] = offset(at(a.bias, place.at[OFFSET] + v * o[OFFSET].batch[inner]));
  }
  auto put = [&](C (&to)[PACK], Pack pack) {
#pragma unroll
    for (int v = 0; v < PACK; v++) to[v] = widen(pack.item[v]);
  };
  auto take = [&](C (&to)[PACK], const S* from) { put(to, *reinterpret_cast<const Pack*>(from)); };
  auto read = [&](C (&to)[PACK], i64 p) {
    if (inside(span, p)) return take(to, x + p * o[SIGNAL].time);
#pragma unroll
    for (int v = 0; v < PACK; v++) to[v] = beyond(span, at(past, v * o[PAST].batch[inner]), o[PAST].time, p);
  };
  // Steps are counted in the direction of the walk, which is away from the taps.
  const i64 apart = BACK ? -span.step : span.step, index = tile * WARPS + threadIdx.x / 32;
  i64 step = index / apart * (span.run * STEPS * apart) + index % apart;
  auto position = [&](i64 walked) { return span.first + (BACK ? layout.length - 1 - walked : walked); };
  const i64 in_stride = span.step * o[SIGNAL].time, out_stride = span.step * o[RESULT].time;
#pragma unroll
  for (int i = 0; i < WIDTH - 1; i++) read(in[i], position(step - (WIDTH - 1 - i) * apart));
  auto is_plain = [&](i64 step) {  // whether a group of steps is there, and meets the signal alone
    const i64 last = step + (STEPS - 1) * apart;
    return last < layout.length && inside(span, position(step)) && inside(span, position(last));
  };
  Pack early[EARLY ? STEPS : 1];
  auto fetch_early = [&](i64 step) {
    const S* from = x + position(step) * o[SIGNAL].time;
#pragma unroll
    for (int i = 0; i < (EARLY ? STEPS : 0); i++) early[i] = *reinterpret_cast<const Pack*>(from + i * in_stride);
  };
  bool plain = is_plain(step);
  if (EARLY && plain) fetch_early(step);
#pragma unroll 1
  for (i64 r = 0; r < span.run && step < layout.length; r++, step += STEPS * apart) {
    const i64 p = position(step);
    const bool whole = step + (STEPS - 1) * apart < layout.length, next = r + 1 < span.run && is_plain(step + STEPS * apart);
    const S* from = x + p * o[SIGNAL].time;
    S* to = a.y + place.at[RESULT] + (p - span.first) * o[RESULT].time;
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
      if (plain && EARLY) put(in[WIDTH - 1 + i], early[EARLY ? i : 0]);
      else if (plain) take(in[WIDTH - 1 + i], from + i * in_stride);
      else if (whole || step + i * apart < layout.length) read(in[WIDTH - 1 + i], position(step + i * apart));
    }
    plain = next;
    if (EARLY && plain) fetch_early(step + STEPS * apart);
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
      C out[PACK];
#pragma unroll
      for (int v = 0; v < PACK; v++) {
        out[v] = bias[v];
#pragma unroll
        for (int j = 0; j < WIDTH; j++) out[v] = mul_add(w[j][v], in[WIDTH - 1 + i - j][v], out[v]);
      }
      if (whole || step + i * apart < layout.length) *reinterpret_cast<Pack*>(to + i * out_stride) = packed(out);
    }
#pragma unroll
    for (int i = 0; i < WIDTH - 1; i++)
#pragma unroll
      for (int v = 0; v < PACK; v++) in[i][v] = in[i + STEPS][v];
  }
}

__device__ __forceinline__ void single(const Layout& layout, const Span& span, const Arrays& a, i64 line, i64 tile) {
  const i64 row = TIME ? line : line * 32 + (threadIdx.x & 31);
  if (row >= layout.rows) return;
  const Place place = locate(layout, row);
  const Operand* o = layout.operand;
  const Seen x = seen(layout, place, a.u, a.past, a.reset);
  const C bias = offset(at(a.bias, place.at[OFFSET]));
  const int taps = TAPS > 0 ? TAPS : static_cast<int>(span.taps);
#pragma unroll
  for (int r = 0; r < REPEAT; r++) {
    const i64 t = TIME ? (tile * REPEAT + r) * THREADS + threadIdx.x : (tile * WARPS + threadIdx.x / 32) * REPEAT + r;
    if (t >= layout.length) return;
    const i64 p = span.first + t, stride = span.step * o[SIGNAL].time;
    C sum = bias;
    bool own = true;
    if (!RESETS && inside(span, p) && inside(span, p - span.step * (taps - 1))) {
      const S *from = x.signal + p * x.time, *w = a.w + place.at[WEIGHT];
#pragma unroll UNROLL
      for (int j = 0; j < taps; j++, from -= stride, w += o[WEIGHT].time) sum = mul_add(weight(w), widen(*from), sum);
      a.y[place.at[RESULT] + t * o[RESULT].time] = Narrow<S>::of(sum);
      continue;
    }
#pragma unroll UNROLL
    for (int j = 0; j < taps; j++) {
      const i64 q = p - span.step * j;
      if (RESETS && j) own = own && joined(x, span, q + span.step);
      if (STRICT && !inside(span, q)) continue;  // a tap that meets nothing adds nothing, not even if it is NaN
      const C value = !RESETS || own ? fetch(x, span, q) : Number<C>::make(0);
      sum = mul_add(weight(a.w + place.at[WEIGHT] + j * o[WEIGHT].time), value, sum);
    }
    a.y[place.at[RESULT] + t * o[RESULT].time] = Narrow<S>::of(sum);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
fir(const __grid_constant__ Layout layout, const __grid_constant__ Span span, const S* u, const S* w, const S* bias,
    const S* past, S* y, const u8* reset) {
  const Arrays arrays = {u, w, bias, past, y, reset};
  constexpr bool ALONG = FORM == PACKS || (FORM == SINGLE && TIME);
  const i64 lines = ALONG ? layout.rows : (layout.rows + 32 * PACK - 1) / (32 * PACK);
  for (i64 block = blockIdx.x; block < lines * layout.tiles; block += gridDim.x) {
    const i64 line = ALONG ? block / layout.tiles : block % lines, tile = ALONG ? block % layout.tiles : block / lines;
    if constexpr (FORM == PACKS) packs(layout, span, arrays, line, tile);
    else if constexpr (FORM == WINDOW) window(layout, span, arrays, line, tile);
    else single(layout, span, arrays, line, tile);
  }
}
