// One step of each shipped cell and its pullback, for one channel: see linscan/ops/cells.py and gated_cells.py.
//
// CELL says which: x and y are the gates' inputs and what R and b make of the state, s the states, of which the first is
// the output, w the elementwise weights. A step and its pullback start from the activations, which x, y and s make.
#pragma once
#include "elementary.cuh"
#include "numbers.cuh"

enum { ELMAN, LSTM, GRU, SLSTM, PEEPHOLE_LSTM, LEAKY, ALMOST_LINEAR, PARA_GRU, PARA_LSTM };

typedef STORAGE S;
typedef Compute<S>::type C;

constexpr bool GRU_LIKE = CELL == GRU || CELL == PARA_GRU;
constexpr bool LSTM_LIKE = CELL == LSTM || CELL == PEEPHOLE_LSTM || CELL == PARA_LSTM;
constexpr bool FOUR = CELL == LSTM || CELL == PEEPHOLE_LSTM || CELL == SLSTM;
constexpr int GATES = FOUR ? 4 : GRU_LIKE || CELL == PARA_LSTM ? 3 : 1;
constexpr int STATES = LSTM_LIKE ? 2 : CELL == SLSTM ? 3 : 1;
constexpr int WEIGHTS = CELL == PEEPHOLE_LSTM ? 3 : CELL == PARA_LSTM ? 2 : CELL == LEAKY || CELL == ALMOST_LINEAR ? 1 : 0;
constexpr int HELD = WEIGHTS ? WEIGHTS : 1;  // an array of nothing is none

__device__ __forceinline__ C sigmoid(C x) { return reciprocal(C(1) + exponential(-x)); }
__device__ __forceinline__ C log_add(C x, C y) {  // log(e^x + e^y)
  if (x == y) return x + C(0.6931471805599453);   // infinities among them
  const C apart = x - y, larger = apart > C(0) ? x : apart <= C(0) ? y : apart;  // NaN stays
  return larger + log_one_plus(exponential(apart > C(0) ? -apart : apart));
}
__device__ __forceinline__ C start_of(int state) { return state == 2 ? C(-INFINITY) : C(0); }

// What a step makes of its arguments on the way.
struct Activations {
  C i, f, z, o, c, t;  // of an LSTM: gates, the new cell and its tanh; of an sLSTM: p, σ(-f), z, o, the mean, log n
  C r, keep, n;        // of a GRU; n also tanh(x + y)
};

__device__ __forceinline__ Activations activate(const C (&x)[GATES], const C (&y)[GATES], const C (&s)[STATES], const C (&w)[HELD]) {
  Activations a;
  if constexpr (LSTM_LIKE) {
    constexpr int F = CELL == PARA_LSTM ? 0 : 1;  // the forget gate's place
    constexpr bool SEES = CELL != LSTM;
    C f = x[F] + y[F], o = x[F + 2] + y[F + 2];
    if (SEES) f = mul_add(w[WEIGHTS - 2 > 0 ? WEIGHTS - 2 : 0], s[1], f);
    a.f = sigmoid(f), a.z = tangent(x[F + 1] + y[F + 1]);
    if constexpr (CELL == PARA_LSTM) {
      a.i = C(1) - a.f;
    } else {
      const C i = x[0] + y[0];
      a.i = sigmoid(SEES ? mul_add(w[0], s[1], i) : i);
    }
    a.c = mul_add(a.f, s[1], a.i * a.z);
    a.o = sigmoid(SEES ? mul_add(w[WEIGHTS ? WEIGHTS - 1 : 0], a.c, o) : o);
    a.t = tangent(a.c);
  } else if constexpr (GRU_LIKE) {
    const C z = x[1] + y[1];
    a.r = sigmoid(x[0] + y[0]), a.keep = sigmoid(CELL == GRU ? z : -z);
    a.n = tangent(mul_add(a.r, y[2], x[2]));
  } else if constexpr (CELL == SLSTM) {
    const C i = x[0] + y[0], f = -(x[1] + y[1]), kept = s[2] - log_add(C(0), f);
    a.f = sigmoid(f);
    a.i = sigmoid(i - kept), a.z = tangent(x[2] + y[2]), a.o = sigmoid(x[3] + y[3]);
    a.c = mul_add(a.i, a.z - s[1], s[1]), a.t = log_add(kept, i);
  } else if constexpr (CELL != ALMOST_LINEAR) {
    a.n = tangent(x[0] + y[0]);
  }
  return a;
}

// The states after the step, in place.
__device__ __forceinline__ void step(const Activations& a, const C (&x)[GATES], const C (&y)[GATES], C (&s)[STATES], const C (&w)[HELD]) {
  if constexpr (LSTM_LIKE) s[0] = a.o * a.t, s[1] = a.c;
  else if constexpr (GRU_LIKE) s[0] = mul_add(a.keep, s[0], (C(1) - a.keep) * a.n);
  else if constexpr (CELL == SLSTM) s[0] = a.o * a.c, s[1] = a.c, s[2] = a.t;
  else if constexpr (CELL == ELMAN) s[0] = a.n;
  else if constexpr (CELL == LEAKY) s[0] = mul_add(C(1) - w[0], s[0], w[0] * a.n);
  else s[0] = mul_add(w[0], s[0], x[0] + y[0]);
}

// The gradients of x, y, w (added to `dw`) and the states (`ds`, in place), without what goes through y.
__device__ __forceinline__ void pull(const Activations& a, const C (&y)[GATES], const C (&s)[STATES], const C (&w)[HELD],
                                     C (&ds)[STATES], C (&dx)[GATES], C (&dy)[GATES], C (&dw)[HELD]) {
  const C one = C(1);
  if constexpr (LSTM_LIKE) {
    constexpr int F = CELL == PARA_LSTM ? 0 : 1;
    const C dout = ds[0] * a.t * a.o * (one - a.o);
    C dc = mul_add(ds[0] * a.o, one - a.t * a.t, ds[1]);
    if constexpr (CELL != LSTM) {
      dc = mul_add(w[WEIGHTS - 1], dout, dc), dw[WEIGHTS - 1] = mul_add(dout, a.c, dw[WEIGHTS - 1]);
    }
    const C apart = CELL == PARA_LSTM ? s[1] - a.z : s[1];
    const C df = dc * apart * a.f * (one - a.f);
    dx[F] = df, dx[F + 1] = dc * a.i * (one - a.z * a.z), dx[F + 2] = dout;
    ds[0] = C(0), ds[1] = dc * a.f;
    if constexpr (CELL != PARA_LSTM) dx[0] = dc * a.z * a.i * (one - a.i);
    if constexpr (CELL == PEEPHOLE_LSTM) {
      ds[1] = mul_add(w[0], dx[0], ds[1]), dw[0] = mul_add(dx[0], s[1], dw[0]);
    }
    if constexpr (CELL != LSTM) {
      ds[1] = mul_add(w[WEIGHTS - 2], df, ds[1]), dw[WEIGHTS - 2] = mul_add(df, s[1], dw[WEIGHTS - 2]);
    }
  } else if constexpr (GRU_LIKE) {
    const C dn = ds[0] * (one - a.keep) * (one - a.n * a.n);
    const C dz = ds[0] * (s[0] - a.n) * a.keep * (one - a.keep);
    dx[0] = dn * y[2] * a.r * (one - a.r), dx[1] = CELL == GRU ? dz : -dz, dx[2] = dn;
    ds[0] = ds[0] * a.keep;
  } else if constexpr (CELL == SLSTM) {
    const C dr = mul_add(ds[0], a.o, ds[1]);
    const C di = mul_add(dr * (a.z - s[1]) * a.i, one - a.i, ds[2] * a.i), kept = ds[2] - di;
    dx[0] = di, dx[1] = kept * a.f, dx[2] = dr * a.i * (one - a.z * a.z);
    dx[3] = ds[0] * a.c * a.o * (one - a.o);
    ds[0] = C(0), ds[1] = dr * (one - a.i), ds[2] = kept;
  } else if constexpr (CELL == ALMOST_LINEAR) {
    dx[0] = ds[0], dw[0] = mul_add(s[0], ds[0], dw[0]), ds[0] = w[0] * ds[0];
  } else if constexpr (CELL == LEAKY) {
    dx[0] = (one - a.n * a.n) * w[0] * ds[0], dw[0] = mul_add(a.n - s[0], ds[0], dw[0]);
    ds[0] = (one - w[0]) * ds[0];
  } else {
    dx[0] = (one - a.n * a.n) * ds[0], ds[0] = C(0);
  }
#pragma unroll
  for (int g = 0; g < GATES; g++) dy[g] = GRU_LIKE && g == 2 ? dx[g] * a.r : dx[g];
}

// What R sees of the output, and how that changes with it.
__device__ __forceinline__ C feed(C h, bool rectified) { return CELL == ALMOST_LINEAR && rectified && h < C(0) ? C(0) : h; }
__device__ __forceinline__ C feed_slope(C h, bool rectified) {
  return CELL == ALMOST_LINEAR && rectified && !(h > C(0)) ? C(0) : C(1);
}
