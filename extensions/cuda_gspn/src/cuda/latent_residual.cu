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
  int multiprocessors = 0;
  cudaStream_t streams[kMaxGroups] = {};
  cudaEvent_t narrowed[kMaxGroups] = {}, propagated[kMaxGroups] = {};

  cudaError_t prepare(int device) {
    if (ready) return cudaSuccess;
    if (cudaError_t e = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device)) return e;
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
  return call.propagation.shape.batch >= 8 && call.down.tokens >= 150000 ? 2 : 1;
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
  const auto counter = [&](int i) { return offset(workspace, i * int64_t{kTokenLinearWorkspace}); };
  if (groups == 1) {
    // Each kernel may load its weights while the one before it ends.
    LatentResidual one = call;
    one.down.clears = counter(1);
    one.up.cleared = true;
    one.propagation.early = one.up.early = true;
    if (cudaError_t e = layer_norm_linear(one.down, counter(0), stream)) return e;
    if (cudaError_t e = latent_forward_with(one.propagation, layout, nullptr, stream)) return e;
    return linear_residual(one.up, counter(1), stream);
  }
  thread_local Lanes lanes_of[kMaxDevices];
  Lanes& lanes = lanes_of[device];
  if (cudaError_t e = lanes.prepare(device)) return e;
  LatentResidual parts[kMaxGroups];
  int64_t taken = 0;
  for (int i = 0; i < groups; ++i) {
    const int64_t first = batch * i / groups;
    LatentResidual& part = parts[i];
    part = images_of(call, first, batch * (i + 1) / groups - first);
    // Narrowing is ready as soon as the propagation of the group before: it must leave that its multiprocessors.
    if (i > 0) {
      part.down.most_blocks = std::max(lanes.multiprocessors - static_cast<int>(taken), lanes.multiprocessors / 4);
    }
    part.down.clears = counter(2 * i + 1);
    part.up.cleared = true;
    if (cudaError_t e = layer_norm_linear(part.down, counter(2 * i), stream)) return e;
    if (cudaError_t e = cudaEventRecord(lanes.narrowed[i], stream)) return e;
    if (cudaError_t e = cudaStreamWaitEvent(lanes.streams[i], lanes.narrowed[i])) return e;
    if (cudaError_t e = latent_forward_with(part.propagation, layout, nullptr, lanes.streams[i])) return e;
    if (cudaError_t e = cudaEventRecord(lanes.propagated[i], lanes.streams[i])) return e;
    taken += latent_blocks(part.propagation.shape, layout);
  }
  for (int i = 0; i < groups; ++i) {
    if (cudaError_t e = cudaStreamWaitEvent(stream, lanes.propagated[i])) return e;
    if (cudaError_t e = linear_residual(parts[i].up, counter(2 * i + 1), stream)) return e;
  }
  return cudaSuccess;
}

}  // namespace cgspn::cuda
