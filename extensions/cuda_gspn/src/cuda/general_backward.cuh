// The backward scan of one direction for any dtype, strides and line length.
#pragma once

#include <cuda_runtime.h>

#include "cgspn/line_scan.h"

namespace cgspn::cuda {

size_t general_backward_workspace(const LineScanBackward& call);
cudaError_t general_backward(const LineScanBackward& call, void* workspace, cudaStream_t stream);

}  // namespace cgspn::cuda
