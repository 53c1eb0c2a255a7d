// Tensors seen along a scan direction.
#pragma once

#include "cpu/kernels.h"
#include "cpu/lines.h"

namespace cgspn::cpu {
namespace {

inline bool is_reversed(Direction direction) {
  return direction == Direction::kBottomTop || direction == Direction::kRightLeft;
}

inline Extent extent_of(const LineScanShape& shape, const Block& block) {
  return block.vertical ? Extent{shape.height, shape.width, block.channels} : Extent{shape.width, shape.height, block.channels};
}

template <class In>
Plane<In> plane(void* data, int64_t offset, int64_t channel, int64_t h, int64_t w, const LineScanShape& shape, Direction direction) {
  if (data == nullptr) return {};
  In* first = static_cast<In*>(data) + offset;
  switch (direction) {
    case Direction::kTopBottom: return {first, h, w, channel};
    case Direction::kBottomTop: return {first + (shape.height - 1) * h, -h, w, channel};
    case Direction::kLeftRight: return {first, w, h, channel};
    default: return {first + (shape.width - 1) * w, -w, h, channel};
  }
}

template <class In>
Plane<In> plane(const ImageView& view, const LineScanShape& shape, const Block& block, int d) {
  const int64_t offset = block.batch * view.b + block.channel * view.c;
  return plane<In>(view.data, offset, view.c, view.h, view.w, shape, shape.directions[d]);
}

template <class In>
Plane<In> plane(const DirectionView& view, const LineScanShape& shape, const Block& block, int d) {
  const int64_t offset = block.batch * view.b + d * view.d + block.channel * view.c;
  return plane<In>(view.data, offset, view.c, view.h, view.w, shape, shape.directions[d]);
}

template <class In>
Plane<In> plane(const AffinityView& view, const LineScanShape& shape, const Block& block, int d, int k) {
  const int64_t offset = block.batch * view.b + d * view.d + k * view.k + block.channel * view.c;
  return plane<In>(view.data, offset, view.c, view.h, view.w, shape, shape.directions[d]);
}

// Lines that are read and written together; `position`: the step in memory between the positions of a horizontal line.
// Where a line's elements are apart in memory and the next line's lie beside them, they are fetched together; else what
// was just written to a buffer must not be read at once in vectors of another size, which waits for all stores before.
inline int64_t lines_together(const Block& block, const Extent& extent, int64_t position) {
  if (!block.vertical && block.channels == 1) return extent.positions > 2048 ? 8 : 64;
  const bool interleaved = block.channels == 1 && position != 1 && position != -1;
  const int64_t lines = interleaved ? 1 : 8192 / extent.size();
  return lines < 1 ? 1 : lines > 64 ? 64 : lines;
}

// The line of an image that scan line `i` is.
inline int64_t image_line(Direction direction, int64_t i, int64_t lines) {
  return is_reversed(direction) ? lines - 1 - i : i;
}

// Whether the scan starts afresh at line `i`.
inline bool starts_segment(int64_t i, int64_t chunk) { return chunk == 0 ? i == 0 : i % chunk == 0; }

}  // namespace
}  // namespace cgspn::cpu
