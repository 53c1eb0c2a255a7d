// How a call of the latent forward kernel is laid out, and its launch.
#pragma once

#include <cuda_runtime_api.h>

#include "cgspn/latent_propagation.h"

namespace cgspn::cuda {

// A block owns group * channel_warps channels (group: 8 or 16) of one image and its whole lines, divided among line_warps
// warps per group. With `sides` = 2 two blocks run opposite directions of a pair at once, all pairs in sequence, adding to y in
// place; with 1, every direction has blocks of its own that write a part, and an ordered sum follows.
struct LatentLayout {
  int group = 16, channel_warps = 0, line_warps = 0;
  int sides = 1, parts = 1, passes_per_part = 1;
  size_t shared = 0;
  int threads() const { return 32 * channel_warps * line_warps; }
};

// The layout that the cost model expects to be fastest; channel_warps is 0 if none fits into shared memory.
LatentLayout latent_layout(const LineScanShape& shape);
cudaError_t latent_forward_with(const LatentForward& call, const LatentLayout& layout, void* workspace, cudaStream_t stream);
size_t latent_workspace(const LatentForward& call, const LatentLayout& layout);
size_t latent_shared_bytes(const LineScanShape& shape, const LatentLayout& layout);

}  // namespace cgspn::cuda
