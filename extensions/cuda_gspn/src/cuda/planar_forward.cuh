// The forward scan of all directions for tensors whose (image, channel) planes are dense: NCHW, or one channel.
#pragma once

#include <cuda_runtime.h>

#include "cgspn/line_scan.h"

namespace cgspn::cuda {

// Whether layout and line length suit this kernel.
bool planar_forward_applies(const LineScanForward& call);
size_t planar_forward_workspace(const LineScanForward& call);
cudaError_t planar_forward(const LineScanForward& call, void* workspace, cudaStream_t stream);

}  // namespace cgspn::cuda
