// How a call of the latent forward kernel is laid out, and its launch.
#pragma once

#include <cuda_runtime_api.h>

#include "cgspn/latent_propagation.h"

namespace cgspn::cuda {

// A block owns group * channel_warps channels of one image and direction, and of a line the positions that are its share
// among the `split` blocks of a cluster; line_warps warps a group divide these. group is 16, or 8 for few images, where a
// warp has one tile of the line.
struct LatentLayout {
  int group = 16, channel_warps = 0, line_warps = 0, split = 1;
  size_t shared = 0;
  int threads() const { return 32 * channel_warps * line_warps; }
};

// The layout that the cost model expects to be fastest; channel_warps is 0 if none fits into shared memory.
LatentLayout latent_layout(const LineScanShape& shape);
cudaError_t latent_forward_with(const LatentForward& call, const LatentLayout& layout, void* workspace, cudaStream_t stream);
int64_t latent_blocks(const LineScanShape& shape, const LatentLayout& layout);
size_t latent_shared_bytes(const LineScanShape& shape, const LatentLayout& layout);

}  // namespace cgspn::cuda
