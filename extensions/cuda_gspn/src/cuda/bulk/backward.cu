// Backward kernel for channels-last tensors on cards with bulk tensor copies; clusters, ring, producer warp and the sum
// over directions (of dx) as in forward.cu.
//
// Lines are walked from last to first. With g the gradient of the state, position j of a line sends w(j, k) g(j) to
// position j + k of the line before: through double-buffered shared memory inside a block, by st.async across block
// borders, one barrier a line. The state of the line before comes in a tile that holds the neighbouring blocks'
// border positions too. Weights, slopes and u dy of the next line are computed before the barrier.
// Traffic per element and direction: reads x, 3 logits, lam, u, dy, h; writes 3 da, dlam, du and the running dx.
//
// One affinity for all channels: a block holds all of them, the threads of a position add up their g h, and the first
// makes the gradients of the logits.
#include <algorithm>

#include "cuda/async.cuh"
#include "cuda/bulk/copies.cuh"
#include "cuda/bulk/backward.cuh"
#include "cuda/bulk/launch.cuh"
#include "cuda/bulk/plan.cuh"
#include "cuda/bulk/words.cuh"
#include "cuda/numerics.cuh"
#include "cuda/sum_parts.cuh"
#include "cuda/vector.cuh"

namespace cgspn::cuda {
namespace {

// Tiles of a stage behind the logits; the state with its borders comes last.
enum Tile { kLam = 0, kU, kX, kDy, kPartial, kState, kTiles = kState };

constexpr BulkDemand kDemand = {.tiles = kLogitTiles + kTiles,
                                .wide_tiles = 1,
                                .exchanged = 2,
                                .threads = {0, 0, 736, 0, 480, 0, 0, 0, 352},
                                .registers = {0, 0, 80, 0, 120, 0, 0, 0, 160},
                                .tensors = 11.0,
                                .fixed_us = {0, 0, 0.425, 0, 0.0489, 0, 0, 0, 0.534},
                                .warp_us = {0, 0, 0.0123, 0, 0.0609, 0, 0, 0, 0.0235},
                                .border_us = 0.471,
                                .load_us = 1.21,
                                .row_us = 2.05e-3,
                                .shared_us = 1e-3 / 31,
                                .serial = 0.12,
                                .byte_us = 1e-6 / 2.32,
                                .segment = {2.73, 2.99, 1.53},
                                .narrow_stores = 2.12,
                                .sharpness = 3.95};
constexpr BulkDemand kSharedDemand[2] = {shared_affinity_demand(kDemand, 2, true),
                                         shared_affinity_demand(kDemand, 4, true)};

struct Pass {
  CUtensorMap x, a, lam, u, dy, state, partial;
  char *dx, *da, *dlam, *du;
  const char* last_state;  // of the scan's last line, first position
  bool vertical, reversed, accumulate, has_lam, has_u;
  int lines, length, positions;
  int logits_at;  // of the direction in a position's shared logits, in bytes
};

// Strides in bytes. Passes are numbered [part][pass of the part][side].
struct Params {
  Pass passes[kMaxDirections];
  Strides state_stride, dx_stride, da_stride, dlam_stride, du_stride;
  int64_t da_k;
  unsigned* counters;  // zeroed, one a task; used with two sides
  int chunk;
  int groups, vectors, slices, parts, passes_per_part, sides, split, positions, stages;
  int logit_bytes;  // of a position, where all channels share them
};

// Adds the first channel's values of all threads of a position, and of all their channels, in a fixed order.
template <int N>
__device__ __forceinline__ void add_over_channels(float (&v)[3][N], int per_position) {
#pragma unroll
  for (int k = 0; k < 3; ++k) {
#pragma unroll
    for (int c = 1; c < N; ++c) v[k][0] += v[k][c];
    for (int apart = per_position / 2; apart > 0; apart /= 2) v[k][0] += __shfl_xor_sync(0xffffffffu, v[k][0], apart);
  }
}

template <typename T, int N, bool kNormalize, bool kCluster, bool kShared>
__global__ void __launch_bounds__(kDemand.threads[N] + 32, 1)
    bulk_backward_kernel(const __grid_constant__ Params p) {
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
  const BulkShared at(p.vectors, p.positions, p.stages, kLogits + kTiles, 1, exchange_bytes(p.positions, per_position, N, 2));
  const int row_bytes = p.vectors * 16;
  const uint32_t full = shared_at + at.barriers;      // [stage]
  const uint32_t all_sent = full + 8 * p.stages;          // [stage]: every warp has sent the line's messages
  const uint32_t late = all_sent + 8 * p.stages;          // partial sums of the lines in the ring when the sides meet
  const uint32_t borders = late + 8;                  // [side of the block][line parity]
  // Messages of two lines: [line parity][to the left, to the right][unit][sender with a border on either side][thread].
  const int slots = (p.positions + 2) * per_position;
  Unit* const messages = reinterpret_cast<Unit*>(shared + at.exchange);
  const int own_slot = (place + 1) * per_position + sub;
  const int way_bytes = kUnits * slots * sizeof(Unit);

  if (threadIdx.x == 0) {
    for (int s = 0; s < p.stages; ++s) {
      barrier_init(full + 8 * s);
      counting_barrier_init(all_sent + 8 * s, blockDim.x / 32 - 1);
    }
    for (int b = 0; b < 5; ++b) barrier_init(late + 8 * b);
    fence_barrier_init();
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
    // Messages from outside the line are 0.
    for (int i = threadIdx.x; i < 4 * kUnits * slots; i += blockDim.x) messages[i] = Unit();
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
      const auto line_of = [&](int step) { return pass.reversed ? step : lines - 1 - step; };
      const auto adds = [&](int step) { return pass.dx != nullptr && (step < middle ? accumulate : met); };
      const auto issue = [&](int step, int to_stage) {
        if (step >= lines || threadIdx.x % 32 != 0) return;
        if (!block_active) {  // keeps the stage's phase in step for passes in which the block has positions
          barrier_arrive(full + 8 * to_stage);
          return;
        }
        const uint32_t barrier = full + 8 * to_stage, logits_to = shared_at + to_stage * at.stage_bytes;
        const uint32_t to = logits_to + operands_at;
        const int line = line_of(step);
        const bool partial = adds(step), before = step + 1 < lines;
        barrier_expect(barrier, logit_bytes + (2 + pass.has_lam + pass.has_u + partial) * tile_bytes +
                                    (before ? tile_bytes + 2 * row_bytes : 0));
        if constexpr (kShared) {
          load_tile(logits_to, &pass.a, 0, first_position, line, image, barrier, kEvictFirst);
        } else {
          load_affinity_tile(logits_to, &pass.a, first_channel, first_position, line, image, barrier, kEvictFirst);
        }
        load_tile(to + kDy * at.tile, &pass.dy, first_channel, first_position, line, image, barrier, kEvictFirst);
        load_tile(to + kX * at.tile, &pass.x, first_channel, first_position, line, image, barrier, kEvictFirst);
        if (pass.has_lam) {
          load_tile(to + kLam * at.tile, &pass.lam, first_channel, first_position, line, image, barrier, kEvictFirst);
        }
        if (pass.has_u) {
          load_tile(to + kU * at.tile, &pass.u, first_channel, first_position, line, image, barrier, kEvictFirst);
        }
        if (before) {
          load_tile(to + kState * at.tile, &pass.state, first_channel, first_position - 1, line_of(step + 1), image,
                    barrier, kEvictFirst);
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
          if (issues && pass.dx != nullptr) {
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
      const uint32_t messages_at = shared_at + at.exchange;
      uint32_t left_peer = 0, left_peer_barrier = 0, right_peer = 0, right_peer_barrier = 0;
      if (from_left) {
        left_peer =
            peer_address(messages_at + ((pass.positions + 1) * per_position + sub) * static_cast<int>(sizeof(Unit)),
                         cluster_index - 1);
        left_peer_barrier = peer_address(borders + 16, cluster_index - 1);
      }
      if (from_right) {
        right_peer = peer_address(messages_at + way_bytes + sub * static_cast<int>(sizeof(Unit)), cluster_index + 1);
        right_peer_barrier = peer_address(borders, cluster_index + 1);
      }
      // Starts at the last line of the scan.
      const auto walk = [&](char* data, const Strides& s) -> Walker {
        if (data == nullptr) return {nullptr, 0};
        const int64_t stride = pass.vertical ? s.h : s.w;
        const int64_t first = pass.reversed ? 0 : (lines - 1) * stride;
        return {data + image * s.b + first + j * (pass.vertical ? s.w : s.h) + first_channel * int64_t{sizeof(T)} +
                    slice_bytes + sub * kBytes,
                pass.reversed ? stride : -stride};
      };
      Walker dx = walk(pass.dx, p.dx_stride), da = walk(pass.da, p.da_stride);
      if (kShared && da.at != nullptr) da.at -= sub * kBytes;
      Walker dlam = walk(pass.dlam, p.dlam_stride), du = walk(pass.du, p.du_stride);
      const float left_mask = has_left ? 1.0f : 0.0f, right_mask = has_right ? 1.0f : 0.0f;
      const auto adds = [&](int step) { return accumulate || step >= middle; };

      const unsigned char* const own = shared + operands_at + place * row_bytes + slice_bytes + sub * kBytes;
      const unsigned char* const own_logits =
          shared + (kShared ? place * p.logit_bytes + pass.logits_at
                            : place * 3 * row_bytes + slice_bytes + sub * kBytes);
      Words<kBytes> state_here = {};
      if (active && du.at != nullptr) {
        state_here = *reinterpret_cast<const Words<kBytes>*>(
            walk(const_cast<char*>(pass.last_state), p.state_stride).at);
      }

      // A neighbour outside the line gets weight 0, whatever is read in its place.
      const int neighbour_bytes = kShared ? sizeof(T) : row_bytes;
      const int logit_offset[3] = {has_left ? 0 : neighbour_bytes, neighbour_bytes,
                                   has_right ? 2 * neighbour_bytes : neighbour_bytes};
      // Weights, weights times slopes of the normalisation, and the local part of g.
      float w[3][kWeights], sloped[3][kWeights], g[N], kept_message[N];
      const auto prepare = [&](int from) {
        const unsigned char* const operands = own + from * at.stage_bytes;
        const unsigned char* const logits = own_logits + from * at.stage_bytes;
        float gate[N];
        unpack_words<T, N>(load_words<kBytes>(operands + kDy * at.tile), g);
        unpack_words<T, N>(load_words<kBytes>(operands + kU * at.tile), gate);
#pragma unroll
        for (int c = 0; c < N; ++c) g[c] *= gate[c];
        bool below = false;
        float logit[3][kWeights];
#pragma unroll
        for (int k = 0; k < 3; ++k) {
          if constexpr (kShared) {
            logit[k][0] = load_logit<T, false>(logits + logit_offset[k]);
            w[k][0] = load_logit<T, kNormalize>(logits + logit_offset[k]);
            below |= logit[k][0] < kLogitFloor;
          } else {
            const Words<kBytes> raw = load_words<kBytes>(logits + logit_offset[k]);
            Words<kBytes> clamped = raw;
            if constexpr (kNormalize) {
#pragma unroll
              for (int i = 0; i < kBytes / 4; ++i) {
                below |= word_below_floor<T>(raw.words[i]);
                clamped.words[i] = clamp_word<T>(raw.words[i]);
              }
            }
            unpack_words<T, N>(clamped, w[k]);
            unpack_words<T, N>(raw, logit[k]);
          }
        }
#pragma unroll
        for (int c = 0; c < kWeights; ++c) {
          if constexpr (kNormalize) {
            const float d0 = decay_clamped<T>(w[0][c]), d1 = decay_clamped<T>(w[1][c]), d2 = decay_clamped<T>(w[2][c]);
            const float e0 = fmaf(d0, left_mask, 1.0f), e1 = 1.0f + d1, e2 = fmaf(d2, right_mask, 1.0f);
            const float q = masked_weights<T>(e0, e1, e2, left_mask, right_mask, w[0][c], w[1][c], w[2][c]);
            // The sum of the sigmoids; sigmoid k is w_k times it, and its slope over itself exp(-a_k) times sigmoid k.
            const float sigmoids = reciprocal<T>(q * e1 * e2);
            sloped[0][c] = w[0][c] * (w[0][c] * sigmoids * d0);
            sloped[1][c] = w[1][c] * (w[1][c] * sigmoids * d1);
            sloped[2][c] = w[2][c] * (w[2][c] * sigmoids * d2);
          } else {
            w[0][c] = has_left ? w[0][c] : 0.0f;
            w[2][c] = has_right ? w[2][c] : 0.0f;
          }
        }
        if (kNormalize && below) {
#pragma unroll
          for (int k = 0; k < 3; ++k) {
#pragma unroll
            for (int c = 0; c < kWeights; ++c) sloped[k][c] = logit[k][c] < kLogitFloor ? 0.0f : sloped[k][c];
          }
        }
      };
      const auto arrived = [&](const RingPlace& line) { barrier_wait(full + 8 * line.stage, line.lap); };

      arrived(here);
      if (active) prepare(here.stage);
      RingPlace previous;
      int in_chunk = chunk > 0 ? (lines - 1) % chunk : lines - 1;
      for (int step = 0; step < lines; ++step, parity ^= 1) {
        if (meets && step == middle) {
          fence_bulk_copies();
          task_barrier(counter, ++meetings * p.sides * p.split);
          if (block_active && pass.dx != nullptr) {
            barrier_wait(late, late_phase);
            late_phase ^= 1;
          }
        }
        const Unit* const received = messages + (parity ^ 1) * 2 * kUnits * slots + own_slot;
        Unit* const sent = messages + parity * 2 * kUnits * slots + own_slot;
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
          if (step > 0 && in_chunk + 1 != chunk) {
#pragma unroll
            for (int q = 0; q < kUnits; ++q) {
              const Unit from_after = received[q * slots + per_position];
              const Unit from_before = received[(kUnits + q) * slots - per_position];
#pragma unroll
              for (int e = 0; e < kUnitLanes; ++e) {
                const int c = kUnitLanes * q + e;
                g[c] += kept_message[c] + (lane(from_after, e) + lane(from_before, e));
              }
            }
          }
#pragma unroll
          for (int q = 0; q < kUnits; ++q) {
            float to_left[kUnitLanes], to_right[kUnitLanes];
#pragma unroll
            for (int e = 0; e < kUnitLanes; ++e) {
              const int c = kUnitLanes * q + e;
              to_left[e] = w[0][kShared ? 0 : c] * g[c];
              to_right[e] = w[2][kShared ? 0 : c] * g[c];
            }
            const Unit left = as_unit(to_left, Unit()), right = as_unit(to_right, Unit());
            sent[q * slots] = left;
            sent[(kUnits + q) * slots] = right;
            if (kCluster && step + 1 < lines) {
              const uint32_t to = parity * 2 * way_bytes + q * slots * static_cast<int>(sizeof(Unit));
              if (from_left) send_async(left_peer + to, left, left_peer_barrier + 8 * parity);
              if (from_right) send_async(right_peer + to, right, right_peer_barrier + 8 * parity);
            }
          }
#pragma unroll
          for (int c = 0; c < N; ++c) kept_message[c] = w[1][kShared ? 0 : c] * g[c];
        }
        __syncwarp();
        if (threadIdx.x % 32 == 0) barrier_arrive(all_sent + 8 * previous.stage);
        float dw[3][N];
        if constexpr (kShared) {
          for (auto& of_neighbour : dw) {
            for (float& v : of_neighbour) v = 0.0f;
          }
        }
        const auto through_normalisation = [&](int c) {
          const float mean = fmaf(w[0][c], dw[0][c], fmaf(w[1][c], dw[1][c], w[2][c] * dw[2][c]));
#pragma unroll
          for (int k = 0; k < 3; ++k) dw[k][c] = sloped[k][c] * (dw[k][c] - mean);
        };
        if (active) {
          const unsigned char* const operands = own + previous.stage * at.stage_bytes;
          float v[N], out[N];
          if (dlam.at != nullptr) {
            unpack_words<T, N>(load_words<kBytes>(operands + kX * at.tile), v);
#pragma unroll
            for (int c = 0; c < N; ++c) out[c] = g[c] * v[c];
            store_words(const_cast<char*>(dlam.at), pack_words<T, N>(out), kEvictFirst);
            dlam.advance();
          }
          if (du.at != nullptr) {
            unpack_words<T, N>(load_words<kBytes>(operands + kDy * at.tile), v);
            unpack_words<T, N>(state_here, out);
#pragma unroll
            for (int c = 0; c < N; ++c) out[c] *= v[c];
            store_words(const_cast<char*>(du.at), pack_words<T, N>(out), kEvictFirst);
            du.advance();
          }
          if (dx.at != nullptr) {
            unpack_words<T, N>(load_words<kBytes>(operands + kLam * at.tile), out);
            if (adds(step)) {
              unpack_words<T, N>(load_words<kBytes>(operands + kPartial * at.tile), v);
#pragma unroll
              for (int c = 0; c < N; ++c) out[c] = fmaf(out[c], g[c], v[c]);
            } else {
#pragma unroll
              for (int c = 0; c < N; ++c) out[c] *= g[c];
            }
            store_words(const_cast<char*>(dx.at), pack_words<T, N>(out), kEvictLast);
            dx.advance();
          }
          // The tile of the states before begins one position to the left.
          const unsigned char* const before = operands + kState * at.tile;
          if (step + 1 < lines) state_here = load_words<kBytes>(before + row_bytes);
          if (da.at != nullptr) {
            if (in_chunk == 0) {
#pragma unroll
              for (int k = 0; k < 3; ++k) {
#pragma unroll
                for (int c = 0; c < N; ++c) dw[k][c] = 0.0f;
              }
            } else {
              unpack_words<T, N>(load_words<kBytes>(before), dw[0]);
              unpack_words<T, N>(state_here, dw[1]);
              unpack_words<T, N>(load_words<kBytes>(before + 2 * row_bytes), dw[2]);
#pragma unroll
              for (int c = 0; c < N; ++c) {
#pragma unroll
                for (int k = 0; k < 3; ++k) dw[k][c] *= g[c];
                if constexpr (!kNormalize) {
                  // NaN and inf times the zero outside the line are no gradient.
                  if (!has_left) dw[0][c] = 0.0f;
                  if (!has_right) dw[2][c] = 0.0f;
                } else if constexpr (!kShared) {
                  through_normalisation(c);
                }
              }
            }
            if constexpr (!kShared) {
              char* const to = const_cast<char*>(da.at);
#pragma unroll
              for (int k = 0; k < 3; ++k) store_words(to + k * p.da_k, pack_words<T, N>(dw[k]), kEvictFirst);
              da.advance();
            }
          }
        }
        if constexpr (kShared) {
          // Every lane of a warp takes part, those without a position too.
          if (pass.da != nullptr) add_over_channels(dw, per_position);
          if (active && da.at != nullptr) {
            if (kNormalize && in_chunk != 0) through_normalisation(0);
            char* const to = const_cast<char*>(da.at);
            if (sub == 0) {
#pragma unroll
              for (int k = 0; k < 3; ++k) *reinterpret_cast<T*>(to + k * p.da_k) = narrow<T>(dw[k][0]);
            }
            da.advance();
          }
        }
        // Threads without a position wait too: the loads of a line must not fall a lap behind.
        if (step + 1 < lines) {
          arrived(here);
          if (active) prepare(here.stage);
        }
        if (--in_chunk < 0) in_chunk = chunk - 1;
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

BulkLayout layout_of(const LineScanBackward& call) {
  return bulk_plan(call.shape, call.dx.data != nullptr,
                   shares_affinity(call.shape) ? kSharedDemand[call.shape.dtype == DType::kFloat32] : kDemand);
}

template <typename T>
cudaError_t run(const LineScanBackward& call, void* workspace, cudaStream_t stream, bool accumulate) {
  const LineScanShape& s = call.shape;
  const BulkLayout l = layout_of(call);
  constexpr int kBytes = sizeof(T);
  Params p;
  cudaError_t error = prepare_params(p, l, s, workspace, stream);
  if (error != cudaSuccess) return error;
  p.state_stride = byte_strides(call.state, kBytes);
  p.dx_stride = byte_strides(call.dx, kBytes);
  p.da_stride = byte_strides(call.da, kBytes);
  p.da_k = call.da.k * kBytes;
  p.dlam_stride = byte_strides(call.dlam, kBytes);
  p.du_stride = byte_strides(call.du, kBytes);
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
    const auto slot = [&](const auto& view) { return direction_data(view, i, kBytes); };
    Pass& pass = p.passes[n];
    const TileMaps maps = prepare_pass(pass, l, s, s.directions[i]);
    pass.accumulate = (accumulate && !l.scratch) || n % per_part >= l.sides;
    pass.has_lam = call.lam.data != nullptr;
    pass.has_u = call.u.data != nullptr;
    pass.logits_at = i * 3 * kBytes;
    pass.last_state = slot(call.state);
    pass.da = slot(call.da);
    pass.dlam = slot(call.dlam);
    pass.du = slot(call.du);
    pass.dx = static_cast<char*>(call.dx.data);
    if (l.scratch) pass.dx = scratch + n / per_part * tensor;
    encoded = encoded && maps.encode(&pass.x, call.x, call.x.data) &&
              (shared ? maps.encode_shared(&pass.a, call.a) : maps.encode(&pass.a, call.a, slot(call.a))) &&
              (!pass.has_lam || maps.encode(&pass.lam, call.lam, slot(call.lam))) &&
              (!pass.has_u || maps.encode(&pass.u, call.u, slot(call.u))) &&
              maps.encode(&pass.dy, call.dy, slot(call.dy)) &&
              maps.encode(&pass.state, call.state, slot(call.state), 2) &&
              (pass.dx == nullptr || maps.encode(&pass.partial, call.dx, pass.dx));
  }
  if (!encoded) return cudaErrorInvalidValue;
  error = launch_bulk<T>(p, l, s, stream, [=]<int N, bool kNormalize, bool kCluster, bool kShared>() {
    return bulk_backward_kernel<T, N, kNormalize, kCluster, kShared>;
  });
  if (error != cudaSuccess || !l.scratch) return error;
  return sum_parts<T>(scratch, call.dx.data, l.parts, tensor, stream, accumulate);
}

}  // namespace

bool bulk_backward_applies(const LineScanBackward& call) {
  const LineScanShape& s = call.shape;
  const int bytes = s.dtype == DType::kFloat32 ? 4 : 2;
  if (!(bulk_channels(s) && call.state.data != nullptr && tiled(call.x, s, bytes) && tiled_affinity(call.a, s, bytes) &&
        tiled(call.lam, s, bytes) && tiled(call.u, s, bytes) && tiled(call.dy, s, bytes) &&
        tiled(call.state, s, bytes) && tiled(call.dx, s, bytes) && (shares_affinity(s) || vectorised(call.da, bytes)) &&
        vectorised(call.dlam, bytes) && vectorised(call.du, bytes))) {
    return false;
  }
  const BulkLayout l = layout_of(call);
  return l.valid && (dense_channels_last(call.dx, s) || !l.scratch);
}

size_t bulk_backward_workspace(const LineScanBackward& call) { return layout_of(call).workspace(call.shape); }

cudaError_t bulk_backward(const LineScanBackward& call, void* workspace, cudaStream_t stream, bool accumulate) {
  return dispatch_bulk(call.shape.dtype, [&]<typename T>() { return run<T>(call, workspace, stream, accumulate); });
}

}  // namespace cgspn::cuda
