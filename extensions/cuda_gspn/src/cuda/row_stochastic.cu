// Row-stochastic normalisation by itself: one thread per pixel, direction and affinity channel, neighbouring threads
// on the axis that is denser in memory. Traffic per element: 3 reads and 3 writes, backward 6 reads and 3 writes.
#include <algorithm>

#include "cgspn/line_scan_cuda.h"
#include "dispatch.cuh"
#include "numerics.cuh"

namespace cgspn::cuda {
namespace {

struct Params {
  LineScanShape shape;
  AffinityView in, grad, out;  // `grad` only backward
  bool channel_fast;
};

template <typename T, bool kBackward>
__global__ void __launch_bounds__(256) row_stochastic_kernel(const Params p) {
  using Acc = Accumulator<T>;
  const LineScanShape& s = p.shape;
  const int64_t channels = s.affinity_channels;
  const int64_t count = s.batch * s.num_directions * channels * s.height * s.width;
  const int64_t stride = gridDim.x * static_cast<int64_t>(blockDim.x);
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count; i += stride) {
    int64_t rest = i, c, w, h;
    if (p.channel_fast) {
      c = rest % channels, rest /= channels;
      w = rest % s.width, rest /= s.width;
      h = rest % s.height, rest /= s.height;
    } else {
      w = rest % s.width, rest /= s.width;
      h = rest % s.height, rest /= s.height;
      c = rest % channels, rest /= channels;
    }
    const int64_t d = rest % s.num_directions, b = rest / s.num_directions;
    const Direction direction = s.directions[d];
    const bool vertical = direction == Direction::kTopBottom || direction == Direction::kBottomTop;
    const bool has_left = (vertical ? w : h) > 0;
    const bool has_right = (vertical ? w + 1 < s.width : h + 1 < s.height);
    const auto at = [&](const AffinityView& v) { return b * v.b + d * v.d + c * v.c + h * v.h + w * v.w; };
    const T* const in = static_cast<const T*>(p.in.data) + at(p.in);
    T* const out = static_cast<T*>(p.out.data) + at(p.out);
    const Acc a[3] = {has_left ? widen(in[0]) : Acc(0), widen(in[p.in.k]), has_right ? widen(in[2 * p.in.k]) : Acc(0)};
    const Acc decays[3] = {decay<T>(a[0]), decay<T>(a[1]), decay<T>(a[2])};
    Acc weights[3];
    normalise<T>(decays, has_left, has_right, weights);
    if constexpr (kBackward) {
      const T* const grad = static_cast<const T*>(p.grad.data) + at(p.grad);
      const Acc dw[3] = {has_left ? widen(grad[0]) : Acc(0), widen(grad[p.grad.k]),
                         has_right ? widen(grad[2 * p.grad.k]) : Acc(0)};
      Acc da[3];
      normalise_backward<T>(a, decays, weights, dw, has_left, has_right, da);
#pragma unroll
      for (int k = 0; k < 3; ++k) out[k * p.out.k] = narrow<T>(da[k]);
    } else {
#pragma unroll
      for (int k = 0; k < 3; ++k) out[k * p.out.k] = narrow<T>(weights[k]);
    }
  }
}

template <bool kBackward>
cudaError_t run(const Params& p, cudaStream_t stream) {
  const LineScanShape& s = p.shape;
  const int64_t count = s.batch * s.num_directions * s.affinity_channels * s.height * s.width;
  const unsigned blocks = static_cast<unsigned>(std::min<int64_t>((count + 255) / 256, 1 << 20));
  return dispatch_dtype(s.dtype, [&](auto tag) {
    row_stochastic_kernel<typename decltype(tag)::type, kBackward><<<blocks, 256, 0, stream>>>(p);
    return cudaGetLastError();
  });
}

}  // namespace

cudaError_t row_stochastic_forward(const RowStochasticForward& call, cudaStream_t stream) {
  return run<false>({call.shape, call.a, {}, call.w, call.a.c <= call.a.w}, stream);
}

cudaError_t row_stochastic_backward(const RowStochasticBackward& call, cudaStream_t stream) {
  return run<true>({call.shape, call.a, call.dw, call.da, call.a.c <= call.a.w}, stream);
}

}  // namespace cgspn::cuda
