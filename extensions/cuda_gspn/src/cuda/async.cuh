// Asynchronous copies, cache policies, clusters and their barriers, as thin wrappers of PTX.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace cgspn::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// L2 policies as createpolicy.fractional encodes them for the whole access.
constexpr uint64_t kEvictFirst = 0x12f0000000000000;
constexpr uint64_t kEvictLast = 0x14f0000000000000;

// 16 bytes from global to shared memory past L1. Without an L2 policy: nvcc 13.0 encodes many copies that carry one with
// a descriptor register it never set, which traps as an illegal instruction.
__device__ __forceinline__ void copy_async(uint32_t shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}

// Reads a line into L2 to stay there as long as there are others to evict.
__device__ __forceinline__ void keep_in_l2(const void* global) {
  asm volatile("prefetch.global.L2::evict_last [%0];" ::"l"(global));
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int kPending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ void store_global(void* p, uint4 v, uint64_t policy) {
  asm volatile("st.global.L2::cache_hint.v4.b32 [%0], {%1, %2, %3, %4}, %5;" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w), "l"(policy)
               : "memory");
}

// Waits until every block of a task has come here `target / blocks` times; what they wrote before is then visible to
// reads past L1. The blocks of a task are dispatched together, so that all of them get to run.
__device__ __forceinline__ void task_barrier(unsigned* counter, unsigned target) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
    unsigned seen;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
    } while (seen < target);
    __threadfence();
  }
  __syncthreads();
}

// Programmatic dependent launch: a kernel launched early waits for what the kernel before it in the stream wrote, and a kernel
// lets the next one start. Neither does anything where no kernel is launched early.
__device__ __forceinline__ void await_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void allow_next_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Clusters exist from sm_90 on; the host never launches one elsewhere.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ uint32_t peer_address(uint32_t shared, uint32_t rank) {
  uint32_t peer;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(peer) : "r"(shared), "r"(rank));
  return peer;
}

__device__ __forceinline__ void barrier_init(uint32_t barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n\t.reg .pred done;\n\t"
      "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n\t"
      "@!done bra again;\n\t}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// 16 (4) bytes into a peer's shared memory, counted by the peer's barrier.
__device__ __forceinline__ void send_async(uint32_t peer_shared, float4 v, uint32_t peer_barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(peer_shared),
      "r"(__float_as_uint(v.x)), "r"(__float_as_uint(v.y)), "r"(__float_as_uint(v.z)), "r"(__float_as_uint(v.w)),
      "r"(peer_barrier)
      : "memory");
}
__device__ __forceinline__ void send_async(uint32_t peer_shared, float v, uint32_t peer_barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(peer_shared),
               "r"(__float_as_uint(v)), "r"(peer_barrier)
               : "memory");
}

#else

__device__ __forceinline__ uint32_t cluster_rank() { return 0; }
__device__ __forceinline__ void cluster_sync() {}
__device__ __forceinline__ uint32_t peer_address(uint32_t shared, uint32_t) { return shared; }
__device__ __forceinline__ void barrier_init(uint32_t) {}
__device__ __forceinline__ void fence_barrier_init() {}
__device__ __forceinline__ void barrier_expect(uint32_t, uint32_t) {}
__device__ __forceinline__ void barrier_wait(uint32_t, uint32_t) {}
__device__ __forceinline__ void send_async(uint32_t, float4, uint32_t) {}
__device__ __forceinline__ void send_async(uint32_t, float, uint32_t) {}

#endif

}  // namespace cgspn::cuda
