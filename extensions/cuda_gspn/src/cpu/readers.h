// Reading of affinities and gates into line buffers.
#pragma once

#include "cpu/planes.h"
#include "cpu/scan.h"

namespace cgspn::cpu {
namespace {

// Lines of logits or weights. Logits that all channels share are normalised here, once, and spread.
template <class T, class In>
class AffinityReader {
 public:
  AffinityReader(const LineScanShape& shape, const Block& block, int64_t count)
      : extent_(extent_of(shape, block)),
        shared_(shape.affinity_channels == 1 && shape.channels > 1),
        normalize_(shape.normalize) {
    for (auto& lines : lines_) lines = Lines<T>(count, extent_.size(), 0);
    if (!shared_) return;
    for (auto& lines : narrow_) lines = Lines<T>(1, extent_.positions, 0);
  }

  // Whether the lines hold logits, which the scan has to normalise.
  bool logits() const { return normalize_ && !shared_; }

  void read(const AffinityView& a, const LineScanShape& shape, const Block& block, int d, int64_t first, int64_t count) {
    for (int k = 0; k < 3; ++k) planes_[k] = plane<In>(a, shape, block, d, k).from_line(first);
    if (!shared_) {
      for (int k = 0; k < 3; ++k) read_lines(lines_[k][0], lines_[k].stride(), planes_[k], count, extent_);
      return;
    }
    const Extent one{extent_.lines, extent_.positions, 1};
    T* const narrow[3] = {narrow_[0][0], narrow_[1][0], narrow_[2][0]};
    for (int64_t t = 0; t < count; ++t) {
      for (int k = 0; k < 3; ++k) read_line(narrow[k], planes_[k].from_line(t), one);
      if (normalize_) normalize_line<T>(one.positions, 1, narrow, narrow);
      for (int k = 0; k < 3; ++k) spread(lines_[k][t], narrow[k]);
    }
  }

  const T* line(int k, int64_t t) const { return lines_[k][t]; }

 private:
  void spread(T* to, const T* from) const {
    for (int64_t j = 0; j < extent_.positions; ++j) {
      for (int64_t c = 0; c < extent_.channels; ++c) to[j * extent_.channels + c] = from[j];
    }
  }

  Extent extent_;
  bool shared_, normalize_;
  Plane<In> planes_[3];
  Lines<T> lines_[3], narrow_[3];
};

// Lines of a tensor with an axis of directions; all ones where it is absent.
template <class T, class In>
class GateReader {
 public:
  GateReader(const DirectionView& view, const LineScanShape& shape, const Block& block, int64_t count)
      : extent_(extent_of(shape, block)), present_(view.data != nullptr), lines_(present_ ? count : 1, extent_.size(), 0) {
    for (int64_t e = 0; !present_ && e < extent_.size(); ++e) lines_[0][e] = T(1);
  }

  void read(const DirectionView& view, const LineScanShape& shape, const Block& block, int d, int64_t first, int64_t count) {
    if (!present_) return;
    read_lines(lines_[0], lines_.stride(), plane<In>(view, shape, block, d).from_line(first), count, extent_);
  }

  const T* line(int64_t t) const { return lines_[present_ ? t : 0]; }

 private:
  Extent extent_;
  bool present_;
  Lines<T> lines_;
};

}  // namespace
}  // namespace cgspn::cpu
