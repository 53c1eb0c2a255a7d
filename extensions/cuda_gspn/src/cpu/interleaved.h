// Lines with one channel whose elements are apart in memory, between several tensors that may lie side by side there
// and their line buffers: tile by tile, all tensors in turn, so that a cache line they share is fetched once.
#pragma once

#include <type_traits>

#include "cpu/lines.h"

namespace cgspn::cpu {
namespace {

// Whether neither the positions nor, of several lines, the lines are neighbours in memory.
template <class In>
bool is_interleaved(const Plane<In>& plane, int64_t count, const Extent& extent) {
  const auto apart = [](int64_t step) { return step < -1 || step > 1; };
  return extent.channels == 1 && apart(plane.position) && (count == 1 || apart(plane.line));
}

typedef float Float4 __attribute__((vector_size(16)));

inline Float4 load4(const float* p) { return load_unaligned<Float4>(p); }
template <class In>
inline Float4 load4(const In* p) {
  return Float4{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])};
}

// Values p[v], v < 4, of eight positions `distance` elements apart.
template <class In>
__attribute__((always_inline)) inline void load_values(Float8 (&values)[4], const In* p, int64_t distance) {
  Float8 rows[4], pairs[4];
  for (int k = 0; k < 4; ++k) {
    rows[k] = __builtin_shufflevector(load4(p + k * distance), load4(p + (k + 4) * distance), 0, 1, 2, 3, 4, 5, 6, 7);
  }
  for (int k = 0; k < 2; ++k) {
    pairs[k] = __builtin_shufflevector(rows[2 * k], rows[2 * k + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    pairs[2 + k] = __builtin_shufflevector(rows[2 * k], rows[2 * k + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int k = 0; k < 2; ++k) {
    values[2 * k] = __builtin_shufflevector(pairs[2 * k], pairs[2 * k + 1], 0, 1, 8, 9, 4, 5, 12, 13);
    values[2 * k + 1] = __builtin_shufflevector(pairs[2 * k], pairs[2 * k + 1], 2, 3, 10, 11, 6, 7, 14, 15);
  }
}

// Copies that are collected first and then done together. `Stored` is const where tensors are read.
template <class T, class Stored>
class Interleaved {
 public:
  // `line` is the first of the lines, whose buffers are `stride` elements apart.
  void add(T* buffer, int64_t stride, const Plane<Stored>& line) {
    if (size_ > 0) {
      // Tensors that are neighbours in memory are one group of values.
      Group& last = groups_[size_ - 1];
      const bool beside = line.data == last.plane.data + last.values && line.position == last.plane.position &&
                          line.line == last.plane.line && stride == last.stride;
      if (beside && last.values < 4) {
        last.buffers[last.values++] = buffer;
        return;
      }
    }
    groups_[size_++] = {{buffer, buffer, buffer, buffer}, stride, line, 1};
  }

  void run(int64_t count, int64_t positions) {
    if (size_ == 0) return;
    // Positions of one line lie close together, those of several lines a row of the image apart.
    const int64_t ahead = count == 1 ? kAhead : kTile;
    for (int64_t j = 0; j < positions; j += kTile) {
      const int64_t end = j + kTile < positions ? j + kTile : positions;
      for (int64_t i = 0; i < count; ++i) {
        for (int k = 0; k < size_; ++k) {
          if (k == 0 || k == size_ - 1 || apart(groups_[k], groups_[0])) ask(groups_[k].plane, i, j + ahead);
        }
        for (int k = 0; k < size_; ++k) copy(groups_[k], i, j, end, end < positions);
      }
    }
    size_ = 0;
  }

 private:
  struct Group {
    T* buffers[4];
    int64_t stride;
    Plane<Stored> plane;
    int values;
  };
  static constexpr int64_t kTile = 8, kAhead = 64, kApart = 64;

  // Whether two groups lie in different tensors rather than in one row of values.
  static bool apart(const Group& one, const Group& other) {
    const int64_t distance = one.plane.data - other.plane.data;
    return distance < -kApart || distance > kApart;
  }

  static void ask(const Plane<Stored>& plane, int64_t line, int64_t position) {
    const Stored* const first = plane.data + line * plane.line + position * plane.position;
    for (int64_t j = 0; j < kTile; ++j) __builtin_prefetch(first + j * plane.position, 0, 2);
  }

  static void copy(const Group& group, int64_t i, int64_t begin, int64_t end, bool more) {
    const int64_t position = group.plane.position, first = i * group.stride;
    Stored* const line = group.plane.data + i * group.plane.line;
    if constexpr (std::is_const_v<Stored> && sizeof(T) == sizeof(float)) {
      // Four values are read where there is a position behind, so that they lie inside the tensor.
      if (more && position >= 4) {
        Float8 values[4];
        load_values(values, line + begin * position, position);
        for (int v = 0; v < group.values; ++v) store8(group.buffers[v] + first + begin, values[v]);
        return;
      }
    }
    for (int v = 0; v < group.values; ++v) {
      T* const buffer = group.buffers[v] + first;
      for (int64_t j = begin; j < end; ++j) {
        if constexpr (std::is_const_v<Stored>) {
          buffer[j] = widen(line[j * position + v]);
        } else {
          line[j * position + v] = narrow<Stored>(buffer[j]);
        }
      }
    }
  }

  Group groups_[8];
  int size_ = 0;
};

}  // namespace
}  // namespace cgspn::cpu
