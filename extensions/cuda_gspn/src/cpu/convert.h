// Runs of elements between memory (any dtype) and line buffers (float or double).
#pragma once

#include "cpu/vec.h"

namespace cgspn::cpu {
namespace {

// Storage of float16 and bfloat16: the bits.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The type that a storage type is computed in.
template <class In>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

inline float widen(BFloat16 v) { return bit_cast<float>(static_cast<uint32_t>(v.bits) << 16); }

inline float widen(Half v) {
#if defined(__F16C__)
  return _cvtsh_ss(v.bits);
#else
  const uint32_t sign = static_cast<uint32_t>(v.bits & 0x8000) << 16, magnitude = v.bits & 0x7fff;
  if (magnitude >= 0x7c00) return bit_cast<float>(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  // Scaling by 2^112 moves the exponent and turns subnormal halves into normal floats.
  return bit_cast<float>(sign | bit_cast<uint32_t>(bit_cast<float>(magnitude << 13) * 0x1p112f));
#endif
}

inline float widen(float v) { return v; }
inline double widen(double v) { return v; }

template <class Out, class T>
inline Out narrow(T v) {
  return v;
}

template <>
inline BFloat16 narrow(float v) {
  const uint32_t bits = bit_cast<uint32_t>(v);
  if (v != v) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

template <>
inline Half narrow(float v) {
#if defined(__F16C__)
  return {static_cast<uint16_t>(_cvtss_sh(v, _MM_FROUND_TO_NEAREST_INT))};
#else
  const uint32_t bits = bit_cast<uint32_t>(v), magnitude = bits & 0x7fffffff;
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  if (magnitude > 0x7f800000) return {static_cast<uint16_t>(sign | 0x7e00)};
  if (magnitude >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};
  if (magnitude < 0x38800000) {
    // Adding 0.5 aligns the subnormal's last place with the float's, which rounds to nearest even.
    const float aligned = bit_cast<float>(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (bit_cast<uint32_t>(aligned) - 0x3f000000))};
  }
  const uint32_t rounded = magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1);
  return {static_cast<uint16_t>(sign | rounded >> 13)};
#endif
}

// Eight elements at a time.
typedef float Float8 __attribute__((vector_size(32)));
typedef uint32_t Bits32x8 __attribute__((vector_size(32)));
typedef uint16_t Bits16x8 __attribute__((vector_size(16)));

template <class V, class In>
inline V load_unaligned(const In* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline Float8 load8(const float* p) { return load_unaligned<Float8>(p); }
inline Float8 load8(const BFloat16* p) {
  return bit_cast<Float8>(__builtin_convertvector(load_unaligned<Bits16x8>(p), Bits32x8) << 16);
}
inline Float8 load8(const Half* p) {
#if defined(__F16C__)
  return bit_cast<Float8>(_mm256_cvtph_ps(load_unaligned<__m128i>(p)));
#else
  Float8 v;
  for (int i = 0; i < 8; ++i) v[i] = widen(p[i]);
  return v;
#endif
}

inline void store8(float* p, Float8 v) { std::memcpy(p, &v, sizeof v); }
inline void store8(BFloat16* p, Float8 v) {
  const Bits32x8 bits = bit_cast<Bits32x8>(v);
  const Bits32x8 rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, quiet = bits >> 16 | 0x40;
  const Bits16x8 out = __builtin_convertvector(v == v ? rounded : quiet, Bits16x8);
  std::memcpy(p, &out, sizeof out);
}
inline void store8(Half* p, Float8 v) {
#if defined(__F16C__)
  const __m128i bits = _mm256_cvtps_ph(bit_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(p, &bits, sizeof bits);
#else
  for (int i = 0; i < 8; ++i) p[i] = narrow<Half>(v[i]);
#endif
}

// One vector from and to memory.
typedef uint16_t Bits16 __attribute__((vector_size(kVecBytes / 2)));
typedef uint32_t Bits32 __attribute__((vector_size(kVecBytes)));

inline Vec<float> load_as(const float* p) { return load(p); }
inline Vec<double> load_as(const double* p) { return load(p); }
inline Vec<float> load_as(const BFloat16* p) {
  Bits16 bits;
  std::memcpy(&bits, p, sizeof bits);
  return bit_cast<Vec<float>>(__builtin_convertvector(bits, Bits32) << 16);
}
inline Vec<float> load_as(const Half* p) {
#if defined(__AVX512F__)
  return bit_cast<Vec<float>>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#else
  if constexpr (kLanes<float> == 8) {
    return bit_cast<Vec<float>>(load8(p));
  } else {
    Vec<float> v;
    for (int i = 0; i < kLanes<float>; ++i) v[i] = widen(p[i]);
    return v;
  }
#endif
}

inline void store_as(float* p, Vec<float> v) { store(p, v); }
inline void store_as(double* p, Vec<double> v) { store(p, v); }
inline void store_as(BFloat16* p, Vec<float> v) {
  const Bits32 bits = bit_cast<Bits32>(v);
  const Bits32 rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, quiet = bits >> 16 | 0x40;
  const Bits16 out = __builtin_convertvector(v == v ? rounded : quiet, Bits16);
  std::memcpy(p, &out, sizeof out);
}
inline void store_as(Half* p, Vec<float> v) {
#if defined(__AVX512F__)
  const __m512 wide = bit_cast<__m512>(v);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(wide, _MM_FROUND_TO_NEAREST_INT));
#else
  if constexpr (kLanes<float> == 8) {
    store8(p, bit_cast<Float8>(v));
  } else {
    for (int i = 0; i < kLanes<float>; ++i) p[i] = narrow<Half>(v[i]);
  }
#endif
}

// Runs are converted in whole vectors, the last one moved back to end with the run, shorter ones by eights.
template <class Element>
constexpr int64_t kRunAhead = 2048 / static_cast<int64_t>(sizeof(Element));

template <class T, class In>
inline void read_run(T* __restrict to, const In* __restrict from, int64_t n) {
  constexpr int64_t kStep = kLanes<T>;
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    __builtin_prefetch(from + i + kRunAhead<In>, 0, 2);
    store(to + i, load_as(from + i));
  }
  if (i < n && n >= kStep) return store(to + n - kStep, load_as(from + n - kStep));
  if constexpr (sizeof(T) == sizeof(float)) {
    for (; i + 8 <= n; i += 8) store8(to + i, load8(from + i));
  }
  for (; i < n; ++i) to[i] = widen(from[i]);
}

template <class T, class Out>
inline void write_run(Out* __restrict to, const T* __restrict from, int64_t n) {
  constexpr int64_t kStep = kLanes<T>;
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    __builtin_prefetch(to + i + kRunAhead<Out>, 1, 2);
    store_as(to + i, load(from + i));
  }
  if (i < n && n >= kStep) return store_as(to + n - kStep, load(from + n - kStep));
  if constexpr (sizeof(T) == sizeof(float)) {
    for (; i + 8 <= n; i += 8) store8(to + i, load8(from + i));
  }
  for (; i < n; ++i) to[i] = narrow<Out>(from[i]);
}

}  // namespace
}  // namespace cgspn::cpu
