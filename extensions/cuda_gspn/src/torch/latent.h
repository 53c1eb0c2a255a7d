// Latent propagation on torch tensors: a device's fused kernel where it applies, else a linear layer and a line scan.
//
// A Backend further provides bool latent_forward(const LatentForward&): false where it has no kernel for the call.
#pragma once

#include "cgspn/latent_propagation.h"
#include "torch/operators.h"

namespace cgspn {

// A call of torch's dispatcher that returns one tensor.
template <class... Arguments>
Tensor call_torch(const char* op, const Arguments&... arguments) {
  using torch::stable::detail::from;
  StableIValue stack[] = {from(arguments)...};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, "", stack, TORCH_TARGET_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline LineScanShape scan_shape(
    const char* op, const Tensor& x, const std::vector<int64_t>& directions, std::optional<int64_t> chunk) {
  LineScanShape shape;
  shape.dtype = dtype_of(op, x);
  set_directions(op, shape, directions);
  if (x.dim() != 4) fail(op, "x must have shape (B, C, H, W), got ", text(sizes_of(x)));
  if (chunk.has_value() && *chunk < 1) fail(op, "chunk must be at least 1, got ", *chunk);
  shape.batch = x.size(0);
  shape.channels = x.size(1);
  shape.height = x.size(2);
  shape.width = x.size(3);
  shape.chunk = chunk.value_or(0);
  return shape;
}

inline void set_affinity(const char* op, LineScanShape& shape, int64_t rows, bool may_be_padded = false) {
  const int64_t d = shape.num_directions, per_channel = 5 * d * shape.channels, gates = 2 * d * shape.channels;
  const int64_t shared = 3 * d + gates, padded = (3 * d + 7) / 8 * 8 + gates;
  if (rows != per_channel && rows != shared && !(may_be_padded && rows == padded)) {
    fail(op, "needs ", per_channel, " or, sharing the affinity, ", shared, " rows of parameters, got ", rows);
  }
  shape.affinity_channels = rows == per_channel ? shape.channels : 1;
}

// The rows [a (D, 3, Ca) | lam (D, C) | u (D, C)] of p (B, H, W, rows) as a scan's parameters; unused ones may lie
// between the logits that all channels share and the gates, so that these are aligned.
struct ParameterViews {
  AffinityView a;
  DirectionView lam, u;
  ParameterViews(const Tensor& p, const LineScanShape& shape) {
    const int64_t d = shape.num_directions, ca = shape.affinity_channels, c = shape.channels;
    const int64_t b = p.stride(0), h = p.stride(1), w = p.stride(2), row = p.stride(3);
    const auto at = [&](int64_t first) { return static_cast<char*>(p.data_ptr()) + first * row * p.element_size(); };
    a = {at(0), b, 3 * ca * row, ca * row, ca == 1 ? 0 : row, h, w};
    const int64_t rows = p.size(3);
    lam = {at(rows - 2 * d * c), b, c * row, row, h, w};
    u = {at(rows - d * c), b, c * row, row, h, w};
  }
};

template <class Backend>
Tensor latent_propagation(
    const Tensor& x, const Tensor& weight, const Tensor& bias, const std::vector<int64_t>& directions,
    std::optional<int64_t> chunk) {
  const char* op = "latent_propagation";
  LatentForward call;
  LineScanShape& shape = call.shape;
  shape = scan_shape(op, x, directions, chunk);
  const int64_t rows = weight.dim() == 2 ? weight.size(0) : -1;
  set_affinity(op, shape, rows);
  check_like(op, "weight", weight, {rows, shape.channels}, x);
  check_like(op, "bias", bias, {rows}, x);
  Backend backend(x);
  const Tensor y = output_like(x);
  if (x.numel() == 0) return y;
  call.x = image_view(x);
  call.y = output_view(y, true);
  const bool contiguous = weight.stride(1) == 1 && weight.stride(0) == shape.channels && bias.stride(0) == 1;
  if (contiguous) {
    call.weight = weight.data_ptr();
    call.bias = bias.data_ptr();
    if (backend.latent_forward(call)) return y;
  }
  const Tensor pixels = call_torch("aten::permute", x, std::vector<int64_t>{0, 2, 3, 1});
  const Tensor p = call_torch("aten::linear", pixels, weight, std::optional<Tensor>(bias));
  LineScanForward scan;
  scan.shape = shape;
  scan.x = call.x;
  const ParameterViews views(p, shape);
  scan.a = views.a;
  scan.lam = views.lam;
  scan.u = views.u;
  scan.y = call.y;
  backend.line_scan_forward(scan);
  return y;
}

// Gradients of x, as the scan's input only, and of the parameters p (B, H, W, rows), from those of the summed output.
template <class Backend>
std::tuple<Tensor, Tensor> latent_scan_backward(
    const Tensor& dy, const Tensor& x, const Tensor& p, const std::vector<int64_t>& directions,
    std::optional<int64_t> chunk) {
  const char* op = "latent_scan_backward";
  LineScanShape shape = scan_shape(op, x, directions, chunk);
  const int64_t rows = p.dim() == 4 ? p.size(3) : -1;
  set_affinity(op, shape, rows, true);
  check_like(op, "dy", dy, sizes_of(x), x);
  check_like(op, "p", p, {shape.batch, shape.height, shape.width, rows}, x);
  Backend backend(x);
  const Tensor dx = output_like(x);
  const Tensor dp = empty_strided(x, sizes_of(p), strides_in_order(sizes_of(p), {0, 1, 2, 3}));
  if (x.numel() == 0) return {dx, dp};
  const Sizes gate{shape.batch, shape.num_directions, shape.channels, shape.height, shape.width};
  const Tensor state = empty_strided(x, gate, state_strides(sizes_of(x), strides_of(x)));
  const ParameterViews views(p, shape), grads(dp, shape);
  LineScanForward forward;
  forward.shape = shape;
  forward.x = image_view(x);
  forward.a = views.a;
  forward.lam = views.lam;
  forward.u = views.u;
  forward.state = direction_view(state);
  // The output is not wanted again; it goes where dx will be.
  forward.y = output_view(dx, true);
  backend.line_scan_forward(forward);
  LineScanBackward call;
  call.shape = shape;
  call.x = forward.x;
  call.a = views.a;
  call.lam = views.lam;
  call.u = views.u;
  call.dy = output_view(dy, true);
  call.state = forward.state;
  call.dx = image_view(dx);
  call.da = grads.a;
  call.dlam = grads.lam;
  call.du = grads.u;
  backend.line_scan_backward(call);
  return {dx, dp};
}

}  // namespace cgspn
