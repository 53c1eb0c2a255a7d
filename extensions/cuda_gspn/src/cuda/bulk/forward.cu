// Forward kernel for channels-last tensors on cards with bulk tensor copies (sm_90 and later).
//
// A cluster of `split` blocks owns whole lines of one image and of one group of channels (128 bytes where the channels
// allow); each block holds `positions` neighbouring positions of a line, each thread N channels of one position, its
// state in registers. The cluster scans the directions of its part one after the other.
//
// Per line: a producer warp loads the block's tiles of all operands into a ring of `stages` lines, one instruction an
// operand, the logits of the three neighbours in one tile; what is loaded is marked to leave L2 first, the output to
// stay. States go to the neighbours through double-buffered shared memory and across block borders by st.async into the
// peer's shared memory, counted by an mbarrier. Every warp arrives at the line's barrier once it has sent its states and
// waits there only before it reads the neighbours': the weights of the next line are computed in between. The same
// barrier frees the stage of the line before.
//
// Sum over directions: the first direction of a part writes its output, the later ones add to it. With two sides
// opposite directions run at once: each writes the lines it meets first, they wait for each other in the middle, then
// each adds to what the other wrote. One part writes y directly; several go to scratch and sum_parts adds them in order.
//
// One affinity for all channels: a tile holds the logits of all directions at its positions, and every thread makes the
// weights of its position once for all of its channels.
#include <algorithm>

#include "cuda/async.cuh"
#include "cuda/bulk/copies.cuh"
#include "cuda/bulk/forward.cuh"
#include "cuda/bulk/launch.cuh"
#include "cuda/bulk/plan.cuh"
#include "cuda/bulk/words.cuh"
#include "cuda/numerics.cuh"
#include "cuda/sum_parts.cuh"
#include "cuda/vector.cuh"

namespace cgspn::cuda {
namespace {

// Tiles of a stage behind the logits.
enum Tile { kLam = 0, kU, kX, kPartial, kTiles };

constexpr BulkDemand kDemand = {.tiles = kLogitTiles + kTiles,
                                .wide_tiles = 0,
                                .exchanged = 1,
                                .threads = {0, 0, 992, 0, 704, 0, 0, 0, 544},
                                .registers = {0, 0, 64, 0, 80, 0, 0, 0, 96},
                                .tensors = 5.5,
                                .fixed_us = {0, 0, 0.291, 0, 0.0412, 0, 0, 0, 0.353},
                                .warp_us = {0, 0, 0.0114, 0, 0.0726, 0, 0, 0, 0.0296},
                                .border_us = 0.206,
                                .load_us = 1.02,
                                .row_us = 0.647e-3,
                                .shared_us = 1e-3 / 121,
                                .serial = 0.197,
                                .byte_us = 1e-6 / 2.68,
                                .segment = {2.53, 1.73, 1.26},
                                .narrow_stores = 1.47,
                                .sharpness = 2.73};
constexpr BulkDemand shared_demand() {
  BulkDemand demand = shared_affinity_demand(kDemand, 2);
  demand.fixed_us[8] = 0.301;
  demand.warp_us[8] = 0.765e-2;
  demand.border_us = 0.0633;
  demand.load_us = 0;
  demand.row_us = 1.5e-5;
  demand.shared_us = 1e-3 / 131;
  demand.serial = 0.534;
  demand.byte_us = 1e-6 / 1.84;
  demand.segment[0] = 3.11;
  demand.segment[1] = 1.81;
  demand.segment[2] = 1.36;
  demand.sharpness = 1.98;
  return demand;
}
constexpr BulkDemand kSharedDemand[2] = {shared_demand(), shared_affinity_demand(kDemand, 4)};

struct Pass {
  CUtensorMap x, a, lam, u, partial;
  char *y, *state;
  bool vertical, reversed, accumulate, has_lam, has_u;
  int lines, length, positions;
  int logits_at;  // of the direction in a position's shared logits, in bytes
};

// Strides in bytes. Passes are numbered [part][pass of the part][side].
struct Params {
  Pass passes[kMaxDirections];
  Strides y_stride, state_stride;
  unsigned* counters;  // zeroed, one a task; used with two sides
  int chunk;
  int groups, vectors, slices, parts, passes_per_part, sides, split, positions, stages;
  int logit_bytes;  // of a position, where all channels share them
};

template <typename T, int N, bool kNormalize, bool kCluster, bool kShared>
__global__ void __launch_bounds__(kDemand.threads[N] + 32, 1)
    bulk_forward_kernel(const __grid_constant__ Params p) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  using Unit = Exchanged<N>;
  constexpr int kUnits = N * 4 / sizeof(Unit);
  constexpr int kUnitLanes = N / kUnits;
  constexpr int kBytes = N * sizeof(T);
  constexpr int kLogits = kShared ? shared_logit_tiles(sizeof(T)) : kLogitTiles;
  constexpr int kWeights = kShared ? 1 : N;
  extern __shared__ __align__(1024) unsigned char shared[];

  const bool producer = threadIdx.x >= blockDim.x - 32;
  const int per_position = p.vectors * 16 / kBytes / p.slices;
  const int sub = threadIdx.x % per_position, place = threadIdx.x / per_position;
  const uint32_t cluster_index = kCluster ? cluster_rank() : 0;
  const int rank = static_cast<int>(cluster_index);
  int task = blockIdx.x / p.split;
  const int side = task % p.sides;
  task /= p.sides;
  unsigned* const counter = p.counters + task;
  unsigned meetings = 0;
  const int part = task % p.parts;
  task /= p.parts;
  const int slice_bytes = task % p.slices * per_position * kBytes;
  task /= p.slices;
  const int first_channel = task % p.groups * p.vectors * kLanes<T>;
  const int image = task / p.groups;

  const uint32_t shared_at = shared_address(shared);
  const BulkShared at(p.vectors, p.positions, p.stages, kLogits + kTiles, 0, exchange_bytes(p.positions, per_position, N, 1));
  const int row_bytes = p.vectors * 16;
  const uint32_t full = shared_at + at.barriers;      // [stage]
  const uint32_t all_sent = full + 8 * p.stages;          // [stage]: every warp has sent the line's states
  const uint32_t late = all_sent + 8 * p.stages;          // partial sums of the lines in the ring when the sides meet
  const uint32_t borders = late + 8;                  // [side of the block][line parity]
  // States of two lines: [line parity][unit][position with a border on either side][thread of the position].
  const int slots = (p.positions + 2) * per_position;
  Unit* const states = reinterpret_cast<Unit*>(shared + at.exchange);
  const int own_slot = (place + 1) * per_position + sub;
  const int line_bytes = kUnits * slots * sizeof(Unit);

  if (threadIdx.x == 0) {
    for (int s = 0; s < p.stages; ++s) {
      barrier_init(full + 8 * s);
      counting_barrier_init(all_sent + 8 * s, blockDim.x / 32 - 1);
    }
    for (int b = 0; b < 5; ++b) barrier_init(late + 8 * b);
    fence_barrier_init();
    fence_bulk_copies();
  }
  const int operands_at = kLogits * at.tile;
  fill_absent_gates<T>(shared + operands_at, at, p.stages, p.positions * p.vectors,
                       p.passes[0].has_lam ? -1 : int{kLam}, p.passes[0].has_u ? -1 : int{kU});

  uint32_t left_phase = 0, right_phase = 0;  // one bit per line parity
  uint32_t late_phase = 0;
  int parity = 0;
  RingPlace here;

  for (int n = 0; n < p.passes_per_part; ++n) {
    if (n > 0) __syncthreads();
    const Pass& pass = p.passes[(part * p.passes_per_part + n) * p.sides + side];
    const int lines = pass.lines, stages = p.stages, chunk = p.chunk;
    const bool accumulate = pass.accumulate;
    const int first_position = rank * pass.positions;
    const int j = first_position + place;
    const bool active = !producer && place < pass.positions && j < pass.length;
    const bool block_active = first_position < pass.length;
    const bool has_left = j > 0, has_right = j + 1 < pass.length;
    // Borders and places beyond the line's end are read with weight 0 and must hold no NaN.
    for (int i = threadIdx.x; i < 2 * kUnits * slots; i += blockDim.x) states[i] = Unit();
    fence_bulk_copies();
    if constexpr (kCluster) {
      cluster_sync();
    } else {
      __syncthreads();
    }
    fence_bulk_copies();
    // With two sides the other one has met the lines from `middle` on before.
    const int middle = p.sides == 2 ? (lines + 1 - side) / 2 : lines;
    const bool meets = p.sides == 2;

    if (producer) {
      const bool issues = threadIdx.x % 32 == 0 && block_active;
      const int tile_bytes = pass.positions * row_bytes;
      const int logit_bytes = kShared ? pass.positions * p.logit_bytes : 3 * tile_bytes;
      bool met = false;
      const auto line_of = [&](int step) { return pass.reversed ? lines - 1 - step : step; };
      const auto adds = [&](int step) { return step < middle ? accumulate : met; };
      const auto issue = [&](int step, int to_stage) {
        if (step >= lines || threadIdx.x % 32 != 0) return;
        if (!block_active) {  // keeps the stage's phase in step for passes in which the block has positions
          barrier_arrive(full + 8 * to_stage);
          return;
        }
        const uint32_t barrier = full + 8 * to_stage, logits_to = shared_at + to_stage * at.stage_bytes;
        const uint32_t to = logits_to + operands_at;
        const int line = line_of(step);
        const bool partial = adds(step);
        barrier_expect(barrier, logit_bytes + (1 + pass.has_lam + pass.has_u + partial) * tile_bytes);
        if constexpr (kShared) {
          load_tile(logits_to, &pass.a, 0, first_position, line, image, barrier, kEvictFirst);
        } else {
          load_affinity_tile(logits_to, &pass.a, first_channel, first_position, line, image, barrier, kEvictFirst);
        }
        load_tile(to + kX * at.tile, &pass.x, first_channel, first_position, line, image, barrier, kEvictFirst);
        if (pass.has_lam) {
          load_tile(to + kLam * at.tile, &pass.lam, first_channel, first_position, line, image, barrier, kEvictFirst);
        }
        if (pass.has_u) {
          load_tile(to + kU * at.tile, &pass.u, first_channel, first_position, line, image, barrier, kEvictFirst);
        }
        if (partial) {
          load_tile(to + kPartial * at.tile, &pass.partial, first_channel, first_position, line, image, barrier,
                    kEvictFirst);
        }
      };
      RingPlace free = here;
      for (int s = 0; s < stages; ++s) {
        issue(s, free.stage);
        free.advance(stages);
      }
      for (int step = 0; step < lines; ++step) {
        if (meets && step == middle) {
          met = true;
          // What the other side has written is visible from here on; the lines already in the ring lack it.
          task_barrier(counter, ++meetings * p.sides * p.split);
          fence_bulk_copies();
          if (issues) {
            const int count = min(step > 0 ? stages - 1 : stages, lines - step);
            barrier_expect(late, count * tile_bytes);
            RingPlace at_line = here;
            for (int s = 0; s < count; ++s) {
              load_tile(shared_at + operands_at + at_line.stage * at.stage_bytes + kPartial * at.tile, &pass.partial,
                        first_channel, first_position, line_of(step + s), image, late, kEvictFirst);
              at_line.advance(stages);
            }
          }
        }
        // Once a line is sent the stage of the line before is free.
        barrier_wait(all_sent + 8 * here.stage, here.lap);
        if (step > 0) {
          issue(step - 1 + stages, free.stage);
          free.advance(stages);
        }
        here.advance(stages);
      }
    } else {
      const bool from_left = kCluster && active && place == 0 && has_left;
      const bool from_right = kCluster && active && place + 1 == pass.positions && has_right;
      const bool uses_left = block_active && rank > 0;
      const bool uses_right = first_position + pass.positions < pass.length;
      const uint32_t border_bytes = per_position * N * 4;
      // Where the neighbouring blocks expect our border, for line parity 0 and the first unit.
      const uint32_t states_at = shared_at + at.exchange;
      uint32_t left_peer = 0, left_peer_barrier = 0, right_peer = 0, right_peer_barrier = 0;
      if (from_left) {
        left_peer = peer_address(
            states_at + ((pass.positions + 1) * per_position + sub) * static_cast<int>(sizeof(Unit)), cluster_index - 1);
        left_peer_barrier = peer_address(borders + 16, cluster_index - 1);
      }
      if (from_right) {
        right_peer = peer_address(states_at + sub * static_cast<int>(sizeof(Unit)), cluster_index + 1);
        right_peer_barrier = peer_address(borders, cluster_index + 1);
      }
      const auto walk = [&](char* data, const Strides& s) -> Walker {
        if (data == nullptr) return {nullptr, 0};
        const int64_t stride = pass.vertical ? s.h : s.w;
        const int64_t first = pass.reversed ? (lines - 1) * stride : 0;
        return {data + image * s.b + first + j * (pass.vertical ? s.w : s.h) + first_channel * int64_t{sizeof(T)} +
                    slice_bytes + sub * kBytes,
                pass.reversed ? -stride : stride};
      };
      Walker y = walk(pass.y, p.y_stride), state = walk(pass.state, p.state_stride);
      const float left_mask = has_left ? 1.0f : 0.0f, right_mask = has_right ? 1.0f : 0.0f;
      const auto adds = [&](int step) { return accumulate || step >= middle; };

      const unsigned char* const own = shared + operands_at + place * row_bytes + slice_bytes + sub * kBytes;
      const unsigned char* const own_logits =
          shared + (kShared ? place * p.logit_bytes + pass.logits_at
                            : place * 3 * row_bytes + slice_bytes + sub * kBytes);
      // A neighbour outside the line gets weight 0, whatever is read in its place.
      const int neighbour_bytes = kShared ? sizeof(T) : row_bytes;
      const int logit_offset[3] = {has_left ? 0 : neighbour_bytes, neighbour_bytes,
                                   has_right ? 2 * neighbour_bytes : neighbour_bytes};
      float w[3][kWeights], input[N], h[N];
      const auto prepare = [&](int from) {
        const unsigned char* const operands = own + from * at.stage_bytes;
        const unsigned char* const logits = own_logits + from * at.stage_bytes;
        float lam_now[N];
        unpack_words<T, N>(load_words<kBytes>(operands + kX * at.tile), input);
        unpack_words<T, N>(load_words<kBytes>(operands + kLam * at.tile), lam_now);
#pragma unroll
        for (int c = 0; c < N; ++c) input[c] *= lam_now[c];
#pragma unroll
        for (int k = 0; k < 3; ++k) {
          if constexpr (kShared) {
            w[k][0] = load_logit<T, kNormalize>(logits + logit_offset[k]);
          } else {
            auto raw = load_words<kBytes>(logits + logit_offset[k]);
            if constexpr (kNormalize) {
#pragma unroll
              for (uint32_t& word : raw.words) word = clamp_word<T>(word);
            }
            unpack_words<T, N>(raw, w[k]);
          }
        }
#pragma unroll
        for (int c = 0; c < kWeights; ++c) {
          if constexpr (kNormalize) {
            const float e0 = fmaf(decay_clamped<T>(w[0][c]), left_mask, 1.0f);
            const float e1 = 1.0f + decay_clamped<T>(w[1][c]);
            const float e2 = fmaf(decay_clamped<T>(w[2][c]), right_mask, 1.0f);
            masked_weights<T>(e0, e1, e2, left_mask, right_mask, w[0][c], w[1][c], w[2][c]);
          } else {
            w[0][c] = has_left ? w[0][c] : 0.0f;
            w[2][c] = has_right ? w[2][c] : 0.0f;
          }
        }
      };
      const auto arrived = [&](const RingPlace& line) { barrier_wait(full + 8 * line.stage, line.lap); };

      arrived(here);
      if (active) prepare(here.stage);
      RingPlace previous;
      int in_chunk = 0;
      for (int step = 0; step < lines; ++step, parity ^= 1) {
        if (meets && step == middle) {
          fence_bulk_copies();
          task_barrier(counter, ++meetings * p.sides * p.split);
          if (block_active) {
            barrier_wait(late, late_phase);
            late_phase ^= 1;
          }
        }
        const Unit* const before = states + (parity ^ 1) * kUnits * slots + own_slot;
        Unit* const now = states + parity * kUnits * slots + own_slot;
        if (step > 0) barrier_wait(all_sent + 8 * previous.stage, previous.lap);
        if (kCluster && step > 0) {
          const int other = parity ^ 1;
          if (from_left) {
            const uint32_t barrier = borders + 8 * other;
            if (sub == 0) barrier_expect(barrier, border_bytes);
            barrier_wait(barrier, (left_phase >> other) & 1);
          }
          if (from_right) {
            const uint32_t barrier = borders + 16 + 8 * other;
            if (sub == 0) barrier_expect(barrier, border_bytes);
            barrier_wait(barrier, (right_phase >> other) & 1);
          }
          // Every thread keeps the phases: in the next pass another one may hold the border.
          if (uses_left) left_phase ^= 1u << other;
          if (uses_right) right_phase ^= 1u << other;
        }
        previous = here;
        here.advance(stages);
        if (active) {
          if (in_chunk == 0) {
#pragma unroll
            for (int c = 0; c < N; ++c) h[c] = input[c];
          } else {
#pragma unroll
            for (int q = 0; q < kUnits; ++q) {
              const Unit left = before[q * slots - per_position], right = before[q * slots + per_position];
#pragma unroll
              for (int e = 0; e < kUnitLanes; ++e) {
                const int c = kUnitLanes * q + e;
                const int v = kShared ? 0 : c;
                h[c] = fmaf(w[0][v], lane(left, e), fmaf(w[2][v], lane(right, e), fmaf(w[1][v], h[c], input[c])));
              }
            }
          }
#pragma unroll
          for (int q = 0; q < kUnits; ++q) {
            const Unit v = as_unit(h + kUnitLanes * q, Unit());
            now[q * slots] = v;
            if (kCluster && step + 1 < lines) {
              const uint32_t to = parity * line_bytes + q * slots * static_cast<int>(sizeof(Unit));
              if (from_left) send_async(left_peer + to, v, left_peer_barrier + 8 * parity);
              if (from_right) send_async(right_peer + to, v, right_peer_barrier + 8 * parity);
            }
          }
        }
        __syncwarp();
        if (threadIdx.x % 32 == 0) barrier_arrive(all_sent + 8 * previous.stage);
        if (active) {
          if (state.at != nullptr) {
            store_words(const_cast<char*>(state.at), pack_words<T, N>(h), kEvictFirst);
            state.advance();
          }
          if (y.at != nullptr) {
            float out[N];
            const unsigned char* const operands = own + previous.stage * at.stage_bytes;
            unpack_words<T, N>(load_words<kBytes>(operands + kU * at.tile), out);
            if (adds(step)) {
              float so_far[N];
              unpack_words<T, N>(load_words<kBytes>(operands + kPartial * at.tile), so_far);
  #pragma unroll
              for (int c = 0; c < N; ++c) out[c] = fmaf(out[c], h[c], so_far[c]);
            } else {
  #pragma unroll
              for (int c = 0; c < N; ++c) out[c] *= h[c];
            }
            store_words(const_cast<char*>(y.at), pack_words<T, N>(out), kEvictLast);
            y.advance();
          }
        }
        // Threads without a position wait too: the loads of a line must not fall a lap behind.
        if (step + 1 < lines) {
          arrived(here);
          if (active) prepare(here.stage);
        }
        if (++in_chunk == chunk) in_chunk = 0;
      }
    }
    fence_bulk_copies();
    // A single line leaves one side nothing to add, but the other side waits for it.
    if (meets && middle == lines) task_barrier(counter, ++meetings * p.sides * p.split);
    // The next pass adds to what both sides have written.
    if (p.sides == 2 && n + 1 < p.passes_per_part) task_barrier(counter, ++meetings * p.sides * p.split);
  }
  if constexpr (kCluster) cluster_sync();
#endif
}

BulkLayout layout_of(const LineScanForward& call) {
  // One layout with and without states, so that both give the same y.
  return bulk_plan(call.shape, call.sum && call.y.data != nullptr,
                   shares_affinity(call.shape) ? kSharedDemand[call.shape.dtype == DType::kFloat32] : kDemand);
}

template <typename T>
cudaError_t run(const LineScanForward& call, void* workspace, cudaStream_t stream) {
  const LineScanShape& s = call.shape;
  const BulkLayout l = layout_of(call);
  constexpr int kBytes = sizeof(T);
  Params p;
  cudaError_t error = prepare_params(p, l, s, workspace, stream);
  if (error != cudaSuccess) return error;
  p.y_stride = byte_strides(call.y, kBytes);
  p.state_stride = byte_strides(call.state, kBytes);
  const bool shared = shares_affinity(s);
  p.logit_bytes = shared_logit_bytes(s);
  const int64_t tensor = s.batch * s.height * s.width * s.channels * kBytes;
  char* const scratch = static_cast<char*>(workspace) + l.counter_bytes(s);
  const int per_part = s.num_directions / l.parts;
  int order[kMaxDirections];
  scan_order(s, l.sides, order);
  bool encoded = true;
  for (int n = 0; n < s.num_directions; ++n) {
    const int i = order[n];
    Pass& pass = p.passes[n];
    const TileMaps maps = prepare_pass(pass, l, s, s.directions[i]);
    pass.accumulate = call.sum && call.y.data != nullptr && n % per_part >= l.sides;
    pass.has_lam = call.lam.data != nullptr;
    pass.has_u = call.u.data != nullptr && call.y.data != nullptr;
    pass.state = direction_data(call.state, i, kBytes);
    pass.logits_at = i * 3 * kBytes;
    pass.y = call.sum ? static_cast<char*>(call.y.data) : direction_data(call.y, i, kBytes);
    if (l.scratch) pass.y = scratch + n / per_part * tensor;
    encoded = encoded && maps.encode(&pass.x, call.x, call.x.data) &&
              (shared ? maps.encode_shared(&pass.a, call.a)
                      : maps.encode(&pass.a, call.a, direction_data(call.a, i, kBytes))) &&
              (!pass.has_lam || maps.encode(&pass.lam, call.lam, direction_data(call.lam, i, kBytes))) &&
              (!pass.has_u || maps.encode(&pass.u, call.u, direction_data(call.u, i, kBytes))) &&
              (pass.y == nullptr || maps.encode(&pass.partial, call.y, pass.y));
  }
  if (!encoded) return cudaErrorInvalidValue;
  error = launch_bulk<T>(p, l, s, stream, [=]<int N, bool kNormalize, bool kCluster, bool kShared>() {
    return bulk_forward_kernel<T, N, kNormalize, kCluster, kShared>;
  });
  if (error != cudaSuccess || !l.scratch) return error;
  return sum_parts<T>(scratch, call.y.data, l.parts, tensor, stream);
}

}  // namespace

bool bulk_forward_applies(const LineScanForward& call) {
  const LineScanShape& s = call.shape;
  const int bytes = s.dtype == DType::kFloat32 ? 4 : 2;
  if (!(bulk_channels(s) && tiled(call.x, s, bytes) && tiled_affinity(call.a, s, bytes) &&
        tiled(call.lam, s, bytes) && tiled(call.u, s, bytes) && tiled(call.y, s, bytes) && vectorised(call.state, bytes))) {
    return false;
  }
  const BulkLayout l = layout_of(call);
  return l.valid && (dense_channels_last(call.y, s) || !l.scratch);
}

size_t bulk_forward_workspace(const LineScanForward& call) { return layout_of(call).workspace(call.shape); }

cudaError_t bulk_forward(const LineScanForward& call, void* workspace, cudaStream_t stream) {
  return dispatch_bulk(call.shape.dtype, [&]<typename T>() { return run<T>(call, workspace, stream); });
}

}  // namespace cgspn::cuda
