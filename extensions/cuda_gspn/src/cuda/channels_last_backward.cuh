// The backward scan of all directions for channels-last tensors of float32, float16 and bfloat16 with stored states.
#pragma once

#include <cuda_runtime.h>

#include "cgspn/line_scan.h"

namespace cgspn::cuda {

// Whether layout, channels and line length suit this kernel.
bool channels_last_backward_applies(const LineScanBackward& call);
size_t channels_last_backward_workspace(const LineScanBackward& call);
cudaError_t channels_last_backward(const LineScanBackward& call, void* workspace, cudaStream_t stream);

}  // namespace cgspn::cuda
