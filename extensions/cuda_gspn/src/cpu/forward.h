// Forward scans of one block along one axis.
#pragma once

#include "cpu/forward_rows.h"
#include "cpu/readers.h"

namespace cgspn::cpu {
namespace {

template <class T, class In>
void forward_as(const LineScanForward& call, const Block& block, Partial partial) {
  if (const int pieces = pieces_of<T, In>(call, block)) {
    return with_pieces<In>(pieces, [&](auto n) { forward_rows<T, In, n()>(call, block, partial); });
  }
  const LineScanShape& shape = call.shape;
  const Extent extent = extent_of(shape, block);
  const int64_t together = lines_together(block, extent, call.a.w);
  AffinityReader<T, In> affinity(shape, block, together);
  GateReader<T, In> lam(call.lam, shape, block, together), u(call.u, shape, block, together);
  const bool separate = !call.sum && call.y.data != nullptr;
  Source<T, In> x(together, extent);
  const Lines<T> y(separate ? together : 0, extent.size(), 0);
  // Two groups of lines take turns, so that the line before a group is still there.
  const Lines<T> h(2 * together, extent.size(), extent.channels);
  Interleaved<T, const In> interleaved;
  bool add = false;
  for (int d = 0; d < shape.num_directions; ++d) {
    const Direction direction = shape.directions[d];
    if (is_vertical(direction) != block.vertical) continue;
    const T* h_before = nullptr;
    int64_t group = 0;
    for (int64_t first = 0; first < extent.lines; first += together, group ^= together) {
      const int64_t count = extent.lines - first < together ? extent.lines - first : together;
      x.read(plane<In>(call.x, shape, block, d), first, count, interleaved);
      affinity.read(call.a, shape, block, d, first, count, interleaved);
      lam.read(call.lam, shape, block, d, first, count, interleaved);
      if (call.y.data != nullptr) u.read(call.u, shape, block, d, first, count, interleaved);
      interleaved.run(count, extent.positions);
      for (int64_t t = 0; t < count; ++t) {
        const int64_t i = first + t;
        ForwardLine<T> line{};
        line.size = extent.size();
        line.channels = extent.channels;
        line.x = x.line(t);
        line.lam = lam.line(t);
        line.u = u.line(t);
        for (int k = 0; k < 3; ++k) line.a[k] = affinity.line(k, t);
        line.h_before = starts_segment(i, shape.chunk) ? nullptr : h_before;
        line.h = h[group + t];
        if (separate) line.y = y[t];
        if (call.sum) line.y = static_cast<T*>(partial.data) + image_line(direction, i, extent.lines) * partial.stride;
        line.add = add;
        affinity.logits() ? forward_line<T, true>(line) : forward_line<T, false>(line);
        h_before = line.h;
      }
      if (call.state.data != nullptr) {
        write_lines(plane<In>(call.state, shape, block, d).from_line(first), h[group], h.stride(), count, extent);
      }
      if (separate) write_lines(plane<In>(call.y, shape, block, d).from_line(first), y[0], y.stride(), count, extent);
    }
    add = call.sum;
  }
}

// Lines whose positions are columns of a partial sum: column by column, in which the lines lie side by side.
template <class T>
void read_turned(const Lines<T>& to, const Plane<const T>& from, int64_t count, const Extent& extent) {
  constexpr int64_t kAhead = 8, kCacheLine = 64 / static_cast<int64_t>(sizeof(T));
  const int64_t channels = extent.channels;
  for (int64_t j = 0; j < extent.positions; ++j) {
    const T* const column = from.data + j * from.position;
    for (int64_t e = 0; e < count * channels; e += kCacheLine) __builtin_prefetch(column + kAhead * from.position + e, 0, 2);
    for (int64_t t = 0; t < count; ++t) read_run(to[t] + j * channels, column + t * channels, channels);
  }
}

// Image rows [row_begin, row_end) of the sum of both axes' partial sums.
template <class T, class Out>
void combine_as(
    const LineScanShape& shape, const ImageView& to, const Block& block, Partial vertical, Partial horizontal,
    int64_t row_begin, int64_t row_end) {
  const Extent extent{shape.height, shape.width, block.channels};
  const int64_t offset = block.batch * to.b + block.channel * to.c;
  const Plane<Out> out = plane<Out>(to.data, offset, to.c, to.h, to.w, shape, Direction::kTopBottom);
  const T *rows = static_cast<const T*>(vertical.data), *columns = static_cast<const T*>(horizontal.data);
  constexpr int64_t kRows = 16;
  const Lines<T> sum(kRows, extent.size(), 0);
  for (int64_t row = row_begin; row < row_end; row += kRows) {
    const int64_t count = row_end - row < kRows ? row_end - row : kRows;
    if (columns != nullptr) {
      const Plane<const T> turned{columns + row * block.channels, block.channels, horizontal.stride, 1};
      block.channels == 1 ? read_lines(sum[0], sum.stride(), turned, count, extent) : read_turned(sum, turned, count, extent);
    }
    for (int64_t t = 0; t < count; ++t) {
      const T* line = sum[t];
      if (rows != nullptr) {
        const T* other = rows + (row + t) * vertical.stride;
        if (columns == nullptr) {
          line = other;
        } else {
          for (int64_t e = 0; e < extent.size(); e += kLanes<T>) store(sum[t] + e, load(other + e) + load(line + e));
        }
      }
      write_line(out.from_line(row + t), line, extent);
    }
  }
}

}  // namespace
}  // namespace cgspn::cpu
