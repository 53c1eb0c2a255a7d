// CUDA entry points on raw device pointers; no torch needed. All work is queued on `stream`, nothing synchronises.
//
// `workspace` is device memory of at least the size that the matching `_workspace` function returns (it may be null
// where that is 0), aligned to 256 bytes and free for reuse once the queued work is done. Shapes must be non-empty.
#pragma once

#include <cuda_runtime_api.h>

#include "cgspn/line_scan.h"

namespace cgspn::cuda {

size_t line_scan_forward_workspace(const LineScanForward& call);
cudaError_t line_scan_forward(const LineScanForward& call, void* workspace, cudaStream_t stream);

// Recomputes the states, one direction at a time, where `call.state` is absent.
size_t line_scan_backward_workspace(const LineScanBackward& call);
cudaError_t line_scan_backward(const LineScanBackward& call, void* workspace, cudaStream_t stream);

cudaError_t row_stochastic_forward(const RowStochasticForward& call, cudaStream_t stream);
cudaError_t row_stochastic_backward(const RowStochasticBackward& call, cudaStream_t stream);

}  // namespace cgspn::cuda
