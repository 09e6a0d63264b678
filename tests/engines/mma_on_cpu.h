// mma.cuh for the host compiler: what lanes hold is laid out as the card does, and exchanged through the warp's memory.
#pragma once

template <class T> inline const T* exchange(T mine) {  // every lane's, until the next barrier
  Warp& warp = warps[threadIdx.x / 32];
  std::memcpy(warp.word[threadIdx.x % 32], &mine, sizeof mine);
  __syncwarp();
  static T all[1024][32];
  for (int lane = 0; lane < 32; lane++) std::memcpy(&all[threadIdx.x][lane], warp.word[lane], sizeof mine);
  __syncwarp();
  return all[threadIdx.x];
}

template <class S> float2 numbers(u32 word, S) { return {low(word, S()), high(word, S())}; }
inline float2 both(u32 word);
inline float2 numbers(u32 word, float16) { return both(word); }  // others are converted by instructions that only a card has

struct Fragments { u32 a[4], b[2]; };
template <class S> void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, S) {
  const Fragments* all = exchange(Fragments{{a[0], a[1], a[2], a[3]}, {b0, b1}});
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int i = 0; i < 4; i++) {
    const int row = i / 2, column = 2 * t + i % 2;
    for (int k = 0; k < 16; k++) {
      const float2 x = numbers(all[4 * g + k % 8 / 2].a[k / 8 * 2 + row], S());
      const float2 y = numbers(all[4 * column + k % 8 / 2].b[k / 8], S());
      d[i] += k % 2 ? x.y * y.y : x.x * y.x;
    }
  }
}

inline u32 halves(float x, float y) {
  const _Float16 two[2] = {static_cast<_Float16>(x), static_cast<_Float16>(y)};
  u32 word;
  std::memcpy(&word, two, sizeof word);
  return word;
}
inline float2 both(u32 word) {
  static const std::vector<float> all = [] {  // the compiler's own conversion is slow
    std::vector<float> values(1 << 16);
    for (unsigned bits = 0; bits < values.size(); bits++) {
      _Float16 x;
      const u16 half = bits;
      std::memcpy(&x, &half, sizeof x);
      values[bits] = x;
    }
    return values;
  }();
  return {all[word & 0xffffu], all[word >> 16]};
}

template <bool TURNED> void load_tiles(u32 (&x)[4], const void* row) {
  const void* const* rows = exchange(row);
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int i = 0; i < 4; i++) {
    u16 pair[2];
    for (int j = 0; j < 2; j++)
      pair[j] = TURNED ? static_cast<const u16*>(rows[8 * i + 2 * t + j])[g] : static_cast<const u16*>(rows[8 * i + g])[2 * t + j];
    x[i] = pair[0] | static_cast<u32>(pair[1]) << 16;
  }
}

inline u32 transposed(u32 x) {
  const u32* all = exchange(x);
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  u32 y = 0;
  for (int j = 0; j < 2; j++) y |= (all[4 * (2 * t + j) + g / 2] >> 16 * (g % 2) & 0xffffu) << 16 * j;
  return y;
}

inline float __expf(float x) { return std::exp(x); }

inline void prefetch(const void*) {}
inline void copy16(void* to, const void* from, bool present) {
  if (present) std::memcpy(to, from, 16);
  else std::memset(to, 0, 16);
}
inline void commit() {}
template <int LATER> void arrived() {}
