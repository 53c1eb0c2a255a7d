// Which layout the latent forward kernel runs with, and whether it runs at all.
#include <algorithm>

#include "cgspn/latent_propagation_cuda.h"
#include "geometry.cuh"
#include "latent_kernel.cuh"

namespace cgspn::cuda {
namespace {

struct Device {
  int multiprocessors = 0, shared = 0, major = 0;
};

Device current_device() {
  int device = 0;
  Device d;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&d.multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&d.shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaDeviceGetAttribute(&d.major, cudaDevAttrComputeCapabilityMajor, device);
  return d;
}

// Microseconds, fitted to layouts of batch 1 to 32 and grids from 27 to 256 on an H100 (NOTES_latent.md). A line of the
// kernel for few images takes 0.36 to 0.5 us in all of its layouts: the terms rank them.
constexpr double kCall = 10, kLine = 0.251, kBorder = 0.1, kTile = 0.0728, kCopyIn = 0.0015, kCopyOut = 0.0137;
constexpr double kShortCall = 8, kShortLine = 0.25, kShortWarp = 0.01, kShortSplit = 0.01, kShortChannels = 0.02;
constexpr int kWarps = 8, kShortWarps = 12;

double line_cost(const LatentLayout& l, const LineScanShape& s, int length) {
  const int tiles = ((length + 7) / 8 + l.split - 1) / l.split, positions = std::min(length, tiles * 8);
  if (l.group == 8) {
    return kShortLine + kShortWarp * (l.threads() / 32) + kShortSplit * l.split + kShortChannels * l.channel_warps;
  }
  const int share = tiles / l.line_warps, extra = tiles % l.line_warps;
  int scheduler[4] = {};
  for (int w = 0; w < l.channel_warps * l.line_warps; ++w) scheduler[w % 4] += share + (w / l.channel_warps < extra);
  const double out = kCopyOut * l.channel_warps * l.group / 64.0, in = kCopyIn * static_cast<double>(s.channels) / 64.0;
  return kLine + (l.split > 1 ? kBorder : 0.0) + kTile * *std::max_element(scheduler, scheduler + 4) + positions * (in + out);
}

double cost(const LatentLayout& l, const LineScanShape& s, int multiprocessors) {
  // Clusters lie within a part of the device, where large ones leave multiprocessors over.
  const int64_t resident = int64_t{multiprocessors} / l.split * l.split - (l.split >= 4 ? l.split * l.split / 2 : 0);
  const double waves = static_cast<double>((latent_blocks(s, l) + resident - 1) / resident);
  double scan = 0;
  for (int d = 0; d < s.num_directions; ++d) {
    const double lines = static_cast<double>(num_lines(s, s.directions[d]));
    scan = std::max(scan, lines * line_cost(l, s, static_cast<int>(line_length(s, s.directions[d]))));
  }
  return (l.group == 8 ? kShortCall : kCall) + waves * scan;
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

template <typename View>
bool dense_channels(const View& v) {
  return v.c == 1 && v.b % 8 == 0 && v.h % 8 == 0 && v.w % 8 == 0 && aligned(v.data);
}

}  // namespace

namespace {

LatentLayout search(const LineScanShape& s, const Device& device) {
  LatentLayout best;
  if (device.major < 9) return best;
  double best_cost = 0;
  const auto consider = [&](LatentLayout l) {
    l.shared = latent_shared_bytes(s, l);
    if (l.shared > static_cast<size_t>(device.shared)) return;
    const double expected = cost(l, s, device.multiprocessors);
    // Of equal layouts the one with more warps.
    if (best.channel_warps == 0 || expected <= best_cost) {
      best = l;
      best_cost = expected;
    }
  };
  for (int group = 16; group >= 8; group -= 8) {
    const int groups = static_cast<int>(s.channels) / group, warps = group == 16 ? kWarps : kShortWarps;
    for (int channel_warps = 1; channel_warps <= std::min(groups, warps); ++channel_warps) {
      if (groups % channel_warps != 0) continue;
      for (int split = 1; split <= 8; split *= 2) {
        LatentLayout l{group, channel_warps, 0, split};
        if (group == 8) {
          l.line_warps = latent_positions(s, split) / 8;
          if (channel_warps * l.line_warps <= warps) consider(l);
          continue;
        }
        // One warp a scheduler hides no latency; large clusters were slower wherever they were measured.
        for (l.line_warps = 1; channel_warps * l.line_warps <= warps; ++l.line_warps) {
          if (channel_warps * l.line_warps >= 6 && split <= 2) consider(l);
        }
      }
    }
  }
  return best;
}

bool same(const LineScanShape& a, const LineScanShape& b) {
  return a.batch == b.batch && a.channels == b.channels && a.height == b.height && a.width == b.width &&
         a.num_directions == b.num_directions && std::equal(a.directions, a.directions + a.num_directions, b.directions);
}

}  // namespace

LatentLayout latent_layout(const LineScanShape& s) {
  // A search takes some 10 us, and a model asks for few shapes, three times a call.
  struct Entry {
    int device = -1;
    LineScanShape shape;
    LatentLayout layout;
  };
  thread_local Entry recent[8];
  thread_local unsigned next = 0;
  int device = 0;
  cudaGetDevice(&device);
  for (const Entry& e : recent) {
    if (e.device == device && same(e.shape, s)) return e.layout;
  }
  Entry& entry = recent[next++ % 8];
  entry = {device, s, search(s, current_device())};
  return entry.layout;
}

bool latent_forward_supported(const LatentForward& call) {
  const LineScanShape& s = call.shape;
  const bool half = s.dtype == DType::kFloat16 || s.dtype == DType::kBFloat16;
  if (!half || (s.channels != 32 && s.channels != 48 && s.channels != 64)) return false;
  if (!dense_channels(call.x) || !dense_channels(call.y) || !aligned(call.weight)) return false;
  return latent_layout(s).channel_warps > 0;
}

cudaError_t latent_forward(const LatentForward& call, void* workspace, cudaStream_t stream) {
  return latent_forward_with(call, latent_layout(call.shape), workspace, stream);
}

}  // namespace cgspn::cuda
