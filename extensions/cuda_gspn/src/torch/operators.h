// The operators on torch tensors: checks, allocation of the outputs, and the call of a device's kernels.
//
// A Backend is constructed with the input x (or a) and provides
//   void line_scan_forward(const LineScanForward&), void line_scan_backward(const LineScanBackward&),
//   void row_stochastic_forward(const RowStochasticForward&), void row_stochastic_backward(const RowStochasticBackward&).
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cgspn/line_scan.h"
#include "torch/layout.h"

namespace cgspn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  std::ostringstream message;
  message << "cgspn::" << op << ": ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline Sizes sizes_of(const Tensor& t) {
  const auto sizes = t.sizes();
  return Sizes(sizes.begin(), sizes.end());
}

inline Sizes strides_of(const Tensor& t) {
  const auto strides = t.strides();
  return Sizes(strides.begin(), strides.end());
}

inline std::string text(const Sizes& sizes) {
  std::ostringstream out;
  out << '(';
  for (size_t i = 0; i < sizes.size(); ++i) out << (i ? ", " : "") << sizes[i];
  out << ')';
  return out.str();
}

inline DType dtype_of(const char* op, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Half: return DType::kFloat16;
    case ScalarType::BFloat16: return DType::kBFloat16;
    case ScalarType::Float: return DType::kFloat32;
    case ScalarType::Double: return DType::kFloat64;
    default: fail(op, "dtype must be float16, bfloat16, float32 or float64");
  }
}

inline void check_like(const char* op, const char* name, const Tensor& t, const Sizes& sizes, const Tensor& x) {
  if (sizes_of(t) != sizes) fail(op, name, " must have shape ", text(sizes), ", got ", text(sizes_of(t)));
  if (t.scalar_type() != x.scalar_type()) fail(op, name, " must have the dtype of the other tensors");
  if (t.is_cpu() != x.is_cpu() || t.get_device_index() != x.get_device_index()) {
    fail(op, name, " must be on the device of the other tensors");
  }
}

inline void set_directions(const char* op, LineScanShape& shape, const std::vector<int64_t>& directions) {
  if (directions.empty() || directions.size() > kMaxDirections) fail(op, "needs 1 to 4 directions, got ", text(directions));
  bool seen[kMaxDirections] = {};
  for (int64_t code : directions) {
    if (code < 0 || code >= kMaxDirections || seen[code]) fail(op, "directions must be distinct in 0..3, got ", text(directions));
    seen[code] = true;
    shape.directions[shape.num_directions++] = static_cast<Direction>(code);
  }
}

// An uninitialised tensor like `x` with these strides.
inline Tensor empty_strided(const Tensor& x, const Sizes& sizes, const Sizes& strides) {
  using torch::stable::detail::from;
  StableIValue stack[] = {from(x), from(sizes), from(strides), from(std::nullopt), from(std::nullopt), from(std::nullopt), from(std::nullopt)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::new_empty_strided", "", stack, TORCH_TARGET_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline Tensor output_like(const Tensor& t) {
  const Sizes sizes = sizes_of(t);
  return empty_strided(t, sizes, strides_like(sizes, strides_of(t)));
}

inline Tensor absent(const Tensor& x) { return empty_strided(x, {0}, {1}); }

inline ImageView image_view(const Tensor& t) {
  return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

inline DirectionView direction_view(const Tensor& t) {
  return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2), t.stride(3), t.stride(4)};
}

inline AffinityView affinity_view(const Tensor& t) {
  const int64_t channel = t.size(3) == 1 ? 0 : t.stride(3);
  return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2), channel, t.stride(4), t.stride(5)};
}

// The direction view of y or dy: without a D axis its stride is 0.
inline DirectionView output_view(const Tensor& t, bool sum) {
  if (!sum) return direction_view(t);
  return {t.data_ptr(), t.stride(0), 0, t.stride(1), t.stride(2), t.stride(3)};
}

inline LineScanShape line_scan_shape(
    const char* op, const Tensor& x, const Tensor& a, const std::optional<Tensor>& lam, const std::optional<Tensor>& u,
    const std::vector<int64_t>& directions, std::optional<int64_t> chunk, bool normalize) {
  LineScanShape shape;
  shape.dtype = dtype_of(op, x);
  set_directions(op, shape, directions);
  if (x.dim() != 4) fail(op, "x must have shape (B, C, H, W), got ", text(sizes_of(x)));
  if (a.dim() != 6 || (a.size(3) != 1 && a.size(3) != x.size(1))) {
    fail(op, "a must have shape (B, D, 3, Ca, H, W), Ca 1 or ", x.size(1), ", got ", text(sizes_of(a)));
  }
  if (chunk.has_value() && *chunk < 1) fail(op, "chunk must be at least 1, got ", *chunk);
  shape.batch = x.size(0);
  shape.channels = x.size(1);
  shape.affinity_channels = a.size(3);
  shape.height = x.size(2);
  shape.width = x.size(3);
  shape.chunk = chunk.value_or(0);
  shape.normalize = normalize;
  const int64_t d = shape.num_directions;
  const Sizes gate{shape.batch, d, shape.channels, shape.height, shape.width};
  check_like(op, "a", a, {shape.batch, d, 3, shape.affinity_channels, shape.height, shape.width}, x);
  if (lam.has_value()) check_like(op, "lam", *lam, gate, x);
  if (u.has_value()) check_like(op, "u", *u, gate, x);
  return shape;
}

template <class Backend>
std::tuple<Tensor, Tensor> line_scan(
    const Tensor& x, const Tensor& a, const std::optional<Tensor>& lam, const std::optional<Tensor>& u,
    const std::vector<int64_t>& directions, std::optional<int64_t> chunk, bool normalize, bool sum, bool save_state) {
  LineScanForward call;
  call.shape = line_scan_shape("line_scan", x, a, lam, u, directions, chunk, normalize);
  call.sum = sum;
  const Sizes sizes = sizes_of(x), strides = strides_of(x);
  const int64_t d = call.shape.num_directions;
  const Sizes gate{sizes[0], d, sizes[1], sizes[2], sizes[3]};
  Backend backend(x);
  const Tensor y = sum ? output_like(x) : empty_strided(x, gate, unsummed_strides(sizes, strides, d));
  const Tensor state = save_state ? empty_strided(x, gate, state_strides(sizes, strides)) : absent(x);
  if (x.numel() == 0) return {y, state};
  call.x = image_view(x);
  call.a = affinity_view(a);
  if (lam.has_value()) call.lam = direction_view(*lam);
  if (u.has_value()) call.u = direction_view(*u);
  call.y = output_view(y, sum);
  if (save_state) call.state = direction_view(state);
  backend.line_scan_forward(call);
  return {y, state};
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> line_scan_backward(
    const Tensor& dy, const Tensor& x, const Tensor& a, const std::optional<Tensor>& lam, const std::optional<Tensor>& u,
    const std::optional<Tensor>& state, const std::vector<int64_t>& directions, std::optional<int64_t> chunk,
    bool normalize, bool sum, const std::vector<bool>& output_mask) {
  const char* op = "line_scan_backward";
  LineScanBackward call;
  call.shape = line_scan_shape(op, x, a, lam, u, directions, chunk, normalize);
  const Sizes sizes = sizes_of(x);
  const Sizes gate{sizes[0], call.shape.num_directions, sizes[1], sizes[2], sizes[3]};
  check_like(op, "dy", dy, sum ? sizes : gate, x);
  if (state.has_value()) check_like(op, "state", *state, gate, x);
  if (output_mask.size() != 4) fail(op, "output_mask must have 4 entries, got ", output_mask.size());
  Backend backend(x);
  // Gates that are absent have no gradient to write.
  const bool need_lam = output_mask[2] && lam.has_value(), need_u = output_mask[3] && u.has_value();
  const Tensor dx = output_mask[0] ? output_like(x) : absent(x);
  const Tensor da = output_mask[1] ? output_like(a) : absent(x);
  const Tensor dlam = need_lam ? output_like(*lam) : absent(x);
  const Tensor du = need_u ? output_like(*u) : absent(x);
  if (x.numel() == 0) {
    // With C = 0 and a shared affinity `da` has elements, and they are 0.
    if (output_mask[1] && da.numel() > 0) torch::stable::fill_(da, 0.0);
    return {dx, da, dlam, du};
  }
  call.x = image_view(x);
  call.a = affinity_view(a);
  if (lam.has_value()) call.lam = direction_view(*lam);
  if (u.has_value()) call.u = direction_view(*u);
  call.dy = output_view(dy, sum);
  if (state.has_value()) call.state = direction_view(*state);
  if (output_mask[0]) call.dx = image_view(dx);
  if (output_mask[1]) call.da = affinity_view(da);
  if (need_lam) call.dlam = direction_view(dlam);
  if (need_u) call.du = direction_view(du);
  backend.line_scan_backward(call);
  return {dx, da, dlam, du};
}

inline LineScanShape affinity_shape(const char* op, const Tensor& a, const std::vector<int64_t>& directions) {
  LineScanShape shape;
  shape.dtype = dtype_of(op, a);
  set_directions(op, shape, directions);
  if (a.dim() != 6 || a.size(1) != shape.num_directions || a.size(2) != 3) {
    fail(op, "a must have shape (B, ", shape.num_directions, ", 3, Ca, H, W), got ", text(sizes_of(a)));
  }
  shape.batch = a.size(0);
  shape.channels = shape.affinity_channels = a.size(3);
  shape.height = a.size(4);
  shape.width = a.size(5);
  return shape;
}

template <class Backend>
Tensor row_stochastic(const Tensor& a, const std::vector<int64_t>& directions) {
  RowStochasticForward call;
  call.shape = affinity_shape("row_stochastic", a, directions);
  Backend backend(a);
  const Tensor w = output_like(a);
  if (a.numel() == 0) return w;
  call.a = affinity_view(a);
  call.w = affinity_view(w);
  backend.row_stochastic_forward(call);
  return w;
}

template <class Backend>
Tensor row_stochastic_backward(const Tensor& dw, const Tensor& a, const std::vector<int64_t>& directions) {
  RowStochasticBackward call;
  call.shape = affinity_shape("row_stochastic_backward", a, directions);
  check_like("row_stochastic_backward", "dw", dw, sizes_of(a), a);
  Backend backend(a);
  const Tensor da = output_like(a);
  if (a.numel() == 0) return da;
  call.dw = affinity_view(dw);
  call.a = affinity_view(a);
  call.da = affinity_view(da);
  backend.row_stochastic_backward(call);
  return da;
}

template <class Backend, class Library>
void register_operators(Library& m) {
  m.impl("line_scan", TORCH_BOX(&line_scan<Backend>));
  m.impl("line_scan_backward", TORCH_BOX(&line_scan_backward<Backend>));
  m.impl("row_stochastic", TORCH_BOX(&row_stochastic<Backend>));
  m.impl("row_stochastic_backward", TORCH_BOX(&row_stochastic_backward<Backend>));
}

}  // namespace cgspn
