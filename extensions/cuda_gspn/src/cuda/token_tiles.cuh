// How warps walk over tokens: a warp takes a task (16 tokens, all or some of their channels) and streams it, 64 channels (128
// bytes) at a time, through a private ring in shared memory, so that no barrier of the block is needed after the weights
// have arrived.
#pragma once

#include <algorithm>

#include "async.cuh"
#include "channels_last_plan.cuh"

namespace cgspn::cuda {

constexpr int kColumns = 64, kRowBytes = 128, kRows = 16, kSlotBytes = kRows * kRowBytes;
constexpr int kWarps = 12, kStages = 3;

// Where a 16-byte chunk of a row lies in a slot of the ring: no two rows of eight share banks.
__device__ __forceinline__ uint32_t slot_offset(int row, int chunk) { return row * kRowBytes + ((chunk ^ (row & 7)) << 4); }

// 16 bytes from global to shared memory past L1; L2 reads the 256 bytes around them, of which the warp's next step, or its
// neighbour, wants the rest.
__device__ __forceinline__ void copy_wide(uint32_t shared, const void* global) {
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}

// Copies rows of `width` chunks from `base` (tokens `stride` bytes apart) into a slot; tokens past the last repeat it.
__device__ __forceinline__ void load_rows(uint32_t slot, const char* base, int64_t first, int64_t tokens, int64_t stride,
                                          int width, int lane) {
  const int chunk = lane & 7;
  if (chunk < width) {
#pragma unroll
    for (int i = 0; i < kRows / 4; ++i) {
      const int row = 4 * i + (lane >> 3);
      const int64_t token = min(first + row, tokens - 1);
      copy_wide(slot + slot_offset(row, chunk), base + token * stride + chunk * 16);
    }
  }
}

// Sum over the four lanes that hold parts of the same rows of a product.
__device__ __forceinline__ float quad_sum(float v) {
  v += __shfl_xor_sync(0xffffffff, v, 1);
  return v + __shfl_xor_sync(0xffffffff, v, 2);
}

// What a block's warps keep in shared memory: their rings, and the task that each slot belongs to.
constexpr size_t kRingBytes = kWarps * kStages * (kSlotBytes + sizeof(unsigned));

// The tasks of a warp in order. The first is fixed; later ones come from a counter that starts at 0, so that a warp whose
// memory is near does more of them, or, without a counter, are `step` apart. The counter is asked one task ahead.
class Tasks {
 public:
  __device__ __forceinline__ Tasks(unsigned* counter, unsigned first, unsigned step) : counter_(counter), next_(first), step_(step) {}

  __device__ __forceinline__ unsigned take() {
    const unsigned task = __shfl_sync(0xffffffff, next_, 0);
    if (!counter_) {
      next_ = task + step_;
    } else if (threadIdx.x % 32 == 0) {
      next_ = step_ + atomicAdd(counter_, 1u);
    }
    return task;
  }

 private:
  unsigned* counter_;
  unsigned next_, step_;
};

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

// How a kernel is launched beside others: at most so many blocks (0: as many as are resident), with a counter in the workspace
// that is 0 already, and before the kernel that it waits for itself has ended.
struct TaskLaunch {
  int most_blocks = 0;
  bool cleared = false, early = false;
};

// Launches as many blocks as are resident; a counter in `workspace` balances them where warps have several tasks each.
template <typename Params>
cudaError_t launch_tasks(void (*kernel)(const Params), Params& params, size_t shared, int64_t tasks, void* workspace,
                         cudaStream_t stream, const TaskLaunch& launch) {
  int blocks = 0;
  if (cudaError_t e = resident_blocks(kernel, kWarps * 32, shared, blocks)) return e;
  if (launch.most_blocks > 0) blocks = std::min(blocks, launch.most_blocks);
  blocks = static_cast<int>(std::min<int64_t>(blocks, tasks));
  if (tasks > int64_t(2) * blocks * kWarps) {
    params.counter = static_cast<unsigned*>(workspace);
    const cudaError_t e = launch.cleared ? cudaSuccess : cudaMemsetAsync(workspace, 0, sizeof(unsigned), stream);
    if (e != cudaSuccess) return e;
  }
  return launch_clusters(kernel, params, blocks, kWarps * 32, shared, 1, stream, launch.early);
}

}  // namespace cgspn::cuda
