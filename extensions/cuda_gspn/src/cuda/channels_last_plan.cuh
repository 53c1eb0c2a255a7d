// What the channels-last kernels share on the host: layout checks, device limits, the plan and the cluster launch.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <mutex>

#include "geometry.cuh"

namespace cgspn::cuda {

constexpr int kMaxSplit = 8;  // the largest cluster every device with clusters can run

struct Strides {
  int64_t b = 0, h = 0, w = 0;
};

template <typename View>
Strides byte_strides(const View& v, int64_t bytes) {
  return {v.b * bytes, v.h * bytes, v.w * bytes};
}

inline bool aligned16(int64_t value) { return value % 16 == 0; }

inline bool base_vectorised(const void* data, int64_t b, int64_t c, int64_t h, int64_t w, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && c == 1 && aligned16(b * bytes) && aligned16(h * bytes) &&
         aligned16(w * bytes);
}

// Whether 16 bytes of neighbouring channels can be accessed at once everywhere; an absent tensor passes.
inline bool vectorised(const ImageView& v, int64_t bytes) {
  return v.data == nullptr || base_vectorised(v.data, v.b, v.c, v.h, v.w, bytes);
}
inline bool vectorised(const DirectionView& v, int64_t bytes) {
  return v.data == nullptr || (base_vectorised(v.data, v.b, v.c, v.h, v.w, bytes) && aligned16(v.d * bytes));
}
inline bool vectorised(const AffinityView& v, int64_t bytes) {
  return v.data == nullptr ||
         (base_vectorised(v.data, v.b, v.c, v.h, v.w, bytes) && aligned16(v.d * bytes) && aligned16(v.k * bytes));
}

constexpr int kMaxBlocksPerSm = 4;

__global__ void occupancy_probe();

struct DeviceLimits {
  bool clusters = false;
  size_t shared = 0;
  // Clusters that run at once by [split][blocks that fit on a multiprocessor]. Clusters stay within groups of
  // multiprocessors whose sizes differ from card to card, so this is asked, not computed.
  int resident[kMaxSplit + 1][kMaxBlocksPerSm + 1] = {};
};

// Of the current device, asked once.
inline const DeviceLimits& device_limits() {
  constexpr int kDevices = 64;
  static DeviceLimits limits[kDevices];
  static std::once_flag asked[kDevices];
  int device = 0;
  cudaGetDevice(&device);
  device %= kDevices;
  std::call_once(asked[device], [&] {
    const auto attribute = [&](cudaDeviceAttr a) {
      int value = 0;
      cudaDeviceGetAttribute(&value, a, device);
      return value;
    };
    DeviceLimits& l = limits[device];
    l.clusters = attribute(cudaDevAttrComputeCapabilityMajor) >= 9;
    l.shared = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    const int multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
    if (l.clusters) {
      cudaFuncSetAttribute(occupancy_probe, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(l.shared));
    }
    for (int split = 1; split <= kMaxSplit; ++split) {
      for (int blocks = 1; blocks <= kMaxBlocksPerSm; ++blocks) {
        int& count = l.resident[split][blocks];
        cudaLaunchConfig_t config = {};
        config.gridDim = dim3(split);
        config.blockDim = dim3(32);
        config.dynamicSmemBytes = l.shared / blocks - 1024 * (blocks - 1);
        cudaLaunchAttribute attribute;
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim = {static_cast<unsigned>(split), 1, 1};
        config.attrs = &attribute;
        config.numAttrs = 1;
        if (!l.clusters || cudaOccupancyMaxActiveClusters(&count, occupancy_probe, &config) != cudaSuccess) count = 0;
        count = std::max(count, split == 1 ? multiprocessors * blocks : 1);
      }
    }
    cudaGetLastError();
  });
  return limits[device];
}

inline int longest_line(const LineScanShape& s) {
  int64_t longest = 1;
  for (int i = 0; i < s.num_directions; ++i) longest = std::max(longest, line_length(s, s.directions[i]));
  return static_cast<int>(longest);
}

// Whether blocks get as many positions of a vertical line as of a horizontal one.
inline bool same_positions(const LineScanShape& s, int split) {
  const auto positions = [&](int i) { return (line_length(s, s.directions[i]) + split - 1) / split; };
  for (int i = 1; i < s.num_directions; ++i) {
    if (positions(i) != positions(0)) return false;
  }
  return true;
}

inline bool pairs_of_opposites(const LineScanShape& s) {
  bool present[kMaxDirections] = {};
  for (int i = 0; i < s.num_directions; ++i) present[static_cast<int>(s.directions[i])] = true;
  return present[0] == present[1] && present[2] == present[3];
}

// With two sides opposite directions follow each other; otherwise the order is the caller's.
inline void scan_order(const LineScanShape& s, int sides, int order[]) {
  for (int i = 0; i < s.num_directions; ++i) order[i] = i;
  if (sides == 2) {
    std::stable_sort(order, order + s.num_directions,
                     [&](int p, int q) { return s.directions[p] < s.directions[q]; });
  }
}

// How a call is cut into clusters of blocks; see channels_last_forward.cu for the words.
struct Layout {
  int vectors = 0, groups = 0, parts = 1, sides = 1, split = 1, positions = 1, threads = 0, slots = 0;
  bool valid = false, scratch = false;
  size_t shared = 0;
  double cost = 0;  // estimated microseconds, fitted to measured sweeps (NOTES.md)

  int64_t tasks(const LineScanShape& s) const { return s.batch * groups * parts; }
  unsigned blocks(const LineScanShape& s) const { return static_cast<unsigned>(tasks(s) * sides * split); }
  // Counters of the task barriers, before the scratch tensors.
  size_t counter_bytes(const LineScanShape& s) const {
    return sides == 2 ? (static_cast<size_t>(tasks(s)) * 4 + 255) / 256 * 256 : 0;
  }
  size_t workspace(const LineScanShape& s) const {
    const size_t bytes = s.dtype == DType::kFloat32 ? 4 : 2;
    return counter_bytes(s) + (scratch ? parts * bytes * s.batch * s.height * s.width * s.channels : 0);
  }
};

// What a kernel needs and moves.
struct Demand {
  int max_threads, stages, ring_slots, exchanged_lines, border_vectors;
  bool summed;               // the directions have a common output
  double tensors;            // of x's size, moved per direction
  double fixed_us, warp_us;  // time of a line: with no warp on a multiprocessor, and for each warp
};

inline Layout find_plan(const LineScanShape& s, const Demand& demand) {
  const int bytes = s.dtype == DType::kFloat32 ? 4 : 2;
  const int quads = 16 / bytes / 4;
  const int total_vectors = static_cast<int>(s.channels * bytes / 16);
  const int length = longest_line(s), d = s.num_directions;
  int64_t all_lines = 0;
  for (int i = 0; i < d; ++i) all_lines += num_lines(s, s.directions[i]);
  const bool pairs = pairs_of_opposites(s) && demand.summed;
  const DeviceLimits& limits = device_limits();
  const int largest = limits.clusters ? kMaxSplit : 1;
  const size_t limit = limits.shared;
  const double tensor_us = 1e-6 * bytes * s.channels * s.batch * s.height * s.width / 2.6;
  Layout best;
  for (int vectors = 8; vectors >= 1; vectors /= 2) {
    for (int parts = 1; parts <= d; ++parts) {
      for (int sides = 1; sides <= 2; ++sides) {
        for (int split = 1; split <= largest; ++split) {
          if (total_vectors % vectors != 0 || d % (parts * sides) != 0) continue;
          if ((!demand.summed && parts != d) || (sides == 2 && !pairs)) continue;
          // Opposite directions one after the other never beat both at once.
          if (pairs && parts == 1 && sides == 1) continue;
          Layout l;
          l.vectors = vectors;
          l.groups = total_vectors / vectors;
          l.parts = parts;
          l.sides = sides;
          l.split = split;
          l.scratch = demand.summed && parts > 1;
          l.positions = (length + split - 1) / split;
          // The threads at the borders keep the phases of the barriers there, so they have to be the same in all passes
          // of a block.
          if (split > 1 && parts * sides < d && !same_positions(s, split)) continue;
          if (split > 1 && l.positions < 4) continue;
          if (static_cast<int64_t>(l.positions) * vectors > demand.max_threads) continue;
          l.threads = (l.positions * vectors + 31) / 32 * 32;
          l.slots = l.threads + 2 * vectors;
          l.shared = static_cast<size_t>(demand.exchanged_lines) * quads * l.slots * 16 +
                     static_cast<size_t>(demand.stages) *
                         (demand.ring_slots * l.threads + demand.border_vectors * vectors) * 16 + 64;
          if (l.shared > limit) continue;
          const int per_sm =
              std::clamp<int>(std::min<int>(limit / (l.shared + 1024), 65536 / (l.threads * 168)), 1, kMaxBlocksPerSm);
          const double clusters = static_cast<double>(l.tasks(s) * sides);
          const double resident = std::min<double>(clusters, limits.resident[split][per_sm]);
          const double warps = l.threads / 32.0 * std::max(1.0, resident / limits.resident[split][1]);
          const double lines = static_cast<double>(all_lines) / (parts * sides);
          const double latency = lines * (demand.fixed_us + demand.warp_us * warps);
          const double memory =
              tensor_us * (demand.tensors * d + 2) * (vectors == 8 ? 1.0 : vectors == 4 ? 1.25 : 2.0);
          // Clusters run in waves, each as long as its dependent lines or its bytes take.
          const double full_waves = std::floor(clusters / resident);
          const double rest = clusters - full_waves * resident;
          l.cost = full_waves * std::max(latency, memory * resident / clusters);
          if (rest > 0) l.cost += std::max(latency, memory * rest / clusters);
          if (sides == 2) l.cost += 2 + 2 * (d / parts / 2);
          if (l.scratch) l.cost += tensor_us * (parts + 1) + 4;
          l.valid = true;
          if (!best.valid || l.cost < best.cost) best = l;
        }
      }
    }
  }
  return best;
}

// A call plans several times, and calls repeat.
inline Layout plan(const LineScanShape& s, const Demand& demand) {
  struct Last {
    LineScanShape shape;
    Demand demand = {};
    int device = -1;
    Layout layout;
  };
  static thread_local Last last;
  int device = 0;
  cudaGetDevice(&device);
  if (last.device != device || std::memcmp(&last.shape, &s, sizeof s) != 0 ||
      std::memcmp(&last.demand, &demand, sizeof demand) != 0) {
    last.layout = find_plan(s, demand);
    std::memcpy(&last.shape, &s, sizeof s);
    std::memcpy(&last.demand, &demand, sizeof demand);
    last.device = device;
  }
  return last.layout;
}

template <typename Params>
cudaError_t launch_clusters(void (*kernel)(const Params), const Params& params, unsigned blocks,
                            int threads, size_t shared, int split, cudaStream_t stream, bool early = false) {
  if (shared > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  cudaLaunchAttribute attributes[2];
  config.attrs = attributes;
  if (split > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(split), 1, 1};
  }
  if (early) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  return cudaLaunchKernelEx(&config, kernel, params);
}

}  // namespace cgspn::cuda
