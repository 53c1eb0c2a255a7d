// The sub-layer around latent propagation in one call: narrowing, propagation and widening of groups of images overlap.
#pragma once

#include <cuda_runtime_api.h>

#include "cgspn/latent_propagation_cuda.h"
#include "cgspn/token_linear_cuda.h"

namespace cgspn::cuda {

// y = x + scale * up(propagate(down(norm(x)))) for whole images, tokens ordered (image, row, column). `down.y` is
// propagation.x, propagation.y (directions apart) is up.h. The layouts are those of the three calls, each of which must be
// supported; `workspace` is device memory of kLatentResidualWorkspace bytes.
struct LatentResidual {
  LayerNormLinear down;
  LatentForward propagation;
  LinearResidual up;
};

constexpr size_t kLatentResidualWorkspace = 16 * kTokenLinearWorkspace;
cudaError_t latent_residual(const LatentResidual& call, void* workspace, cudaStream_t stream);

}  // namespace cgspn::cuda
