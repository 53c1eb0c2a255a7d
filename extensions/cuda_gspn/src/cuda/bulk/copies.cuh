// Bulk tensor copies (sm_90 and later): tensor maps on the host, tile loads and transaction barriers on the device.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/async.cuh"

namespace cgspn::cuda {

// cuTensorMapEncodeTiled of the loaded driver, asked once; null where the driver lacks it.
inline decltype(&cuTensorMapEncodeTiled) tensor_map_encoder() {
  static const auto encoder = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
    const bool usable = error == cudaSuccess && found == cudaDriverEntryPointSuccess;
    if (error != cudaSuccess) cudaGetLastError();
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(usable ? entry : nullptr);
  }();
  return encoder;
}

// A map of `rank` axes, innermost first and contiguous; what a tile has outside the tensor is read as 0.
inline bool encode_tensor_map(CUtensorMap* map, const void* data, int element_bytes, int rank, const cuuint64_t* sizes,
                              const cuuint64_t* strides, const cuuint32_t* box) {
  constexpr cuuint32_t kOnes[5] = {1, 1, 1, 1, 1};
  const auto encode = tensor_map_encoder();
  return encode != nullptr &&
         encode(map, element_bytes == 4 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 : CU_TENSOR_MAP_DATA_TYPE_UINT16,
                static_cast<cuuint32_t>(rank), const_cast<void*>(data), sizes, strides, box, kOnes,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_NONE,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

__device__ __forceinline__ void load_tile(uint32_t shared, const CUtensorMap* map, int channel, int position, int line,
                                          int image, uint32_t barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3, %4, %5}], [%6], %7;" ::"r"(shared),
      "l"(map), "r"(channel), "r"(position), "r"(line), "r"(image), "r"(barrier), "l"(policy)
      : "memory");
}

// With the three neighbours as second axis.
__device__ __forceinline__ void load_affinity_tile(uint32_t shared, const CUtensorMap* map, int channel, int position,
                                                   int line, int image, uint32_t barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3, %4, %5, %6}], [%7], %8;" ::"r"(shared),
      "l"(map), "r"(channel), "r"(0), "r"(position), "r"(line), "r"(image), "r"(barrier), "l"(policy)
      : "memory");
}

// For `arrivals` arrivals a phase, and an arrival.
__device__ __forceinline__ void counting_barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// 8 bytes into a peer's shared memory, counted by the peer's barrier.
__device__ __forceinline__ void send_async(uint32_t peer_shared, float2 v, uint32_t peer_barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(peer_shared),
      "r"(__float_as_uint(v.x)), "r"(__float_as_uint(v.y)), "r"(peer_barrier)
      : "memory");
}

// Orders plain accesses to memory before and after it with bulk copies.
__device__ __forceinline__ void fence_bulk_copies() { asm volatile("fence.proxy.async;" ::: "memory"); }

#else

__device__ __forceinline__ void load_tile(uint32_t, const CUtensorMap*, int, int, int, int, uint32_t, uint64_t) {}
__device__ __forceinline__ void load_affinity_tile(uint32_t, const CUtensorMap*, int, int, int, int, uint32_t,
                                                   uint64_t) {}
__device__ __forceinline__ void fence_bulk_copies() {}
__device__ __forceinline__ void counting_barrier_init(uint32_t, int) {}
__device__ __forceinline__ void barrier_arrive(uint32_t) {}
__device__ __forceinline__ void send_async(uint32_t, float2, uint32_t) {}

#endif

}  // namespace cgspn::cuda
