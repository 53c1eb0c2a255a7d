// The token-wise linear layers on torch tensors: checks, allocation of the output, and the call of the CUDA kernel.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "cgspn/token_linear_cuda.h"
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
void run(const char* op, const Call& call, const Tensor& x, cudaError_t (*kernel)(const Call&, void*, cudaStream_t)) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  const Tensor workspace = cgspn::empty_strided(x, {int64_t(cgspn::cuda::kTokenLinearWorkspace / x.element_size())}, {1});
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

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cgspn, CUDA, m) {
  m.impl("layer_norm_linear", TORCH_BOX(&layer_norm_linear));
  m.impl("linear_residual", TORCH_BOX(&linear_residual));
}
