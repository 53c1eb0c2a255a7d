// The forward scan of all directions for channels-last tensors of float32, float16 and bfloat16.
#pragma once

#include <cuda_runtime.h>

#include "cgspn/line_scan.h"

namespace cgspn::cuda {

// Whether layout, channels and line length suit this kernel.
bool channels_last_forward_applies(const LineScanForward& call);
size_t channels_last_forward_workspace(const LineScanForward& call);
cudaError_t channels_last_forward(const LineScanForward& call, void* workspace, cudaStream_t stream);

}  // namespace cgspn::cuda
