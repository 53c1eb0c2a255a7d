// How a call of the bulk-copy kernels is cut into clusters of blocks.
#pragma once

#include "cuda/async.cuh"
#include "cuda/bulk/copies.cuh"
#include "cuda/channels_last_plan.cuh"

namespace cgspn::cuda {

constexpr int kMaxTile = 256;  // positions of a tensor map's box

// Shared memory of a block: the ring, what is exchanged over two lines, the barriers. Offsets in bytes.
struct BulkShared {
  int tile, stage_bytes, exchange, barriers, total;

  // A stage holds `tiles` tiles of `positions`, the first three the logits, then `wide_tiles` with a border.
  __host__ __device__ BulkShared(int vectors, int positions, int stages, int tiles, int wide_tiles,
                                 int exchange_bytes) {
    const auto aligned = [](int bytes) { return (bytes + 127) / 128 * 128; };
    tile = aligned(positions * vectors * 16);
    stage_bytes = tiles * tile + wide_tiles * aligned((positions + 2) * vectors * 16);
    exchange = stages * stage_bytes;
    barriers = exchange + aligned(exchange_bytes);
    total = barriers + 8 * (2 * stages + 5);
  }
};

// A line's place in the ring; `lap` is the phase of the stage's barriers.
struct RingPlace {
  int stage = 0;
  uint32_t lap = 0;
  __device__ __forceinline__ void advance(int stages) {
    if (++stage == stages) {
      stage = 0;
      lap ^= 1;
    }
  }
};

// What a kernel needs, and the constants of its cost, fitted to measured sweeps (NOTES.md).
struct BulkDemand {
  int tiles, wide_tiles;
  int exchanged;  // values a channel and position sends
  int threads[9];  // the most that scan, by channels a thread; one more warp loads
  int registers[9];
  double tensors;  // of x's size, moved per direction
  // Of a line: without warps, for each warp of a multiprocessor, for a split line.
  double fixed_us[9], warp_us[9], border_us;
  double load_us;    // from the request of a line to its arrival
  double row_us;     // of one position of one tile, however narrow
  double shared_us;  // of one byte into a multiprocessor
  double serial;     // share of computing, loading and waiting that does not overlap the longest of them
  double byte_us;    // of DRAM traffic
  double segment[3];     // factor on traffic for 16, 32, 64 bytes a position
  double narrow_stores;  // the same for each halving of what a block writes of a 32-byte sector
  double sharpness;      // exponent of the norm that stands for the longer of dependent lines and bytes
  bool sums_channels = false;  // a block holds all channels of a position
};

// The logits of the three neighbours are as many tiles.
constexpr int kLogitTiles = 3;

inline bool shares_affinity(const LineScanShape& s) { return s.affinity_channels != s.channels; }

// Where all channels share the affinity a tile row holds the logits of all directions, in whole 16 bytes; that fits as
// many tiles of the narrowest row.
__host__ __device__ constexpr int shared_logit_tiles(int bytes) { return bytes == 4 ? 3 : 2; }
inline int shared_logit_bytes(const LineScanShape& s) {
  const int bytes = s.dtype == DType::kFloat32 ? 4 : 2;
  return (3 * s.num_directions * bytes + 15) / 16 * 16;
}

// The demand of a kernel for shared affinity: fewer and smaller logits, 16 bytes of channels a thread.
constexpr BulkDemand shared_affinity_demand(BulkDemand demand, int bytes, bool sums_channels = false) {
  demand.tiles += shared_logit_tiles(bytes) - kLogitTiles;
  demand.threads[2] = 0;
  demand.tensors -= sums_channels ? 6 : 3;
  demand.sums_channels = sums_channels;
  return demand;
}

__host__ __device__ constexpr int exchange_bytes(int positions, int per_position, int lanes, int exchanged) {
  return 2 * exchanged * (positions + 2) * per_position * lanes * 4;
}

struct BulkLayout {
  int vectors = 0, groups = 0, slices = 1, parts = 1, sides = 1, split = 1;
  int positions = 1, lanes = 0, threads = 0, stages = 0;
  bool valid = false, scratch = false;
  size_t shared = 0;
  double cost = 0;

  int64_t tasks(const LineScanShape& s) const { return s.batch * groups * slices * parts; }
  unsigned blocks(const LineScanShape& s) const { return static_cast<unsigned>(tasks(s) * sides * split); }
  size_t counter_bytes(const LineScanShape& s) const {
    return sides == 2 ? (static_cast<size_t>(tasks(s)) * 4 + 255) / 256 * 256 : 0;
  }
  size_t workspace(const LineScanShape& s) const {
    const size_t bytes = s.dtype == DType::kFloat32 ? 4 : 2;
    return counter_bytes(s) + (scratch ? parts * bytes * s.batch * s.height * s.width * s.channels : 0);
  }
};

inline BulkLayout make_bulk_layout(const LineScanShape& s, bool summed, const BulkDemand& demand, int vectors,
                                   int parts, int sides, int split, int lanes, int slices, int most_stages) {
  const int bytes = s.dtype == DType::kFloat32 ? 4 : 2;
  const int total_vectors = static_cast<int>(s.channels * bytes / 16);
  const int length = longest_line(s), d = s.num_directions;
  const DeviceLimits& limits = device_limits();
  BulkLayout l;
  if (demand.sums_channels && vectors != total_vectors) return l;
  if (total_vectors % vectors != 0 || d % (parts * sides) != 0) return l;
  if ((!summed && parts != d) || (sides == 2 && !(summed && pairs_of_opposites(s)))) return l;
  l.vectors = vectors;
  l.groups = total_vectors / vectors;
  l.parts = parts;
  l.sides = sides;
  l.split = split;
  l.lanes = lanes;
  l.slices = slices;
  l.scratch = summed && parts > 1;
  l.positions = (length + split - 1) / split;
  if ((split > 1 && l.positions < 4) || l.positions + 2 * demand.wide_tiles > kMaxTile) return l;
  if (vectors * 16 / (lanes * bytes) % slices != 0) return l;
  const int per_position = vectors * 16 / (lanes * bytes) / slices;
  if (l.positions * per_position > demand.threads[lanes]) return l;
  l.threads = (l.positions * per_position + 31) / 32 * 32;
  for (l.stages = most_stages; l.stages >= 3; --l.stages) {
    l.shared = BulkShared(vectors, l.positions, l.stages, demand.tiles, demand.wide_tiles,
                          exchange_bytes(l.positions, per_position, lanes, demand.exchanged))
                   .total;
    if (l.shared <= limits.shared) break;
  }
  l.valid = l.stages >= 3 && l.blocks(s) > 0;
  return l;
}

// Fills in the estimated cost; false where the card cannot run the layout.
inline bool estimate(BulkLayout& l, const LineScanShape& s, const BulkDemand& demand, double all_lines) {
  const int bytes = s.dtype == DType::kFloat32 ? 4 : 2, d = s.num_directions;
  const DeviceLimits& limits = device_limits();
  const int threads = l.threads + 32;
  const int by_threads =
      std::min(2048 / threads, 65536 / ((threads + 127) / 128 * 128 * demand.registers[l.lanes]));
  const int per_sm = std::clamp<int>(std::min<int>(limits.shared / (l.shared + 1024), by_threads), 1, kMaxBlocksPerSm);
  const double places = limits.resident[l.split][per_sm];
  if (places == 0) return false;
  const double clusters = static_cast<double>(l.tasks(s) * l.sides);
  const double resident = std::min(clusters, places);
  const double multiprocessors = limits.resident[1][1];
  const double crowd = std::max(1.0, resident * l.split / multiprocessors);

  const double compute = demand.fixed_us[l.lanes] + demand.warp_us[l.lanes] * l.threads / 32 * crowd +
                         (l.split > 1 ? demand.border_us : 0.0);
  const double load = crowd * l.positions * (demand.tiles + demand.wide_tiles) *
                      std::max(demand.row_us, l.vectors * 16 * demand.shared_us);
  const double wait = demand.load_us / (l.stages - 1);
  const double longest = std::max({compute, load, wait});
  const double line = longest + demand.serial * (compute + load + wait - longest);
  const double latency = all_lines / (l.parts * l.sides) * line;

  // Slices read whole positions each; neither that nor half-written sectors matter while all stays in L2.
  const double tensor = static_cast<double>(bytes) * s.channels * s.batch * s.height * s.width;
  const double outside_l2 = std::clamp((tensor * demand.tensors * d - 100e6) / 400e6, 0.0, 1.0);
  const double width = std::min(2.0, static_cast<double>(l.vectors) / l.slices);
  const double sliced = l.slices * std::pow(demand.narrow_stores, std::log2(2 / width)) - 1;
  const double segment = l.vectors >= 8 ? 1.0 : demand.segment[l.vectors / 2];
  const double tensor_us = tensor * demand.byte_us;
  const double memory = tensor_us * (demand.tensors * d + 2) * segment * (1 + sliced * outside_l2);
  // Clusters run in waves, each about as long as its dependent lines or its bytes take, whichever is longer.
  const auto wave = [&](double count) {
    return std::pow(std::pow(latency, demand.sharpness) + std::pow(memory * count / clusters, demand.sharpness),
                    1 / demand.sharpness);
  };
  const double full_waves = std::floor(clusters / resident);
  const double rest = clusters - full_waves * resident;
  l.cost = full_waves * wave(resident) + (rest > 0 ? wave(rest) : 0.0);
  if (l.sides == 2) l.cost += 3.0 * (1 + d / l.parts / 2);
  if (l.scratch) l.cost += tensor_us * (l.parts + 1) + 3;
  return true;
}

inline BulkLayout find_bulk_plan(const LineScanShape& s, bool summed, const BulkDemand& demand) {
  const int bytes = s.dtype == DType::kFloat32 ? 4 : 2;
  BulkLayout best;
  const DeviceLimits& limits = device_limits();
  if (!limits.clusters || tensor_map_encoder() == nullptr) return best;
  const int d = s.num_directions;
  int64_t all_lines = 0;
  for (int i = 0; i < d; ++i) all_lines += num_lines(s, s.directions[i]);
  const bool pairs = pairs_of_opposites(s) && summed;
  for (int lanes = 16 / bytes; lanes >= 2; lanes = lanes == 2 ? 0 : 2) {
    for (int slices = 1; slices <= (lanes == 2 ? 4 : 1); slices *= 2) {
      for (int vectors = 16; vectors >= 1; vectors /= 2) {
        // More slices of wide rows were never faster: every slice reads whole rows.
        if (slices > 1 && vectors > 2) continue;
        for (int parts = 1; parts <= d; ++parts) {
          for (int sides = 1; sides <= 2; ++sides) {
            // Opposite directions one after the other never beat both at once.
            if (pairs && parts == 1 && sides == 1) continue;
            for (int split = 1; split <= kMaxSplit; ++split) {
              for (int stages : {8, 5, 4, 3}) {
                BulkLayout l =
                    make_bulk_layout(s, summed, demand, vectors, parts, sides, split, lanes, slices, stages);
                if (!l.valid || l.stages != stages) continue;
                if (!estimate(l, s, demand, static_cast<double>(all_lines))) continue;
                if (!best.valid || l.cost < best.cost) best = l;
              }
            }
          }
        }
      }
    }
  }
  return best;
}

inline bool same(const LineScanShape& p, const LineScanShape& q) {
  return p.dtype == q.dtype && p.batch == q.batch && p.channels == q.channels && p.height == q.height &&
         p.width == q.width && p.num_directions == q.num_directions &&
         std::equal(p.directions, p.directions + p.num_directions, q.directions);
}

// A call plans several times, and calls repeat.
inline BulkLayout bulk_plan(const LineScanShape& s, bool summed, const BulkDemand& demand) {
  struct Known {
    LineScanShape shape;
    bool summed = false;
    const BulkDemand* demand = nullptr;
    int device = -1;
    BulkLayout layout;
  };
  constexpr int kKnown = 16;
  static thread_local Known known[kKnown];
  static thread_local int oldest = 0;
  int device = 0;
  cudaGetDevice(&device);
  for (const Known& k : known) {
    if (k.device == device && k.summed == summed && k.demand == &demand && same(k.shape, s)) return k.layout;
  }
  Known& k = known[oldest];
  oldest = (oldest + 1) % kKnown;
  k = {s, summed, &demand, device, find_bulk_plan(s, summed, demand)};
  return k.layout;
}

}  // namespace cgspn::cuda
