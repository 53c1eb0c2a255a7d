// The ordered sum of the parts that several clusters of one image have written.
#pragma once

#include "vector.cuh"

namespace cgspn::cuda {

template <typename T>
__global__ void __launch_bounds__(256) sum_parts_kernel(const uint4* parts, uint4* y, int num_parts, int64_t count,
                                                        bool accumulate) {
  constexpr int N = kLanes<T>;
  const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i >= count) return;
  float sum[N];
  unpack<T>(__ldcs(accumulate ? y + i : parts + i), sum);
  for (int n = accumulate ? 0 : 1; n < num_parts; ++n) {
    float v[N];
    unpack<T>(__ldcs(parts + n * count + i), v);
#pragma unroll
    for (int c = 0; c < N; ++c) sum[c] += v[c];
  }
  __stcs(y + i, pack<T>(sum));
}

// Adds `num_parts` dense tensors of `bytes` bytes, one behind the other, into `y`, or to what `y` holds.
template <typename T>
cudaError_t sum_parts(const void* parts, void* y, int num_parts, int64_t bytes, cudaStream_t stream,
                      bool accumulate = false) {
  const int64_t count = bytes / 16;
  sum_parts_kernel<T><<<static_cast<unsigned>((count + 255) / 256), 256, 0, stream>>>(
      static_cast<const uint4*>(parts), static_cast<uint4*>(y), num_parts, count, accumulate);
  return cudaGetLastError();
}

}  // namespace cgspn::cuda
