// What the taps of a filter may see: the signal, the state before (or after) it, zeros beyond; nothing across a reset.
//
// Positions count from the first sample of the signal. Output t stands at position first + t, its tap j at step * j
// before it (step < 0: after it).
#pragma once
#include "layout.cuh"

typedef STORAGE S;
typedef Compute<S>::type C;

enum { SIGNAL, WEIGHT, OFFSET, PAST, RESULT };  // the order of operands; RESET is that of layout.cuh

struct Span { i64 samples, first, step, past_first, past_length, edge, taps, run; };

struct Seen {
  const S *signal, *past;
  const u8* reset;
  i64 time, past_time, reset_time;
};

__device__ __forceinline__ Seen seen(const Layout& layout, const Place& place, const S* signal, const S* past, const u8* reset) {
  const Operand* o = layout.operand;
  return {signal + place.at[SIGNAL], past ? past + place.at[PAST] : nullptr, reset ? reset + place.at[RESET] : nullptr,
          o[SIGNAL].time, o[PAST].time, o[RESET].time};
}

__device__ __forceinline__ bool inside(const Span& span, i64 p) { return static_cast<u64>(p) < static_cast<u64>(span.samples); }

__device__ __forceinline__ C beyond(const Span& span, const S* past, i64 past_time, i64 p) {
  const i64 q = p - span.past_first;
  if (past && static_cast<u64>(q) < static_cast<u64>(span.past_length)) return widen(past[q * past_time]);
  return Number<C>::make(0);
}

__device__ __forceinline__ C fetch(const Seen& x, const Span& span, i64 p) {
  return inside(span, p) ? widen(x.signal[p * x.time]) : beyond(span, x.past, x.past_time, p);
}

// Whether no sequence begins between position p and the next tap's, p - step.
__device__ __forceinline__ bool joined(const Seen& x, const Span& span, i64 p) {
  const i64 reach = span.step > 0 ? span.step : -span.step, low = (span.step > 0 ? p - span.step : p) + span.edge;
  for (i64 i = 0; i < reach; i++)
    if (inside(span, low + i) && x.reset[(low + i) * x.reset_time]) return false;
  return true;
}
