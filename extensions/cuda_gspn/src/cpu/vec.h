// Vectors of the widest registers that this translation unit may use, and the few functions on them.
// Everything here has internal linkage: the same source is compiled once per instruction set.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace cgspn::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kVecBytes = 64;
#elif defined(__AVX2__)
constexpr int kVecBytes = 32;
#else
constexpr int kVecBytes = 16;
#endif

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(kVecBytes)));
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
constexpr int64_t kLanes = kVecBytes / sizeof(T);

template <class T>
struct IntOf;
template <>
struct IntOf<float> {
  using type = int32_t;
};
template <>
struct IntOf<double> {
  using type = int64_t;
};
template <class T>
using Int = typename IntOf<T>::type;
template <class T>
using Mask = Vec<Int<T>>;

template <class T>
inline Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
inline void store(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof v);
}

template <class T>
inline Vec<T> splat(T value) {
  return value - Vec<T>{};
}

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// Lane numbers 0, 1, 2, ...
template <class T>
inline Mask<T> lane_numbers() {
  Mask<T> lanes{};
  for (int i = 0; i < kLanes<T>; ++i) lanes[i] = i;
  return lanes;
}

// max(low, min(high, v)) that keeps NaN.
template <class T>
inline Vec<T> clamp(Vec<T> v, T low, T high) {
  v = v < low ? splat(low) : v;
  return v > high ? splat(high) : v;
}
#if defined(__AVX512F__)
template <>
inline Vec<float> clamp(Vec<float> v, float low, float high) {
  const __m512 raised = _mm512_max_ps(_mm512_set1_ps(low), bit_cast<__m512>(v));
  return bit_cast<Vec<float>>(_mm512_min_ps(_mm512_set1_ps(high), raised));
}
#elif defined(__AVX2__)
template <>
inline Vec<float> clamp(Vec<float> v, float low, float high) {
  const __m256 raised = _mm256_max_ps(_mm256_set1_ps(low), bit_cast<__m256>(v));
  return bit_cast<Vec<float>>(_mm256_min_ps(_mm256_set1_ps(high), raised));
}
#endif

template <class T>
constexpr T kLogitMin = T(-40);

// 2^-kShift exp(-a), with a held to [-40, 87 - 0.7 kShift] (float32) or [-40, 700] (float64); relative error 2e-7 and
// 1e-15.
#if defined(__AVX512F__)
// 2^t is 2^(i / 32) out of a table in two registers, times a power of two made of exponent bits, times a minimax
// polynomial on [-1/64, 1/64].
struct Powers {
  alignas(64) uint32_t bits[32];
};

constexpr Powers powers_of_two() {
  Powers table{};
  double power = 1;
  for (uint32_t i = 0; i < 32; ++i) {
    // The exponent bits that are added later bring i along, 18 places up.
    table.bits[i] = __builtin_bit_cast(uint32_t, static_cast<float>(power)) - (i << 18);
    power *= 1.0218971486541166782;
  }
  return table;
}

template <int kShift = 0>
inline Vec<float> exp_negative(Vec<float> a) {
  static constexpr Powers kPowers = powers_of_two();
  a = clamp<float>(a, kLogitMin<float>, 87.0f - 0.7f * kShift);
  constexpr float kScale = -1.44269504088896341f, kRound = 393216.0f - kShift;
  const Vec<float> shifted = a * kScale + kRound;
  const Vec<float> f = a * kScale - (shifted - kRound);
  const __m512i bits = bit_cast<__m512i>(shifted);
  const __m512i root = _mm512_permutex2var_epi32(_mm512_load_si512(kPowers.bits), bits, _mm512_load_si512(kPowers.bits + 16));
  const Vec<float> power = bit_cast<Vec<float>>(_mm512_add_epi32(root, _mm512_slli_epi32(bits, 18)));
  Vec<float> p = f * 0.24022650695910072f + 0.69315734366577994f;
  p = p * f + 1.0f;
  return power * p;
}
#else
// 2^t is a power of two, made of exponent bits, times a minimax polynomial on [-1/2, 1/2].
template <int kShift = 0>
inline Vec<float> exp_negative(Vec<float> a) {
  a = clamp<float>(a, kLogitMin<float>, 87.0f - 0.7f * kShift);
  constexpr float kScale = -1.44269504088896341f, kRound = 12582912.0f + 127.0f - kShift;
  const Vec<float> shifted = a * kScale + kRound;
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  const Vec<float> f = a * kScale - (shifted - kRound);
#else
  // The product would be rounded before the subtraction; ln 2 in two parts keeps the difference exact.
  const Vec<float> n = shifted - kRound;
  const Vec<float> f = ((a + n * 0.693359375f) - n * 2.12194440e-4f) * kScale;
#endif
  Vec<float> p = f * 0.0013276472167819943f + 0.0096755413310213911f;
  p = p * f + 0.05550713272875391f;
  p = p * f + 0.24022119723969178f;
  p = p * f + 0.69314696706526493f;
  p = p * f + 1.0000000716546416f;
  return p * bit_cast<Vec<float>>(bit_cast<Mask<float>>(shifted) << 23);
}
#endif

template <int kShift = 0>
inline Vec<double> exp_negative(Vec<double> a) {
  a = clamp<double>(a, kLogitMin<double>, 700.0);
  constexpr double kLog2e = -1.4426950408889634074, kRound = 6755399441055744.0 + 1023.0 - kShift;
  constexpr double kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;
  const Vec<double> shifted = a * kLog2e + kRound;
  const Vec<double> n = shifted - kRound;
  const Vec<double> f = ((-a - n * kLn2High) - n * kLn2Low) * 1.4426950408889634074;
  constexpr double kPolynomial[] = {
      4.4352809446103361611e-10, 7.0741056262456593708e-9, 1.0178198033328527662e-7, 1.3215433089594629037e-6,
      0.0000152527334899608046,  0.00015403530462514613026, 0.0013333558146789950323, 0.0096181291075883350833,
      0.055504108664819921483,   0.24022650695910156205,    0.69314718055994533046,   1.0};
  Vec<double> p = splat(kPolynomial[0]);
  for (int i = 1; i < 12; ++i) p = p * f + kPolynomial[i];
  return p * bit_cast<Vec<double>>(bit_cast<Mask<double>>(shifted) << 52);
}

}  // namespace
}  // namespace cgspn::cpu
