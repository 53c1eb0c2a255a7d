// Scans of tensors in other layouts than channels-last, through channels-last copies.
#pragma once

#include <cuda_runtime.h>

#include "cgspn/line_scan.h"

namespace cgspn::cuda {

bool packed_forward_applies(const LineScanForward& call);
size_t packed_forward_workspace(const LineScanForward& call);
cudaError_t packed_forward(const LineScanForward& call, void* workspace, cudaStream_t stream);

// An affinity that all channels share is not covered: its gradient is a sum over channels.
bool packed_backward_applies(const LineScanBackward& call);
size_t packed_backward_workspace(const LineScanBackward& call);
cudaError_t packed_backward(const LineScanBackward& call, void* workspace, cudaStream_t stream);

}  // namespace cgspn::cuda
