// Schemas of all operators and their CPU kernels.
#include "cgspn/cpu.h"
#include "torch/latent.h"
#include "torch/operators.h"

namespace {

void run_parallel(int64_t count, void (*task)(int64_t, void*), void* context) {
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task(i, context);
  });
}

struct CpuBackend {
  explicit CpuBackend(const cgspn::Tensor&) {}
  const cgspn::cpu::Threads threads{static_cast<int>(torch::stable::get_num_threads()), run_parallel};
  void line_scan_forward(const cgspn::LineScanForward& call) { cgspn::cpu::line_scan_forward(call, threads); }
  void line_scan_backward(const cgspn::LineScanBackward& call) { cgspn::cpu::line_scan_backward(call, threads); }
  void row_stochastic_forward(const cgspn::RowStochasticForward& call) { cgspn::cpu::row_stochastic_forward(call, threads); }
  void row_stochastic_backward(const cgspn::RowStochasticBackward& call) { cgspn::cpu::row_stochastic_backward(call, threads); }
  bool latent_forward(const cgspn::LatentForward&) { return false; }
};

}  // namespace

STABLE_TORCH_LIBRARY(cgspn, m) {
  // Directions are the codes of cgspn::Direction: the header's conversion of strings leaks memory.
  m.def(
      "line_scan(Tensor x, Tensor a, Tensor? lam, Tensor? u, int[] directions, SymInt? chunk, bool normalize, "
      "bool sum, bool save_state) -> (Tensor y, Tensor state)");
  m.def(
      "line_scan_backward(Tensor dy, Tensor x, Tensor a, Tensor? lam, Tensor? u, Tensor? state, int[] directions, "
      "SymInt? chunk, bool normalize, bool sum, bool[4] output_mask) "
      "-> (Tensor dx, Tensor da, Tensor dlam, Tensor du)");
  m.def("latent_propagation(Tensor x, Tensor weight, Tensor bias, int[] directions, SymInt? chunk) -> Tensor");
  m.def(
      "latent_propagation_backward(Tensor dy, Tensor x, Tensor weight, Tensor bias, int[] directions, SymInt? chunk, "
      "bool[3] output_mask) -> (Tensor dx, Tensor dweight, Tensor dbias)");
  m.def(
      "latent_scan_backward(Tensor dy, Tensor x, Tensor p, int[] directions, SymInt? chunk) -> (Tensor dx, Tensor dp)");
  m.def("row_stochastic(Tensor a, int[] directions) -> Tensor");
  m.def("row_stochastic_backward(Tensor dw, Tensor a, int[] directions) -> Tensor");
  // Their CPU kernels are compositions in Python.
  m.def(
      "latent_residual(Tensor x, Tensor norm_weight, Tensor norm_bias, Tensor down_weight, Tensor down_bias, Tensor weight, "
      "Tensor bias, Tensor up_weight, Tensor up_bias, Tensor? scale, float eps, int[] directions, SymInt? chunk) -> Tensor");
  m.def("layer_norm_linear(Tensor x, Tensor norm_weight, Tensor norm_bias, Tensor weight, Tensor bias, float eps) -> Tensor");
  m.def("linear_residual(Tensor h, Tensor weight, Tensor bias, Tensor? scale, Tensor x) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(cgspn, CPU, m) {
  cgspn::register_operators<CpuBackend>(m);
  m.impl("latent_propagation", TORCH_BOX(&cgspn::latent_propagation<CpuBackend>));
  m.impl("latent_scan_backward", TORCH_BOX(&cgspn::latent_scan_backward<CpuBackend>));
}
