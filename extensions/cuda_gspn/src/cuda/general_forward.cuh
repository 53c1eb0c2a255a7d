// The forward scan of one direction for any dtype, strides and line length.
#pragma once

#include <cuda_runtime.h>

#include "cgspn/line_scan.h"

namespace cgspn::cuda {

// Workspace: block state of long lines, then float32 partial sums of 16-bit outputs.
size_t general_forward_workspace(const LineScanForward& call);
cudaError_t general_forward(const LineScanForward& call, void* workspace, cudaStream_t stream);

}  // namespace cgspn::cuda
