// What the loops over a cell's steps share: where things lie, and a thread's way through one channel of one row.
//
// Rows are numbered with those that share their matrices next to each other. Time runs forwards: the launcher turns around
// what is to run backwards. What the next steps need is read AHEAD of them, into registers.
#pragma once
#include "rnn_cells.cuh"

struct Operand { u64 at; i64 time, part, channel, batch[6]; };  // strides in elements; `part` goes from gate to gate, …
struct Problem {
  i64 rows, matrices, length, width, linear, ndim, size[6];  // rows of each matrix; channels before those with a ReLU
  Operand x, b, w, first, reset, h, states, y, last;         // `at` is 0 where there is none
  Operand dh, dx, dy, dw, ds, R;                             // R of cells without matrices, (gate, channel)
};

__device__ __forceinline__ i64 place(const Operand& o, const Problem& p, i64 row, i64 channel) {
  i64 at = channel * o.channel;
#pragma unroll 1
  for (int d = static_cast<int>(p.ndim) - 1; d >= 0; d--) {
    const i64 rest = d ? row / p.size[d] : 0;
    at += (row - rest * p.size[d]) * o.batch[d], row = rest;
  }
  return at;
}

// One operand's numbers of a channel: at a time, or of all times. What is not `mine` reads as zero and is not written.
template <class T> struct Row {
  T* at;
  i64 time, part;

  __device__ __forceinline__ Row(const Operand& o, const Problem& p, i64 row, i64 channel)
      : at(o.at ? reinterpret_cast<T*>(o.at) + place(o, p, row, channel) : nullptr), time(o.time), part(o.part) {}
  template <int N> __device__ __forceinline__ void get(T (&to)[N], i64 t, bool mine) const {
#pragma unroll
    for (int i = 0; i < N; i++) to[i] = mine && at ? at[t * time + i * part] : Narrow<T>::of(0);
  }
  template <int N> __device__ __forceinline__ void put(const typename Compute<T>::type (&from)[N], i64 t, bool mine) const {
#pragma unroll
    for (int i = 0; i < N; i++)
      if (mine && at) at[t * time + i * part] = Narrow<T>::of(from[i]);
  }
};

template <int N> __device__ __forceinline__ void widened(C (&to)[N], const S (&from)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) to[i] = widen(from[i]);
}
template <int N> __device__ __forceinline__ void clear(C (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) x[i] = C(0);
}

// What the forward loop reads of one step.
struct Input {
  S x[GATES];
  bool fresh;  // a new sequence begins

  __device__ __forceinline__ void fetch(const Row<S>& from, const Row<u8>& reset, i64 t, i64 length, bool mine) {
    const bool here = mine && t < length;
    from.get(x, t, here);
    fresh = here && reset.at && reset.at[t * reset.time];
  }
};

// And the backward loop, which needs the states before the step.
struct Record {
  S x[GATES], dh[1];
  C y[GATES], s[STATES];
  bool fresh;

  __device__ __forceinline__ void fetch(const Row<S>& from, const Row<S>& dout, const Row<C>& fed, const Row<C>& states,
                                        const Row<C>& first, const Row<u8>& reset, i64 t, bool mine) {
    const bool here = mine && t >= 0;
    from.get(x, t, here), dout.get(dh, t, here), fed.get(y, t, here);
    fresh = here && reset.at && reset.at[t * reset.time];
    if (t > 0) states.get(s, t - 1, here);
    else first.get(s, 0, here);
  }
};

// One step back: `ds` is the gradient of the state after it, and becomes that of the one before, but for what goes
// through y; returns the slope by which that counts.
__device__ __forceinline__ C back(const Record& in, C (&ds)[STATES], const C (&w)[HELD], C (&dx)[GATES], C (&dy)[GATES],
                                  C (&dw)[HELD], bool rectified) {
  C x[GATES], s[STATES];
  widened(x, in.x);
#pragma unroll
  for (int n = 0; n < STATES; n++) s[n] = in.fresh ? start_of(n) : in.s[n];
  ds[0] = ds[0] + widen(in.dh[0]);
  pull(activate(x, in.y, s, w), in.y, s, w, ds, dx, dy, dw);
  return feed_slope(s[0], rectified);
}

__device__ __forceinline__ void forget(C (&ds)[STATES], bool fresh) {
#pragma unroll
  for (int n = 0; n < STATES; n++) ds[n] = fresh ? C(0) : ds[n];
}
