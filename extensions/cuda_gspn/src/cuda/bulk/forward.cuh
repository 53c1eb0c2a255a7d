// The forward scan of all directions for channels-last tensors on cards with bulk tensor copies.
#pragma once

#include <cuda_runtime.h>

#include "cgspn/line_scan.h"

namespace cgspn::cuda {

// Whether card, layout, channels and line length suit this kernel.
bool bulk_forward_applies(const LineScanForward& call);
size_t bulk_forward_workspace(const LineScanForward& call);
cudaError_t bulk_forward(const LineScanForward& call, void* workspace, cudaStream_t stream);

}  // namespace cgspn::cuda
