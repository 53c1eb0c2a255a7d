// The backward pass without stored states: slice by slice, the forward kernel computes the states that the backward
// kernel then reads. A slice is a pair of opposite directions of half the images, for then both run at once; else a
// quarter of the images with all directions, or one direction of all images. Its states are alive alone.
#include "cuda/bulk/recompute.cuh"

#include <algorithm>
#include <utility>

#include "cuda/bulk/backward.cuh"
#include "cuda/bulk/forward.cuh"
#include "cuda/bulk/plan.cuh"
#include "cuda/geometry.cuh"

namespace cgspn::cuda {
namespace {

int64_t element_bytes(const LineScanShape& s) { return s.dtype == DType::kFloat32 ? 4 : 2; }

struct Cut {
  int64_t images;
  int directions;

  explicit Cut(const LineScanShape& s) : images(s.batch), directions(1) {
    // Logits that all channels share begin at whole 16 bytes for the first direction only.
    if (s.num_directions == kMaxDirections && s.batch >= 2 && !shares_affinity(s)) {
      images = s.batch / 2;
      directions = 2;
    } else if (s.batch >= 4) {
      images = s.batch / 4;
      directions = s.num_directions;
    }
  }
  int64_t slices(const LineScanShape& s) const {
    return (s.batch + images - 1) / images * (s.num_directions / directions);
  }
};

size_t state_bytes(const LineScanShape& s) {
  const Cut cut(s);
  const int64_t pictures = cut.images * cut.directions;
  return (static_cast<size_t>(pictures * s.channels * s.height * s.width * element_bytes(s)) + 255) / 256 * 256;
}

// The `index`-th slot whose opposite direction comes later, and that one's.
std::pair<int, int> opposites(const LineScanShape& s, int64_t index) {
  for (int i = 0; i < s.num_directions; ++i) {
    for (int j = i + 1; j < s.num_directions; ++j) {
      if (is_vertical(s.directions[i]) == is_vertical(s.directions[j]) && index-- == 0) return {i, j};
    }
  }
  return {0, 1};
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
    const Cut cut(call.shape);
    const int64_t groups = s.num_directions / cut.directions, first = index / groups * cut.images;
    accumulate = index % groups > 0;
    s.batch = std::min(cut.images, s.batch - first);
    each([&](auto& view) { move(view, first * view.b); });
    move(backward.x, first * backward.x.b);
    move(backward.dx, first * backward.dx.b);
    if (groups > 1) {
      const auto [slot, next] = cut.directions == 2 ? opposites(call.shape, index % groups)
                                                    : std::pair<int, int>(index % groups, index % groups + 1);
      s.num_directions = cut.directions;
      s.directions[0] = call.shape.directions[slot];
      if (cut.directions == 2) s.directions[1] = call.shape.directions[next];
      each([&](auto& view) {
        move(view, slot * view.d);
        view.d *= next - slot;
      });
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
  for (int64_t i = 0; i < Cut(call.shape).slices(call.shape); ++i) {
    const Slice slice(call, i, state);
    bytes = std::max({bytes, bulk_forward_workspace(slice.forward), bulk_backward_workspace(slice.backward)});
  }
  return bytes;
}

}  // namespace

bool bulk_recompute_applies(const LineScanBackward& call) {
  if (call.state.data != nullptr) return false;
  alignas(16) static char any_state[16];
  for (int64_t i = 0; i < Cut(call.shape).slices(call.shape); ++i) {
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
  for (int64_t i = 0; i < Cut(call.shape).slices(call.shape); ++i) {
    const Slice slice(call, i, workspace);
    cudaError_t error = bulk_forward(slice.forward, rest, stream);
    if (error == cudaSuccess) error = bulk_backward(slice.backward, rest, stream, slice.accumulate);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace cgspn::cuda
