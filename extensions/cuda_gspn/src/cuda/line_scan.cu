// Chooses a kernel; docs/operators.md has the table of conditions.
#include "cgspn/line_scan_cuda.h"
#include "cuda/bulk/backward.cuh"
#include "cuda/bulk/forward.cuh"
#include "cuda/bulk/recompute.cuh"
#include "channels_last_backward.cuh"
#include "channels_last_forward.cuh"
#include "channels_last_plan.cuh"
#include "general_backward.cuh"
#include "general_forward.cuh"
#include "planar_forward.cuh"

namespace cgspn::cuda {

__global__ void occupancy_probe() {}

size_t line_scan_forward_workspace(const LineScanForward& call) {
  if (bulk_forward_applies(call)) return bulk_forward_workspace(call);
  if (channels_last_forward_applies(call)) return channels_last_forward_workspace(call);
  return planar_forward_applies(call) ? planar_forward_workspace(call) : general_forward_workspace(call);
}

cudaError_t line_scan_forward(const LineScanForward& call, void* workspace, cudaStream_t stream) {
  if (bulk_forward_applies(call)) return bulk_forward(call, workspace, stream);
  if (channels_last_forward_applies(call)) return channels_last_forward(call, workspace, stream);
  return planar_forward_applies(call) ? planar_forward(call, workspace, stream)
                                      : general_forward(call, workspace, stream);
}

namespace {

// Long lines of 16 bytes a position are the one shape where the backward pass by bulk copies was measured slower.
bool takes_bulk(const LineScanBackward& call) {
  const int64_t bytes = call.shape.dtype == DType::kFloat32 ? 4 : 2;
  const bool narrow = call.shape.channels * bytes == 16 && longest_line(call.shape) > 512;
  return bulk_backward_applies(call) && !(narrow && channels_last_backward_applies(call));
}

}  // namespace

size_t line_scan_backward_workspace(const LineScanBackward& call) {
  if (takes_bulk(call)) return bulk_backward_workspace(call);
  if (bulk_recompute_applies(call)) return bulk_recompute_workspace(call);
  return channels_last_backward_applies(call) ? channels_last_backward_workspace(call)
                                              : general_backward_workspace(call);
}

cudaError_t line_scan_backward(const LineScanBackward& call, void* workspace, cudaStream_t stream) {
  if (takes_bulk(call)) return bulk_backward(call, workspace, stream);
  if (bulk_recompute_applies(call)) return bulk_recompute(call, workspace, stream);
  return channels_last_backward_applies(call) ? channels_last_backward(call, workspace, stream)
                                              : general_backward(call, workspace, stream);
}

}  // namespace cgspn::cuda
