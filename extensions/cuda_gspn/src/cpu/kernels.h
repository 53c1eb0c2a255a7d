// What each instruction set provides: tasks on one image and one block of channels.
#pragma once

#include "cgspn/line_scan.h"

namespace cgspn::cpu {

// A task's image, block of channels, and the axis that its scans run along.
struct Block {
  int64_t batch, channel, channels;
  bool vertical;
};

// Sum over the directions of one axis, in float (double for float64): line after line of the scans, in image
// order. Lines are `stride` elements apart.
struct Partial {
  void* data = nullptr;
  int64_t stride = 0;
};

// Gradient of shared weights, before the normalisation's derivative, summed over one block of channels:
// (D, S, 3, L) in float (double for float64).
struct SharedGradient {
  void* data = nullptr;
};

struct Kernels {
  const char* name;
  // Scans all directions of the block's axis; `partial` takes their sum if the call sums.
  void (*forward)(const LineScanForward& call, const Block& block, Partial partial);
  void (*backward)(const LineScanBackward& call, const Block& block, Partial dx, SharedGradient shared);
  // Writes vertical + horizontal partial sums (one may be absent) to image rows [row_begin, row_end).
  void (*combine)(
      const LineScanShape& shape, const ImageView& to, const Block& block, Partial vertical, Partial horizontal,
      int64_t row_begin, int64_t row_end);
  // Sums the shared gradients of `count` blocks, `distance` elements apart, and writes da of one direction.
  void (*finish_shared)(
      const LineScanBackward& call, int64_t batch, int direction, const void* shared, int64_t count, int64_t distance);
  void (*normalize)(const RowStochasticForward& call, const Block& block, int direction);
  void (*normalize_backward)(const RowStochasticBackward& call, const Block& block, int direction);
};

const Kernels& baseline_kernels();
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();

inline bool is_vertical(Direction direction) {
  return direction == Direction::kTopBottom || direction == Direction::kBottomTop;
}

// Elements between lines of a partial sum with `size` elements each: an odd number of cache lines, so that
// elements below each other do not share a set of the cache.
inline int64_t partial_stride(int64_t size) { return ((size + 15) / 16 | 1) * 16; }

// Elements of the shared gradient of one block.
inline int64_t shared_size(const LineScanShape& shape) { return shape.num_directions * 3 * shape.height * shape.width; }

}  // namespace cgspn::cpu
