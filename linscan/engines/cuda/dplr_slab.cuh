// What dplr_scores.cu makes of a chunk and the passes of dplr_chunk.cu read. W are sums of g from the chunk's start; what
// acts before a step's decay, a if EARLY, has W[t] - g[t] in the place of W[t].
#pragma once

enum { ROW_A, ROW_Q, ROW_B, ROW_K };  // a e^W, q e^W, b e^(W[63] - W), k e^(W[63] - W); K only if KEYED
enum { OF_QB, OF_AB, OF_QK, OF_AK };  // sums over channels of q[t] e^(W[t] - W[s]) b[s] for s <= t, …; for a s < t
enum { BAD = 1, BAD_QUERY = 2, FORGETS = 4 };  // a step's a, b, k or gates are not finite; its q is not; nothing is left

struct Slab {
  S rows[3 + KEYED][STEPS][KEYS];
  S scores[2 + 2 * KEYED][STEPS][STEPS];  // that of a and b as delta_solve.cuh has it
  S inverse[2][STEPS][16];
  float decay[KEYS];  // e^W[63]
  int marks[STEPS];
};
