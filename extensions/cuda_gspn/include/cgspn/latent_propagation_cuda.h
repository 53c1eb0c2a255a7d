// CUDA entry points of latent propagation; the rules of line_scan_cuda.h hold.
#pragma once

#include <cuda_runtime_api.h>

#include "cgspn/latent_propagation.h"

namespace cgspn::cuda {

// Whether the fused kernel takes this call on the current device: float16 or bfloat16; 32, 48 or 64 channels of stride 1;
// 16-byte aligned tensors; lines that fit into shared memory; compute capability 9.0 or later.
bool latent_forward_supported(const LatentForward& call);
size_t latent_forward_workspace(const LatentForward& call);
cudaError_t latent_forward(const LatentForward& call, void* workspace, cudaStream_t stream);

}  // namespace cgspn::cuda
