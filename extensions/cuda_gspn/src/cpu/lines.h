// Line buffers: the elements of one scan line, position by position with its block of channels, so that the
// neighbours j-1 and j+1 of every element lie `channels` before and after it.
#pragma once

#include <cstdlib>
#include <new>

#include "cgspn/line_scan.h"
#include "cpu/convert.h"

namespace cgspn::cpu {
namespace {

// Elements per line are rounded up to this, so that whole vectors can be read and written.
constexpr int64_t kPad = 16;

inline int64_t padded(int64_t n) { return (n + kPad - 1) / kPad * kPad; }

// Zeroed memory for some lines of `size` elements with `halo` elements on either side of each.
template <class T>
class Lines {
 public:
  Lines() = default;
  Lines(int64_t count, int64_t size, int64_t halo) : halo_(padded(halo)), stride_(padded(size) + 2 * halo_) {
    // An odd number of cache lines: lines written side by side must not share one set of the cache.
    if (stride_ / kPad % 2 == 0) stride_ += kPad;
    const size_t bytes = static_cast<size_t>(count * stride_ + kPad) * sizeof(T);
    memory_ = static_cast<T*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
    if (memory_ == nullptr) throw std::bad_alloc();
    std::memset(static_cast<void*>(memory_), 0, bytes);
  }
  Lines(Lines&& other) noexcept : memory_(other.memory_), halo_(other.halo_), stride_(other.stride_) { other.memory_ = nullptr; }
  Lines& operator=(Lines&& other) noexcept {
    T* const memory = memory_;
    memory_ = other.memory_;
    other.memory_ = memory;
    halo_ = other.halo_;
    stride_ = other.stride_;
    return *this;
  }
  ~Lines() { std::free(memory_); }

  T* operator[](int64_t line) const { return memory_ + line * stride_ + halo_; }
  int64_t stride() const { return stride_; }

 private:
  T* memory_ = nullptr;
  int64_t halo_ = 0, stride_ = 0;
};

// A tensor seen along one scan direction: element (line i, position j, channel c) is at
// data[i * line + j * position + c * channel].
template <class In>
struct Plane {
  In* data = nullptr;
  int64_t line = 0, position = 0, channel = 0;

  Plane from_line(int64_t i) const { return {data + i * line, line, position, channel}; }
};

// Extents of one task: `lines` scan lines of `positions` positions with `channels` channels.
struct Extent {
  int64_t lines, positions, channels;
  int64_t size() const { return positions * channels; }
};

template <class T, class In>
void read_line(T* to, const Plane<In>& from, const Extent& extent) {
  const int64_t positions = extent.positions, channels = extent.channels;
  if (channels == 1 ? from.position == 1 : from.channel == 1 && from.position == channels) {
    read_run(to, from.data, extent.size());
  } else if (channels == 1) {
    for (int64_t j = 0; j < positions; ++j) to[j] = widen(from.data[j * from.position]);
  } else if (from.channel == 1) {
    for (int64_t j = 0; j < positions; ++j) {
      const In* run = from.data + j * from.position;
      // The next line is a step of its own away in memory, where the hardware does not look ahead.
      for (int64_t c = 0; c < channels; c += 64 / static_cast<int64_t>(sizeof(In))) __builtin_prefetch(run + from.line + c, 0, 2);
      read_run(to + j * channels, run, channels);
    }
  } else {
    for (int64_t j = 0; j < positions; ++j) {
      for (int64_t c = 0; c < channels; ++c) to[j * channels + c] = widen(from.data[j * from.position + c * from.channel]);
    }
  }
}

template <class T, class Out>
void write_line(const Plane<Out>& to, const T* from, const Extent& extent) {
  const int64_t positions = extent.positions, channels = extent.channels;
  if (channels == 1 ? to.position == 1 : to.channel == 1 && to.position == channels) {
    write_run(to.data, from, extent.size());
  } else if (channels == 1) {
    for (int64_t j = 0; j < positions; ++j) to.data[j * to.position] = narrow<Out>(from[j]);
  } else if (to.channel == 1) {
    for (int64_t j = 0; j < positions; ++j) write_run(to.data + j * to.position, from + j * channels, channels);
  } else {
    for (int64_t j = 0; j < positions; ++j) {
      for (int64_t c = 0; c < channels; ++c) to.data[j * to.position + c * to.channel] = narrow<Out>(from[j * channels + c]);
    }
  }
}

inline void transpose8(Float8 (&rows)[8]) {
  Float8 pairs[8], quads[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = __builtin_shufflevector(rows[i], rows[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    pairs[i + 1] = __builtin_shufflevector(rows[i], rows[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4) {
    quads[i] = __builtin_shufflevector(pairs[i], pairs[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
    quads[i + 1] = __builtin_shufflevector(pairs[i], pairs[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    quads[i + 2] = __builtin_shufflevector(pairs[i + 1], pairs[i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
    quads[i + 3] = __builtin_shufflevector(pairs[i + 1], pairs[i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
  }
  for (int i = 0; i < 4; ++i) {
    rows[i] = __builtin_shufflevector(quads[i], quads[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    rows[i + 4] = __builtin_shufflevector(quads[i], quads[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

// Blocks of eight lines that are neighbours in memory, forwards or backwards, between a tensor and line buffers.
// The last block of either axis is moved back to end with it. `visit` gets the position, the line and the block, low
// address first; false if there are too few lines or positions for a block.
template <class In, class Visit>
bool for_each_block(const Plane<In>& plane, int64_t count, int64_t positions, Visit visit) {
  if (count < 8 || positions < 8 || (plane.line != 1 && plane.line != -1)) return false;
  for (int64_t end = 8; end < positions + 8; end += 8) {
    const int64_t j = (end < positions ? end : positions) - 8;
    for (int64_t last = 8; last < count + 8; last += 8) {
      const int64_t i = (last < count ? last : count) - 8;
      const Plane<In> lines = plane.from_line(i);
      visit(j, i, (lines.line > 0 ? lines.data : lines.data - 7) + j * lines.position);
    }
  }
  return true;
}

template <class In>
bool read_transposed(float* to, int64_t stride, const Plane<In>& from, int64_t count, int64_t positions) {
  const int64_t first = from.line > 0 ? 0 : 7 * stride, step = from.line > 0 ? stride : -stride;
  return for_each_block(from, count, positions, [&](int64_t j, int64_t i, const In* low) {
    Float8 rows[8];
    for (int t = 0; t < 8; ++t) {
      // Positions are far apart in memory, so the ones to come are asked for.
      __builtin_prefetch(low + (24 + t) * from.position, 0, 2);
      rows[t] = load8(low + t * from.position);
    }
    transpose8(rows);
    float* block = to + i * stride + first + j;
    for (int t = 0; t < 8; ++t) store8(block + t * step, rows[t]);
  });
}

template <class Out>
bool write_transposed(const Plane<Out>& to, const float* from, int64_t stride, int64_t count, int64_t positions) {
  const int64_t first = to.line > 0 ? 0 : 7 * stride, step = to.line > 0 ? stride : -stride;
  return for_each_block(to, count, positions, [&](int64_t j, int64_t i, Out* low) {
    Float8 rows[8];
    const float* block = from + i * stride + first + j;
    for (int t = 0; t < 8; ++t) rows[t] = load8(block + t * step);
    transpose8(rows);
    for (int t = 0; t < 8; ++t) {
      __builtin_prefetch(low + (16 + t) * to.position, 1, 2);
      store8(low + t * to.position, rows[t]);
    }
  });
}

// Reads `count` lines into buffers `stride` elements apart. With one channel, several lines are read position by
// position, because then the lines are often neighbours in memory and the positions are not.
template <class T, class In>
void read_lines(T* to, int64_t stride, const Plane<In>& from, int64_t count, const Extent& extent) {
  if (extent.channels > 1 || count == 1 || from.position == 1) {
    for (int64_t i = 0; i < count; ++i) read_line(to + i * stride, from.from_line(i), extent);
    return;
  }
  if constexpr (sizeof(T) == sizeof(float)) {
    if (read_transposed(to, stride, from, count, extent.positions)) return;
  }
  for (int64_t j = 0; j < extent.positions; ++j) {
    const In* row = from.data + j * from.position;
    for (int64_t i = 0; i < count; ++i) to[i * stride + j] = widen(row[i * from.line]);
  }
}

template <class T, class Out>
void write_lines(const Plane<Out>& to, const T* from, int64_t stride, int64_t count, const Extent& extent) {
  if (extent.channels > 1 || count == 1 || to.position == 1) {
    for (int64_t i = 0; i < count; ++i) write_line(to.from_line(i), from + i * stride, extent);
    return;
  }
  if constexpr (sizeof(T) == sizeof(float)) {
    if (write_transposed(to, from, stride, count, extent.positions)) return;
  }
  for (int64_t j = 0; j < extent.positions; ++j) {
    Out* row = to.data + j * to.position;
    for (int64_t i = 0; i < count; ++i) row[i * to.line] = narrow<Out>(from[i * stride + j]);
  }
}

// to[j] = sum over channels of from[j, c], in order.
template <class T>
void sum_channels(T* to, const T* from, const Extent& extent) {
  for (int64_t j = 0; j < extent.positions; ++j) {
    T sum = 0;
    for (int64_t c = 0; c < extent.channels; ++c) sum += from[j * extent.channels + c];
    to[j] = sum;
  }
}

}  // namespace
}  // namespace cgspn::cpu
