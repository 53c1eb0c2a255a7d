// The token-wise linear layers on torch tensors: checks, allocation of the output, and the call of the CUDA kernel.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "cgspn/latent_residual_cuda.h"
#include "cgspn/token_linear_cuda.h"
#include "torch/latent.h"
#include "torch/operators.h"

namespace {

using cgspn::Sizes;
using cgspn::Tensor;

void check_dense(const char* op, const char* name, const Tensor& t) {
  if (!t.is_contiguous() || reinterpret_cast<uintptr_t>(t.data_ptr()) % 16) {
    cgspn::fail(op, name, " must be contiguous and aligned to 16 bytes");
  }
}

void check_vector(const char* op, const char* name, const Tensor& t, int64_t size, const Tensor& x) {
  cgspn::check_like(op, name, t, {size}, x);
  check_dense(op, name, t);
}

template <class Call>
void run(const char* op, const Call& call, const Tensor& x, cudaError_t (*kernel)(const Call&, void*, cudaStream_t),
         size_t workspace_bytes = cgspn::cuda::kTokenLinearWorkspace) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  const Tensor workspace = cgspn::empty_strided(x, {int64_t(workspace_bytes / x.element_size())}, {1});
  const cudaError_t error = kernel(call, workspace.data_ptr(), static_cast<cudaStream_t>(stream));
  if (error == cudaErrorNotSupported) {
    cgspn::fail(op, "needs bfloat16, a wide side that is a multiple of 64, a narrow one of 16, 32, 48 or 64, "
                "and a weight that fits into shared memory; got x of ", cgspn::text(cgspn::sizes_of(x)));
  }
  if (error != cudaSuccess) cgspn::fail(op, "CUDA error: ", cudaGetErrorString(error));
}

Tensor contiguous_output(const Tensor& x, const Sizes& sizes) {
  Sizes strides(sizes.size(), 1);
  for (size_t i = sizes.size() - 1; i > 0; --i) strides[i - 1] = strides[i] * std::max<int64_t>(sizes[i], 1);
  return cgspn::empty_strided(x, sizes, strides);
}

Tensor layer_norm_linear(const Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias, const Tensor& weight,
                         const Tensor& bias, double eps) {
  const char* op = "layer_norm_linear";
  if (x.dim() < 1 || weight.dim() != 2) cgspn::fail(op, "x needs a dimension, weight two");
  Sizes sizes = cgspn::sizes_of(x);
  cgspn::cuda::LayerNormLinear call;
  call.dtype = cgspn::dtype_of(op, x);
  call.channels = sizes.back();
  call.outputs = weight.size(0);
  call.eps = static_cast<float>(eps);
  check_dense(op, "x", x);
  check_vector(op, "norm_weight", norm_weight, call.channels, x);
  check_vector(op, "norm_bias", norm_bias, call.channels, x);
  cgspn::check_like(op, "weight", weight, {call.outputs, call.channels}, x);
  check_dense(op, "weight", weight);
  check_vector(op, "bias", bias, call.outputs, x);
  sizes.back() = call.outputs;
  const Tensor y = contiguous_output(x, sizes);
  call.tokens = call.channels > 0 ? x.numel() / call.channels : 0;
  if (call.tokens == 0) return y;
  call.x = x.data_ptr();
  call.norm_weight = norm_weight.data_ptr();
  call.norm_bias = norm_bias.data_ptr();
  call.weight = weight.data_ptr();
  call.bias = bias.data_ptr();
  call.y = y.data_ptr();
  run(op, call, x, cgspn::cuda::layer_norm_linear);
  return y;
}

Tensor linear_residual(const Tensor& h, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& scale,
                       const Tensor& x) {
  const char* op = "linear_residual";
  if (x.dim() < 1 || weight.dim() != 2) cgspn::fail(op, "x needs a dimension, weight two");
  const Sizes sizes = cgspn::sizes_of(x);
  Sizes narrow = sizes;
  cgspn::cuda::LinearResidual call;
  call.dtype = cgspn::dtype_of(op, x);
  call.channels = sizes.back();
  call.inputs = narrow.back() = weight.size(1);
  cgspn::check_like(op, "h", h, narrow, x);
  cgspn::check_like(op, "weight", weight, {call.channels, call.inputs}, x);
  check_dense(op, "h", h);
  check_dense(op, "weight", weight);
  check_dense(op, "x", x);
  check_vector(op, "bias", bias, call.channels, x);
  if (scale.has_value()) check_vector(op, "scale", *scale, call.channels, x);
  const Tensor y = contiguous_output(x, sizes);
  call.tokens = call.channels > 0 ? x.numel() / call.channels : 0;
  if (call.tokens == 0) return y;
  call.h = h.data_ptr();
  call.weight = weight.data_ptr();
  call.bias = bias.data_ptr();
  call.scale = scale.has_value() ? scale->data_ptr() : nullptr;
  call.x = x.data_ptr();
  call.y = y.data_ptr();
  run(op, call, x, cgspn::cuda::linear_residual);
  return y;
}

// x (B, H, W, C); rows of weight and bias as in latent_propagation.
Tensor latent_residual(const Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias, const Tensor& down_weight,
                       const Tensor& down_bias, const Tensor& weight, const Tensor& bias, const Tensor& up_weight,
                       const Tensor& up_bias, const std::optional<Tensor>& scale, double eps,
                       const std::vector<int64_t>& directions, std::optional<int64_t> chunk) {
  const char* op = "latent_residual";
  if (x.dim() != 4 || weight.dim() != 2 || down_weight.dim() != 2) cgspn::fail(op, "x needs four dimensions, weights two");
  const Sizes sizes = cgspn::sizes_of(x);
  const int64_t wide = sizes[3], narrow = down_weight.size(0), d = static_cast<int64_t>(directions.size());
  cgspn::cuda::LatentResidual call;
  cgspn::LineScanShape& shape = call.propagation.shape;
  shape.dtype = call.down.dtype = call.up.dtype = cgspn::dtype_of(op, x);
  cgspn::set_directions(op, shape, directions);
  if (chunk.has_value() && *chunk < 1) cgspn::fail(op, "chunk must be at least 1, got ", *chunk);
  shape.chunk = chunk.value_or(0);
  shape.batch = sizes[0];
  shape.height = sizes[1];
  shape.width = sizes[2];
  shape.channels = narrow;
  cgspn::set_affinity(op, shape, weight.size(0));
  check_dense(op, "x", x);
  check_vector(op, "norm_weight", norm_weight, wide, x);
  check_vector(op, "norm_bias", norm_bias, wide, x);
  cgspn::check_like(op, "down_weight", down_weight, {narrow, wide}, x);
  check_vector(op, "down_bias", down_bias, narrow, x);
  cgspn::check_like(op, "weight", weight, {weight.size(0), narrow}, x);
  check_vector(op, "bias", bias, weight.size(0), x);
  cgspn::check_like(op, "up_weight", up_weight, {wide, narrow}, x);
  check_vector(op, "up_bias", up_bias, wide, x);
  for (const Tensor& t : {down_weight, weight, up_weight}) check_dense(op, "a weight", t);
  if (scale.has_value()) check_vector(op, "scale", *scale, wide, x);
  const Tensor y = contiguous_output(x, sizes);
  if (x.numel() == 0) return y;
  const Tensor latent = contiguous_output(x, {sizes[0], sizes[1], sizes[2], narrow});
  const Tensor parts = contiguous_output(x, {sizes[0], sizes[1], sizes[2], d, narrow});
  const int64_t row = sizes[2] * narrow, image = sizes[1] * row;
  call.propagation.x = {latent.data_ptr(), image, 1, row, narrow};
  call.propagation.weight = weight.data_ptr();
  call.propagation.bias = bias.data_ptr();
  call.propagation.y = {parts.data_ptr(), image * d, narrow, 1, row * d, narrow * d};
  call.propagation.sum = false;
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  if (!cgspn::cuda::latent_forward_supported(call.propagation)) {
    const Tensor tokens = layer_norm_linear(x, norm_weight, norm_bias, down_weight, down_bias, eps);
    const Tensor planes = cgspn::call_torch("aten::permute", tokens, Sizes{0, 3, 1, 2});
    const Tensor mixed = cgspn::call_torch("cgspn::latent_propagation", planes, weight, bias, directions, chunk);
    const Tensor h = cgspn::call_torch("aten::permute", mixed, Sizes{0, 2, 3, 1});
    return linear_residual(h, up_weight, up_bias, scale, x);
  }
  call.down.eps = static_cast<float>(eps);
  call.down.tokens = call.up.tokens = sizes[0] * sizes[1] * sizes[2];
  call.down.channels = call.up.channels = wide;
  call.down.outputs = call.up.inputs = narrow;
  call.down.x = call.up.x = x.data_ptr();
  call.down.norm_weight = norm_weight.data_ptr();
  call.down.norm_bias = norm_bias.data_ptr();
  call.down.weight = down_weight.data_ptr();
  call.down.bias = down_bias.data_ptr();
  call.down.y = latent.data_ptr();
  call.up.parts = d;
  call.up.h = parts.data_ptr();
  call.up.weight = up_weight.data_ptr();
  call.up.bias = up_bias.data_ptr();
  call.up.scale = scale.has_value() ? scale->data_ptr() : nullptr;
  call.up.y = y.data_ptr();
  run(op, call, x, cgspn::cuda::latent_residual, cgspn::cuda::kLatentResidualWorkspace);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cgspn, CUDA, m) {
  m.impl("layer_norm_linear", TORCH_BOX(&layer_norm_linear));
  m.impl("linear_residual", TORCH_BOX(&linear_residual));
  m.impl("latent_residual", TORCH_BOX(&latent_residual));
}
