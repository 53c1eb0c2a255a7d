// Chooses a kernel; extensions/cuda_gspn/NOTES.md has the table of conditions.
#include "cgspn/line_scan_cuda.h"
#include "channels_last_backward.cuh"
#include "channels_last_forward.cuh"
#include "channels_last_plan.cuh"
#include "general_backward.cuh"
#include "general_forward.cuh"

namespace cgspn::cuda {

__global__ void occupancy_probe() {}

size_t line_scan_forward_workspace(const LineScanForward& call) {
  return channels_last_forward_applies(call) ? channels_last_forward_workspace(call) : general_forward_workspace(call);
}

cudaError_t line_scan_forward(const LineScanForward& call, void* workspace, cudaStream_t stream) {
  return channels_last_forward_applies(call) ? channels_last_forward(call, workspace, stream)
                                             : general_forward(call, workspace, stream);
}

size_t line_scan_backward_workspace(const LineScanBackward& call) {
  return channels_last_backward_applies(call) ? channels_last_backward_workspace(call)
                                              : general_backward_workspace(call);
}

cudaError_t line_scan_backward(const LineScanBackward& call, void* workspace, cudaStream_t stream) {
  return channels_last_backward_applies(call) ? channels_last_backward(call, workspace, stream)
                                              : general_backward(call, workspace, stream);
}

}  // namespace cgspn::cuda
