// The two token-wise linear layers around a propagation in a compressed channel space, with what surrounds them.
// CUDA only, bfloat16, all tensors dense and aligned to 16 bytes, tokens outermost. Nothing synchronises.
#pragma once

#include <cuda_runtime_api.h>

#include "cgspn/line_scan.h"

namespace cgspn::cuda {

// y = linear(layer_norm(x)): x (tokens, channels), weight (outputs, channels), y (tokens, outputs).
struct LayerNormLinear {
  DType dtype = DType::kBFloat16;
  int64_t tokens = 0, channels = 0, outputs = 0;
  const void *x = nullptr, *norm_weight = nullptr, *norm_bias = nullptr, *weight = nullptr, *bias = nullptr;
  void* y = nullptr;
  float eps = 0;
  int most_blocks = 0;      // leaves multiprocessors to others; 0: no limit
  void* clears = nullptr;   // the workspace of a later call, which is `cleared` then
};

// y = x + scale * linear(h): weight (channels, inputs), x and y (tokens, channels); h (tokens, parts, inputs), whose parts are
// added in their order and rounded first. `scale` may be null for 1.
struct LinearResidual {
  DType dtype = DType::kBFloat16;
  int64_t tokens = 0, parts = 1, inputs = 0, channels = 0;
  const void *h = nullptr, *weight = nullptr, *bias = nullptr, *scale = nullptr, *x = nullptr;
  void* y = nullptr;
  bool cleared = false;  // the workspace holds 0
  bool early = false;    // may start before the kernel before it in the stream, which makes h and nothing else, has ended
};

// cudaErrorNotSupported for other dtypes and where the widths do not fit the current device: channels must be a multiple of 64, outputs and
// inputs 16, 32, 48 or 64, and the weight must fit into a block's shared memory beside the pipeline.
// `workspace` is device memory of kTokenLinearWorkspace bytes, free for reuse once the queued work is done.
constexpr size_t kTokenLinearWorkspace = 16;
cudaError_t layer_norm_linear(const LayerNormLinear& call, void* workspace, cudaStream_t stream);
cudaError_t linear_residual(const LinearResidual& call, void* workspace, cudaStream_t stream);

}  // namespace cgspn::cuda
