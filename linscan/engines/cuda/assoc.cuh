// y[t] = combine(y[t-1], x[t]) for any associative operator on structs of a few numbers.
//
// The including file has named the arrays, each as X(operand, type as stored, name),
//
//   INPUTS(X)   one element of each makes an Element       OUTPUTS(X)   what becomes of an Element
//   FIRSTS(X)   one element of each row: what comes before the first step
//
// the operands' number OPERANDS with that of the resets, RESET_OPERAND, and after this file defines
//
//   Element element(const Inputs&, int i, bool fresh)      of a thread's step i; fresh: a sequence begins here
//   void result(Outputs&, int i, const Element&)           in the order of i
//   Element initial(const Firsts&, const Pointers&)        if HAS_FIRST; zeros for an array that is not there
//   Element combine(const Element& earlier, const Element& later)
//
// A thread owns STEPS consecutive steps. Where time is the last axis, 32 neighbouring threads own neighbouring pieces of
// one row (tiles.cuh); with LANES they own the same steps of neighbouring rows, and the warps of a block consecutive
// steps. What enters a tile comes from the tiles before it (lookback.cuh).
//
// Bytes moved: every input once, every output once. Limits: those of layout.cuh; below 2^31 tiles.
#pragma once
#include "layout.cuh"
#include "lookback.cuh"
#include "tiles.cuh"

struct Pointers { void* at[OPERANDS]; };

#if LANES
template <class S> struct Held {
  S item[STEPS];
  __device__ __forceinline__ typename Compute<S>::type get(int i) const { return widen(item[i]); }
  __device__ __forceinline__ void set(int i, S x) { item[i] = x; }
};
#else
template <class S> struct Held {
  Items<S> items;
  __device__ __forceinline__ typename Compute<S>::type get(int i) const { return items.get(i); }
  __device__ __forceinline__ void set(int i, S x) { items.set(i, x); }
};
#endif

#define LINSCAN_FIELD(n, S, name) Held<S> name;
#define LINSCAN_SINGLE_OF(n, S, name) Compute<S>::type name;
struct Inputs { INPUTS(LINSCAN_FIELD) };
struct Outputs { OUTPUTS(LINSCAN_FIELD) };
struct Firsts { FIRSTS(LINSCAN_SINGLE_OF) };

// Nothing, an element, or one that what comes before it does not matter to.
enum { NONE, SOME, FRESH };
template <class Element> struct PartOf { u32 kind; Element element; };

template <class Element> struct Identity<PartOf<Element>> {
  static __device__ __forceinline__ PartOf<Element> make() {
    PartOf<Element> none = {};
    return none;
  }
};
template <class Element>
__device__ __forceinline__ PartOf<Element> compose(const PartOf<Element>& after, const PartOf<Element>& before) {
  if (after.kind == FRESH || before.kind == NONE) return after;
  if (after.kind == NONE) return before;
  return {before.kind, combine(before.element, after.element)};
}
template <class Element>
__device__ __forceinline__ PartOf<Element> apply(const PartOf<Element>& part, const PartOf<Element>& state) {
  return compose(part, state);
}
template <class Element> __device__ __forceinline__ bool is_good(const PartOf<Element>&) { return true; }

// One thread's steps `first` on of one operand, of which the row has `count` left.
template <class S>
__device__ __forceinline__ void take(Held<S>& x, const void* memory, i64 at, const Operand& operand, i64 first, int count,
                                     void* turn, int lane) {
  const S* from = static_cast<const S*>(memory) + at + first * operand.time;
#if LANES
#pragma unroll
  for (int i = 0; i < STEPS; i++, from += operand.time)
    if (i < count) x.item[i] = *from;
#else
  const S none = {};
  load(x.items, from, operand.time, operand.mode, count, none, lane);
  turn_in(x.items, operand.mode, static_cast<S*>(turn), lane);
#endif
}

template <class S>
__device__ __forceinline__ void give(const Held<S>& x, void* memory, i64 at, const Operand& operand, i64 first, int count,
                                     void* turn, int lane) {
  if (!memory) return;
  S* to = static_cast<S*>(memory) + at + first * operand.time;
#if LANES
#pragma unroll
  for (int i = 0; i < STEPS; i++, to += operand.time)
    if (i < count) *to = x.item[i];
#else
  store(x.items, to, operand.time, STAGED, count, static_cast<S*>(turn), lane);
#endif
}

#define LINSCAN_TAKE(n, S, name) take(in.name, pointers.at[n], place.at[n], layout.operand[n], first, count, turn, lane);
#define LINSCAN_GIVE(n, S, name) give(out.name, pointers.at[n], place.at[n], layout.operand[n], first, count, turn, lane);
#define LINSCAN_FIRST(n, S, name) \
  pointers.at[n] ? widen(static_cast<const S*>(pointers.at[n])[place.at[n]]) : Compute<S>::type{},
