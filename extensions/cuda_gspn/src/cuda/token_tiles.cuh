// How warps walk over tokens: each warp owns tiles of `kRows` tokens and streams them, 64 channels (128 bytes) at a time,
// through a private ring in shared memory, so that no barrier of the block is needed after the weights have arrived.
#pragma once

#include "async.cuh"

namespace cgspn::cuda {

constexpr int kColumns = 64, kRowBytes = 128;

// Where a 16-byte chunk of a row lies in a slot of the ring: no two rows of eight share banks.
__device__ __forceinline__ uint32_t slot_offset(int row, int chunk) { return row * kRowBytes + ((chunk ^ (row & 7)) << 4); }

// Copies rows of `width` chunks from `base` (tokens `stride` bytes apart) into a slot; tokens past the last repeat it.
template <int kRows>
__device__ __forceinline__ void load_rows(uint32_t slot, const char* base, int64_t first, int64_t tokens, int64_t stride,
                                          int width, int lane) {
  const int chunk = lane & 7;
  if (chunk < width) {
#pragma unroll
    for (int i = 0; i < kRows / 4; ++i) {
      const int row = 4 * i + (lane >> 3);
      const int64_t token = min(first + row, tokens - 1);
      copy_async(slot + slot_offset(row, chunk), base + token * stride + chunk * 16);
    }
  }
}

// Sum over the four lanes that hold parts of the same rows of a product.
__device__ __forceinline__ float quad_sum(float v) {
  v += __shfl_xor_sync(0xffffffff, v, 1);
  return v + __shfl_xor_sync(0xffffffff, v, 2);
}

// How many blocks of a kernel the current device holds at a time.
template <typename Kernel>
cudaError_t resident_blocks(Kernel kernel, int threads, size_t shared, int& blocks) {
  int device = 0, multiprocessors = 0, limit = 0;
  if (cudaError_t e = cudaGetDevice(&device)) return e;
  if (cudaError_t e = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device)) return e;
  if (cudaError_t e = cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device)) return e;
  if (shared > static_cast<size_t>(limit)) return cudaErrorNotSupported;
  if (cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared))) {
    return e;
  }
  if (cudaError_t e = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared)) return e;
  blocks *= multiprocessors;
  return blocks ? cudaSuccess : cudaErrorNotSupported;
}

}  // namespace cgspn::cuda
