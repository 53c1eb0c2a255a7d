// Chooses a kernel; extensions/cuda_gspn/NOTES.md has the table of conditions.
#include "cgspn/line_scan_cuda.h"
#include "general_backward.cuh"
#include "general_forward.cuh"

namespace cgspn::cuda {

size_t line_scan_forward_workspace(const LineScanForward& call) { return general_forward_workspace(call); }

cudaError_t line_scan_forward(const LineScanForward& call, void* workspace, cudaStream_t stream) {
  return general_forward(call, workspace, stream);
}

size_t line_scan_backward_workspace(const LineScanBackward& call) { return general_backward_workspace(call); }

cudaError_t line_scan_backward(const LineScanBackward& call, void* workspace, cudaStream_t stream) {
  return general_backward(call, workspace, stream);
}

}  // namespace cgspn::cuda
