// The backward pass of all directions without stored states, by the bulk-copy kernels.
#pragma once

#include <cuda_runtime.h>

#include "cgspn/line_scan.h"

namespace cgspn::cuda {

bool bulk_recompute_applies(const LineScanBackward& call);
size_t bulk_recompute_workspace(const LineScanBackward& call);
cudaError_t bulk_recompute(const LineScanBackward& call, void* workspace, cudaStream_t stream);

}  // namespace cgspn::cuda
