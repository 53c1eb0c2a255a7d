// The sub-layer around latent propagation, images in groups.
//
// The two token-wise layers are bound by memory, the propagation by its instructions and with a block an image and
// direction it leaves multiprocessors to others. So a group's propagation runs on a stream of its own, beside the narrowing
// of later groups and the widening of earlier ones.
#include "cgspn/latent_residual_cuda.h"

#include <algorithm>

#include "latent_forward.cuh"

namespace cgspn::cuda {
namespace {

constexpr int kMaxGroups = 4, kMaxDevices = 16;

// Streams and events of a thread on a device; a thread's calls are ordered, so that they can be used again.
struct Lanes {
  bool ready = false;
  cudaStream_t streams[kMaxGroups] = {};
  cudaEvent_t narrowed[kMaxGroups] = {}, propagated[kMaxGroups] = {};

  cudaError_t prepare() {
    if (ready) return cudaSuccess;
    int least = 0, greatest = 0;
    if (cudaError_t e = cudaDeviceGetStreamPriorityRange(&least, &greatest)) return e;
    for (int i = 0; i < kMaxGroups; ++i) {
      if (cudaError_t e = cudaStreamCreateWithPriority(&streams[i], cudaStreamNonBlocking, greatest)) return e;
      if (cudaError_t e = cudaEventCreateWithFlags(&narrowed[i], cudaEventDisableTiming)) return e;
      if (cudaError_t e = cudaEventCreateWithFlags(&propagated[i], cudaEventDisableTiming)) return e;
    }
    ready = true;
    return cudaSuccess;
  }
};

int num_groups(const LatentResidual& call) {
  return call.propagation.shape.batch >= 8 && call.down.tokens >= 400000 ? 2 : 1;
}

const char* offset(const void* p, int64_t bytes) { return static_cast<const char*>(p) + bytes; }
char* offset(void* p, int64_t bytes) { return static_cast<char*>(p) + bytes; }

// The call on `count` images from `first` on; all tensors have 16-bit elements.
LatentResidual images_of(const LatentResidual& call, int64_t first, int64_t count) {
  LatentResidual part = call;
  const int64_t per_image = call.down.tokens / call.propagation.shape.batch, tokens = first * per_image;
  part.down.tokens = part.up.tokens = count * per_image;
  part.down.x = offset(call.down.x, tokens * call.down.channels * 2);
  part.down.y = offset(call.down.y, tokens * call.down.outputs * 2);
  part.propagation.shape.batch = count;
  part.propagation.x.data = offset(call.propagation.x.data, first * call.propagation.x.b * 2);
  part.propagation.y.data = offset(call.propagation.y.data, first * call.propagation.y.b * 2);
  part.up.h = offset(call.up.h, tokens * call.up.parts * call.up.inputs * 2);
  part.up.x = offset(call.up.x, tokens * call.up.channels * 2);
  part.up.y = offset(call.up.y, tokens * call.up.channels * 2);
  return part;
}

}  // namespace

cudaError_t latent_residual(const LatentResidual& call, void* workspace, cudaStream_t stream) {
  const int64_t batch = call.propagation.shape.batch;
  int device = 0;
  if (cudaError_t e = cudaGetDevice(&device)) return e;
  const int groups = device < kMaxDevices ? std::clamp(num_groups(call), 1, kMaxGroups) : 1;
  // That of all images: with more blocks an image a group would fill the device.
  const LatentLayout layout = latent_layout(call.propagation.shape);
  char* counter = static_cast<char*>(workspace);
  const auto next_counter = [&] { return counter += kTokenLinearWorkspace, counter - kTokenLinearWorkspace; };
  if (groups == 1) {
    // Each kernel may load its weights while the one before it ends; nothing but kernels may come between them.
    LatentResidual early = call;
    early.propagation.early = early.up.early = true;
    char* const zero = next_counter();
    if (cudaError_t e = cudaMemsetAsync(zero, 0, kTokenLinearWorkspace, stream)) return e;
    if (cudaError_t e = layer_norm_linear(early.down, next_counter(), stream)) return e;
    if (cudaError_t e = latent_forward_with(early.propagation, layout, nullptr, stream)) return e;
    return linear_residual(early.up, zero, stream);
  }
  thread_local Lanes lanes_of[kMaxDevices];
  Lanes& lanes = lanes_of[device];
  if (cudaError_t e = lanes.prepare()) return e;
  LatentResidual parts[kMaxGroups];
  for (int i = 0; i < groups; ++i) {
    const int64_t first = batch * i / groups;
    parts[i] = images_of(call, first, batch * (i + 1) / groups - first);
    if (cudaError_t e = layer_norm_linear(parts[i].down, next_counter(), stream)) return e;
    if (cudaError_t e = cudaEventRecord(lanes.narrowed[i], stream)) return e;
    if (cudaError_t e = cudaStreamWaitEvent(lanes.streams[i], lanes.narrowed[i])) return e;
    if (cudaError_t e = latent_forward_with(parts[i].propagation, layout, nullptr, lanes.streams[i])) return e;
    if (cudaError_t e = cudaEventRecord(lanes.propagated[i], lanes.streams[i])) return e;
  }
  for (int i = 0; i < groups; ++i) {
    if (cudaError_t e = cudaStreamWaitEvent(stream, lanes.propagated[i])) return e;
    if (cudaError_t e = linear_residual(parts[i].up, next_counter(), stream)) return e;
  }
  return cudaSuccess;
}

}  // namespace cgspn::cuda
