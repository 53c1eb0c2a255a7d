// The backward pass without stored states: slice by slice, the forward kernel computes the states that the backward
// kernel then reads. A slice is a quarter of the images with all directions, or one direction of all images where there
// are fewer than four images; its states are alive alone.
#include "cuda/bulk/recompute.cuh"

#include <algorithm>

#include "cuda/bulk/backward.cuh"
#include "cuda/bulk/forward.cuh"

namespace cgspn::cuda {
namespace {

int64_t element_bytes(const LineScanShape& s) { return s.dtype == DType::kFloat32 ? 4 : 2; }

bool by_images(const LineScanShape& s) { return s.batch >= 4; }
int64_t slice_images(const LineScanShape& s) { return by_images(s) ? s.batch / 4 : s.batch; }
int64_t num_slices(const LineScanShape& s) {
  return by_images(s) ? (s.batch + slice_images(s) - 1) / slice_images(s) : s.num_directions;
}

size_t state_bytes(const LineScanShape& s) {
  const int64_t tensors = slice_images(s) * (by_images(s) ? s.num_directions : 1);
  return (static_cast<size_t>(tensors * s.channels * s.height * s.width * element_bytes(s)) + 255) / 256 * 256;
}

struct Slice {
  LineScanForward forward;
  LineScanBackward backward;
  bool accumulate = false;

  Slice(const LineScanBackward& call, int64_t index, void* state) : backward(call) {
    LineScanShape& s = backward.shape;
    const int64_t bytes = element_bytes(s);
    const auto move = [&](auto& view, int64_t elements) {
      if (view.data != nullptr) view.data = static_cast<char*>(view.data) + elements * bytes;
    };
    const auto each = [&](const auto& f) {
      f(backward.a), f(backward.lam), f(backward.u), f(backward.dy), f(backward.da), f(backward.dlam), f(backward.du);
    };
    if (by_images(call.shape)) {
      const int64_t first = index * slice_images(s);
      s.batch = std::min(slice_images(call.shape), call.shape.batch - first);
      each([&](auto& view) { move(view, first * view.b); });
      move(backward.x, first * backward.x.b);
      move(backward.dx, first * backward.dx.b);
    } else {
      s.num_directions = 1;
      s.directions[0] = call.shape.directions[index];
      each([&](auto& view) { move(view, index * view.d); });
      accumulate = index > 0;
    }
    const int64_t row = s.width * s.channels, picture = s.height * row;
    backward.state = {state, picture, s.batch * picture, 1, row, s.channels};
    forward.shape = s;
    forward.x = backward.x;
    forward.a = backward.a;
    forward.lam = backward.lam;
    forward.state = backward.state;
  }
};

size_t kernel_workspace(const LineScanBackward& call, void* state) {
  size_t bytes = 0;
  for (int64_t i : {int64_t{0}, num_slices(call.shape) - 1}) {
    const Slice slice(call, i, state);
    bytes = std::max({bytes, bulk_forward_workspace(slice.forward), bulk_backward_workspace(slice.backward)});
  }
  return bytes;
}

}  // namespace

bool bulk_recompute_applies(const LineScanBackward& call) {
  if (call.state.data != nullptr) return false;
  alignas(16) static char any_state[16];
  for (int64_t i : {int64_t{0}, num_slices(call.shape) - 1}) {
    const Slice slice(call, i, any_state);
    if (!bulk_forward_applies(slice.forward) || !bulk_backward_applies(slice.backward)) return false;
  }
  return true;
}

size_t bulk_recompute_workspace(const LineScanBackward& call) {
  return state_bytes(call.shape) + kernel_workspace(call, nullptr);
}

cudaError_t bulk_recompute(const LineScanBackward& call, void* workspace, cudaStream_t stream) {
  char* const rest = static_cast<char*>(workspace) + state_bytes(call.shape);
  for (int64_t i = 0; i < num_slices(call.shape); ++i) {
    const Slice slice(call, i, workspace);
    cudaError_t error = bulk_forward(slice.forward, rest, stream);
    if (error == cudaSuccess) error = bulk_backward(slice.backward, rest, stream, slice.accumulate);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace cgspn::cuda
