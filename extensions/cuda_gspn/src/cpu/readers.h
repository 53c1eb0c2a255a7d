// Reading of affinities and gates into line buffers.
#pragma once

#include "cpu/interleaved.h"
#include "cpu/planes.h"
#include "cpu/scan.h"

namespace cgspn::cpu {
namespace {

// Lines of one tensor, for reading: in place where they are gapless and nothing has to be converted. Interleaved lines
// are there when `later` has run.
template <class T, class In>
class Source {
 public:
  Source() = default;
  Source(int64_t count, const Extent& extent) : extent_(extent), buffer_(count, extent.size(), 0) {}

  void read(const Plane<In>& plane, int64_t first, int64_t count, Interleaved<T, const In>& later) {
    const Plane<In> from = plane.from_line(first);
    if constexpr (kInPlace) {
      const bool gapless = extent_.channels == 1 ? from.position == 1 : from.channel == 1 && from.position == extent_.channels;
      // Vectors read past a line's end, which needs another line behind it.
      const int64_t last = plane.line > 0 ? extent_.lines - 1 : 0;
      const bool has_next = last < first || last >= first + count;
      if (gapless && has_next && extent_.size() >= kPad && (plane.line >= extent_.size() || -plane.line >= extent_.size())) {
        data_ = from.data;
        stride_ = from.line;
        return;
      }
    }
    data_ = buffer_[0];
    stride_ = buffer_.stride();
    if (is_interleaved(from, count, extent_)) {
      later.add(buffer_[0], stride_, {from.data, from.line, from.position, from.channel});
    } else {
      read_lines(buffer_[0], stride_, from, count, extent_);
    }
  }

  // The same line every time, all ones: stands for an absent gate.
  void fill_ones() {
    for (int64_t e = 0; e < extent_.size(); ++e) buffer_[0][e] = T(1);
    data_ = buffer_[0];
    stride_ = 0;
  }

  const T* line(int64_t t) const { return data_ + t * stride_; }

 private:
  static constexpr bool kInPlace = sizeof(T) == sizeof(In);
  Extent extent_{};
  Lines<T> buffer_;
  const T* data_ = nullptr;
  int64_t stride_ = 0;
};

// Lines of logits or weights. Logits that all channels share are normalised here, once, and spread.
template <class T, class In>
class AffinityReader {
 public:
  AffinityReader(const LineScanShape& shape, const Block& block, int64_t count)
      : extent_(extent_of(shape, block)),
        shared_(shape.affinity_channels == 1 && shape.channels > 1),
        normalize_(shape.normalize) {
    if (!shared_) {
      for (auto& source : sources_) source = Source<T, In>(count, extent_);
      return;
    }
    for (auto& lines : spread_) lines = Lines<T>(count, extent_.size(), 0);
    for (auto& lines : narrow_) lines = Lines<T>(1, extent_.positions, 0);
  }

  // Whether the lines hold logits, which the scan has to normalise.
  bool logits() const { return normalize_ && !shared_; }

  void read(const AffinityView& a, const LineScanShape& shape, const Block& block, int d, int64_t first, int64_t count, Interleaved<T, const In>& later) {
    const Extent one{extent_.lines, extent_.positions, 1};
    for (int k = 0; k < 3 && !shared_; ++k) sources_[k].read(plane<In>(a, shape, block, d, k), first, count, later);
    for (int64_t t = 0; t < count && shared_; ++t) {
      T* const narrow[3] = {narrow_[0][0], narrow_[1][0], narrow_[2][0]};
      for (int k = 0; k < 3; ++k) read_line(narrow[k], plane<In>(a, shape, block, d, k).from_line(first + t), one);
      if (normalize_) normalize_line<T>(one.positions, 1, narrow, narrow);
      for (int k = 0; k < 3; ++k) spread(spread_[k][t], narrow[k]);
    }
  }

  const T* line(int k, int64_t t) const { return shared_ ? spread_[k][t] : sources_[k].line(t); }

 private:
  void spread(T* to, const T* from) const {
    for (int64_t j = 0; j < extent_.positions; ++j) {
      for (int64_t c = 0; c < extent_.channels; ++c) to[j * extent_.channels + c] = from[j];
    }
  }

  Extent extent_;
  bool shared_, normalize_;
  Source<T, In> sources_[3];
  Lines<T> spread_[3], narrow_[3];
};

// Lines of a tensor with an axis of directions; all ones where it is absent.
template <class T, class In>
class GateReader {
 public:
  GateReader(const DirectionView& view, const LineScanShape& shape, const Block& block, int64_t count)
      : present_(view.data != nullptr), source_(present_ ? count : 1, extent_of(shape, block)) {
    if (!present_) source_.fill_ones();
  }

  void read(const DirectionView& view, const LineScanShape& shape, const Block& block, int d, int64_t first, int64_t count, Interleaved<T, const In>& later) {
    if (present_) source_.read(plane<In>(view, shape, block, d), first, count, later);
  }

  const T* line(int64_t t) const { return source_.line(t); }

 private:
  bool present_;
  Source<T, In> source_;
};

}  // namespace
}  // namespace cgspn::cpu
