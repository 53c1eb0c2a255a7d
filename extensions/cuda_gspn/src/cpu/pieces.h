// Vectors whose lanes come from several places: the channels of one or more positions that lie apart in memory.
#pragma once

#include "cpu/convert.h"

namespace cgspn::cpu {
namespace {

typedef uint64_t Words2 __attribute__((vector_size(16)));
typedef uint64_t Words4 __attribute__((vector_size(32)));
typedef uint64_t Words8 __attribute__((vector_size(64)));

// `kBytes` bytes made of `kPieces` equal runs that lie `distance` bytes apart.
template <int kBytes, int kPieces>
__attribute__((always_inline)) inline auto gather_bytes(const char* p, int64_t distance) {
  constexpr int kHalf = kPieces / 2;
  if constexpr (kPieces == 1 && kBytes == 8) {
    return load_unaligned<uint64_t>(p);
  } else if constexpr (kPieces == 1) {
    if constexpr (kBytes == 16) return load_unaligned<Words2>(p);
    if constexpr (kBytes == 32) return load_unaligned<Words4>(p);
    if constexpr (kBytes == 64) return load_unaligned<Words8>(p);
  } else {
    const auto low = gather_bytes<kBytes / 2, kHalf>(p, distance);
    const auto high = gather_bytes<kBytes / 2, kHalf>(p + kHalf * distance, distance);
    if constexpr (kBytes == 16) return Words2{low, high};
    if constexpr (kBytes == 32) return __builtin_shufflevector(low, high, 0, 1, 2, 3);
    if constexpr (kBytes == 64) return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
  }
}

template <int kBytes, int kPieces, class V>
__attribute__((always_inline)) inline void scatter_bytes(char* p, int64_t distance, V v) {
  static_assert(sizeof(V) == kBytes);
  if constexpr (kPieces == 1) {
    std::memcpy(p, &v, kBytes);
  } else {
    constexpr int kHalf = kPieces / 2;
    char* const high = p + kHalf * distance;
    if constexpr (kBytes == 16) {
      scatter_bytes<8, kHalf>(p, distance, static_cast<uint64_t>(v[0]));
      scatter_bytes<8, kHalf>(high, distance, static_cast<uint64_t>(v[1]));
    } else if constexpr (kBytes == 32) {
      scatter_bytes<16, kHalf>(p, distance, __builtin_shufflevector(v, v, 0, 1));
      scatter_bytes<16, kHalf>(high, distance, __builtin_shufflevector(v, v, 2, 3));
    } else {
      scatter_bytes<32, kHalf>(p, distance, __builtin_shufflevector(v, v, 0, 1, 2, 3));
      scatter_bytes<32, kHalf>(high, distance, __builtin_shufflevector(v, v, 4, 5, 6, 7));
    }
  }
}

// Bytes of the stored elements of one vector.
template <class In>
constexpr int kStoredBytes = static_cast<int>(kLanes<typename Compute<In>::type> * sizeof(In));

// Whether vectors of `kPieces` runs exist: a run has 8 bytes at least.
template <class In, int kPieces>
constexpr bool kHasPieces = kPieces == 1 || (kStoredBytes<In> / kPieces >= 8 && kStoredBytes<In> >= 16);

// One vector of `kPieces` equal runs, `distance` elements apart.
template <int kPieces, class In>
__attribute__((always_inline)) inline auto load_pieces(const In* p, int64_t distance) {
  if constexpr (kPieces == 1) {
    return load_as(p);
  } else {
    const auto words = gather_bytes<kStoredBytes<In>, kPieces>(reinterpret_cast<const char*>(p), distance * static_cast<int64_t>(sizeof(In)));
    In stored[kStoredBytes<In> / sizeof(In)];
    std::memcpy(stored, &words, sizeof words);
    return load_as(stored);
  }
}

template <int kPieces, class In, class V>
__attribute__((always_inline)) inline void store_pieces(In* p, int64_t distance, V v) {
  if constexpr (kPieces == 1) {
    store_as(p, v);
  } else {
    In stored[kStoredBytes<In> / sizeof(In)];
    store_as(stored, v);
    using Words = decltype(gather_bytes<kStoredBytes<In>, 1>(nullptr, 0));
    scatter_bytes<kStoredBytes<In>, kPieces>(reinterpret_cast<char*>(p), distance * static_cast<int64_t>(sizeof(In)), load_unaligned<Words>(stored));
  }
}

}  // namespace
}  // namespace cgspn::cpu
