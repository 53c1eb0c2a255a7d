// The backward pass of all directions from stored states, for channels-last tensors on cards with bulk tensor copies.
#pragma once

#include <cuda_runtime.h>

#include "cgspn/line_scan.h"

namespace cgspn::cuda {

// Whether card, layout, channels and line length suit this kernel.
bool bulk_backward_applies(const LineScanBackward& call);
size_t bulk_backward_workspace(const LineScanBackward& call);
// `accumulate` adds to dx instead of writing it.
cudaError_t bulk_backward(const LineScanBackward& call, void* workspace, cudaStream_t stream, bool accumulate = false);

}  // namespace cgspn::cuda
