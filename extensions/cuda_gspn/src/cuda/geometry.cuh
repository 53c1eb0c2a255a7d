// How a scan direction walks a (H, W) image: lines, positions on a line, and strides along both.
#pragma once

#include "cgspn/line_scan.h"

namespace cgspn::cuda {

inline bool is_vertical(Direction d) { return d == Direction::kTopBottom || d == Direction::kBottomTop; }
inline bool is_reversed(Direction d) { return d == Direction::kBottomTop || d == Direction::kRightLeft; }

inline int64_t num_lines(const LineScanShape& s, Direction d) { return is_vertical(d) ? s.height : s.width; }
inline int64_t line_length(const LineScanShape& s, Direction d) { return is_vertical(d) ? s.width : s.height; }

// One direction of a tensor: strides of batch, channel, line and position in elements.
template <typename T>
struct LineView {
  T* data = nullptr;
  int64_t b = 0, c = 0, line = 0, pos = 0;
};

template <typename T>
LineView<T> line_view(const ImageView& v, Direction d) {
  const bool vertical = is_vertical(d);
  return {static_cast<T*>(v.data), v.b, v.c, vertical ? v.h : v.w, vertical ? v.w : v.h};
}

template <typename T>
LineView<T> line_view(const DirectionView& v, Direction d, int slot) {
  const bool vertical = is_vertical(d);
  T* data = v.data == nullptr ? nullptr : static_cast<T*>(v.data) + slot * v.d;
  return {data, v.b, v.c, vertical ? v.h : v.w, vertical ? v.w : v.h};
}

// The three neighbours' logits or weights lie `k` elements apart.
template <typename T>
struct AffinityLines {
  T* data = nullptr;
  int64_t b = 0, k = 0, c = 0, line = 0, pos = 0;
};

template <typename T>
AffinityLines<T> affinity_lines(const AffinityView& v, Direction d, int slot) {
  const bool vertical = is_vertical(d);
  T* data = v.data == nullptr ? nullptr : static_cast<T*>(v.data) + slot * v.d;
  return {data, v.b, v.k, v.c, vertical ? v.h : v.w, vertical ? v.w : v.h};
}

// Elements that a buffer must hold to be addressed with these strides.
inline int64_t addressed_extent(const LineScanShape& s, const ImageView& v) {
  return 1 + (s.batch - 1) * v.b + (s.channels - 1) * v.c + (s.height - 1) * v.h + (s.width - 1) * v.w;
}

}  // namespace cgspn::cuda
