// From tile to tile of one row. Whether one block walks a row's tiles or many blocks share them, the state entering a
// tile is computed by the same operations in the same order, so that its bits never tell which it was.
//
// Tiles form groups of GROUP. Inside a group the composites of the tiles before are composed one after the other (P) and
// applied to the state H the group began with; H goes from group to group. Where a composite is not tame, or the state it
// gives not finite, the state the tile before really left is used.
//
// Between blocks, values go through memory that starts as all ones: a word that is not all ones is there. No number has
// that pattern, because NaNs are made canonical first. So no fence, no flag and no atomic operation is needed. A block
// only ever waits for blocks of a lower index, and the card starts blocks in that order.
#pragma once
#include "affine.cuh"

__device__ __forceinline__ u32 pattern(float x) { return x != x ? 0x7fffffffu : __float_as_uint(x); }
__device__ __forceinline__ u64 pattern(double x) {
  return x != x ? 0x7ff8000000000000ull : static_cast<u64>(__double_as_longlong(x));
}

// A slot holds one number, written at once, or in two words if it is a complex128.
__device__ __forceinline__ void put(void* slot, u32 x) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(slot), "r"(x) : "memory");
}
__device__ __forceinline__ void put(void* slot, u64 x) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(slot), "l"(x) : "memory");
}
__device__ __forceinline__ void publish(float* slot, float x) { put(slot, pattern(x)); }
__device__ __forceinline__ void publish(double* slot, double x) { put(slot, pattern(x)); }
__device__ __forceinline__ void publish(complex64* slot, complex64 x) {
  put(slot, static_cast<u64>(pattern(x.im)) << 32 | pattern(x.re));
}
__device__ __forceinline__ void publish(complex128* slot, complex128 x) {
  put(&slot->re, pattern(x.re)), put(&slot->im, pattern(x.im));
}

// Read a slot into x; whether it was there.
__device__ __forceinline__ u64 look(const void* slot) {
  u64 x;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(x) : "l"(slot) : "memory");
  return x;
}
__device__ __forceinline__ bool peek(const float* slot, float& x) {
  u32 word;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(word) : "l"(slot) : "memory");
  x = __uint_as_float(word);
  return word != ~0u;
}
__device__ __forceinline__ bool peek(const double* slot, double& x) {
  const u64 word = look(slot);
  x = __longlong_as_double(static_cast<i64>(word));
  return word != ~0ull;
}
__device__ __forceinline__ bool peek(const complex64* slot, complex64& x) {
  const u64 word = look(slot);
  x = {__uint_as_float(static_cast<u32>(word)), __uint_as_float(static_cast<u32>(word >> 32))};
  return word != ~0ull;
}
__device__ __forceinline__ bool peek(const complex128* slot, complex128& x) {
  const bool re = peek(&slot->re, x.re), im = peek(&slot->im, x.im);
  return re && im;
}
template <class C> __device__ __forceinline__ C await(const C* slot) {
  C x;
  while (!peek(slot, x)) {}
  return x;
}

// What one tile tells the tiles after it: its composite, and, only where it is asked for, the state it leaves.
template <class C> struct Board {
  Affine<C>*map, *group;  // of a tile, and of all tiles of a group
  C* state;
  i64 rows;  // slot of (tile, row) is tile * rows + row, of (group, row) group * rows + row

  __device__ __forceinline__ void tell(Affine<C>* slot, Affine<C> x) const {
    publish(&slot->a, x.a);
    publish(&slot->b, x.b);
  }
  __device__ __forceinline__ bool peek(const Affine<C>* slot, Affine<C>& x) const {
    const bool a = ::peek(&slot->a, x.a), b = ::peek(&slot->b, x.b);
    return a && b;
  }
  __device__ __forceinline__ Affine<C> read(i64 slot) const {
    Affine<C> x;
    while (!peek(map + slot, x)) {}
    return x;
  }
};

template <class C> __device__ __forceinline__ Board<C> board(u8* memory, i64 rows, i64 tiles) {
  Affine<C>* map = reinterpret_cast<Affine<C>*>(memory);
  Affine<C>* group = map + rows * tiles;
  return {map, group, reinterpret_cast<C*>(group + rows * ((tiles + GROUP - 1) / GROUP)), rows};
}

template <class C> struct Carry {
  Affine<C> prefix;  // P: composite of the tiles of this group so far
  C start;           // H: the state the group (or the last anchor in it) began with

  __device__ __forceinline__ C next() const { return apply(prefix, start); }

  // Go past a tile. `left` is the state it really left; it matters only where needs_left says so.
  __device__ __forceinline__ void pass(i64 tile, Affine<C> map, C left) {
    Affine<C> longer = compose(map, prefix);
    C x = apply(longer, start);
    bool anchor = !is_tame(longer), last = (tile + 1) % GROUP == 0;
    start = anchor ? left : last ? (is_finite(x) ? x : left) : start;
    prefix = anchor || last ? identity<C>() : longer;
  }
};

// Whether the state after a tile must be read off the tile itself.
template <class C> __device__ __forceinline__ bool needs_left(const Carry<C>& carry, Affine<C> map) {
  const Affine<C> longer = compose(map, carry.prefix);
  return !is_tame(longer) || !is_finite(apply(longer, carry.start));
}

// The carry before `tile`, walked again from the start of its group, anchors included. The composites are in memory.
template <class C>
__device__ __forceinline__ Carry<C> walk(const Board<C>& board, i64 row, i64 tile, C start) {
  Carry<C> carry = {identity<C>(), start};
  for (i64 i = tile - tile % GROUP; i < tile; i++) {
    i64 slot = i * board.rows + row;
    Affine<C> map = board.read(slot);
    C left = start;
    if (!is_tame(compose(map, carry.prefix))) left = await(board.state + slot);
    carry.pass(i, map, left);
  }
  return carry;
}
