// What the general forward and backward kernels share: how a block is cut and where its state lives.
#pragma once

#include <algorithm>

#include "geometry.cuh"

namespace cgspn::cuda {

// A block owns whole lines of one image and `channels` of its channels; its threads cover `positions` of a line at a
// time and walk along the line in `tiles` steps.
struct BlockShape {
  int channels = 1, positions = 1, tiles = 1, channel_blocks = 1;
  bool channel_fast = false;  // neighbouring threads hold neighbouring channels
  bool state_in_shared = true;
  size_t state_bytes = 0;     // of one block, wherever it lies

  __host__ __device__ int threads() const { return channels * positions; }
};

// `buffers` accumulators are kept per position and channel of a line.
template <typename Acc>
BlockShape block_shape(const LineScanShape& s, Direction d, int64_t channel_stride, int64_t position_stride,
                       int buffers, size_t shared_reserved, size_t shared_limit) {
  constexpr int kThreads = 256;
  const int64_t length = line_length(s, d);
  BlockShape block;
  block.channel_fast = s.channels > 1 && channel_stride <= position_stride;
  const int64_t widest = block.channel_fast ? 32 : std::max<int64_t>(1, kThreads / std::max<int64_t>(length, 32));
  block.channels = static_cast<int>(std::min<int64_t>(s.channels, widest));
  block.positions = static_cast<int>(std::min<int64_t>(length, kThreads / block.channels));
  block.tiles = static_cast<int>((length + block.positions - 1) / block.positions);
  block.channel_blocks = static_cast<int>((s.channels + block.channels - 1) / block.channels);
  block.state_bytes = static_cast<size_t>(length) * block.channels * buffers * sizeof(Acc);
  block.state_bytes = (block.state_bytes + 255) / 256 * 256;
  block.state_in_shared = block.state_bytes + shared_reserved <= shared_limit;
  return block;
}

// Bytes of dynamic shared memory every supported architecture grants a block.
constexpr size_t kSharedLimit = 96 * 1024;

struct ThreadPlace {
  int channel, position;  // within the block's tile
};

__device__ __forceinline__ ThreadPlace thread_place(const BlockShape& block) {
  const int t = threadIdx.x;
  return block.channel_fast ? ThreadPlace{t % block.channels, t / block.channels}
                            : ThreadPlace{t / block.positions, t % block.positions};
}

}  // namespace cgspn::cuda
