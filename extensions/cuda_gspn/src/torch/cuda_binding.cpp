// The CUDA kernels of all operators, on torch's current stream; scratch memory comes from torch's allocator.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "cgspn/latent_propagation_cuda.h"
#include "cgspn/line_scan_cuda.h"
#include "torch/latent.h"
#include "torch/operators.h"

namespace {

cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

void check(const char* op, cudaError_t error) {
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion) {
    cgspn::fail(
        op, "no CUDA kernel for this GPU's architecture (", cudaGetErrorString(error), "), the library was built for " CGSPN_CUDA_ARCHS
        "; CGSPN_CUDA_ARCHS chooses others at build, CGSPN_REFERENCE=1 runs the plain PyTorch reference, which is slow");
  }
  if (error != cudaSuccess) cgspn::fail(op, "CUDA error: ", cudaGetErrorString(error));
}

class CudaBackend {
 public:
  explicit CudaBackend(const cgspn::Tensor& like)
      : like_(like), guard_(like.get_device_index()), stream_(current_stream(like.get_device_index())) {}

  void line_scan_forward(const cgspn::LineScanForward& call) {
    const cgspn::Tensor workspace = allocate(cgspn::cuda::line_scan_forward_workspace(call));
    check("line_scan", cgspn::cuda::line_scan_forward(call, workspace.data_ptr(), stream_));
  }

  void line_scan_backward(const cgspn::LineScanBackward& call) {
    const cgspn::Tensor workspace = allocate(cgspn::cuda::line_scan_backward_workspace(call));
    check("line_scan_backward", cgspn::cuda::line_scan_backward(call, workspace.data_ptr(), stream_));
  }

  void row_stochastic_forward(const cgspn::RowStochasticForward& call) {
    check("row_stochastic", cgspn::cuda::row_stochastic_forward(call, stream_));
  }

  void row_stochastic_backward(const cgspn::RowStochasticBackward& call) {
    check("row_stochastic_backward", cgspn::cuda::row_stochastic_backward(call, stream_));
  }

  bool latent_forward(const cgspn::LatentForward& call) {
    if (!cgspn::cuda::latent_forward_supported(call)) return false;
    const cgspn::Tensor workspace = allocate(cgspn::cuda::latent_forward_workspace(call));
    check("latent_propagation", cgspn::cuda::latent_forward(call, workspace.data_ptr(), stream_));
    return true;
  }

 private:
  // Freed on return: the allocator hands the memory only to later work of the same stream.
  cgspn::Tensor allocate(size_t bytes) const {
    const int64_t element = like_.element_size();
    return cgspn::empty_strided(like_, {(static_cast<int64_t>(bytes) + element - 1) / element}, {1});
  }

  const cgspn::Tensor like_;
  const torch::stable::accelerator::DeviceGuard guard_;
  const cudaStream_t stream_;
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cgspn, CUDA, m) {
  cgspn::register_operators<CudaBackend>(m);
  m.impl("latent_propagation", TORCH_BOX(&cgspn::latent_propagation<CudaBackend>));
  m.impl("latent_scan_backward", TORCH_BOX(&cgspn::latent_scan_backward<CudaBackend>));
}
