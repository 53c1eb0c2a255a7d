// Channels-last backward kernel; blocks, clusters, rings and the sum over directions (of dx) as in the forward kernel.
//
// Lines are walked from last to first. With g the gradient of the state, position j of a line sends w(j, k) g(j) to
// position j + k of the line before: through double-buffered shared memory inside a block, by st.async across block
// borders, one __syncthreads a line. The state of the line before is read from the neighbours' rings, at block borders
// from a copy of the peer's column. Weights, slopes and u dy of the next line are computed before the barrier.
// Traffic per element and direction: reads x, 3 logits, lam, u, dy, h; writes 3 da, dlam, du and the running dx.
#include <algorithm>

#include "async.cuh"
#include "channels_last_backward.cuh"
#include "channels_last_plan.cuh"
#include "numerics.cuh"
#include "sum_parts.cuh"
#include "vector.cuh"

namespace cgspn::cuda {
namespace {

constexpr int kStages = 4;
constexpr int kMaxThreads = 320;
enum Slot { kBefore, kHere, kAfter, kLam, kU, kX, kDy, kState, kPartial, kSlots };

struct Pass {
  const char *a, *lam, *u, *dy, *state;
  char *dx, *da, *dlam, *du;
  bool vertical, reversed, accumulate;
  int lines, length, positions;
};

// Strides in bytes. Passes are numbered [part][pass of the part][side] as in the forward kernel.
struct Params {
  const char* x;
  Strides x_stride, a_stride, lam_stride, u_stride, dy_stride, state_stride;
  Strides dx_stride, da_stride, dlam_stride, du_stride;
  int64_t a_k, da_k;
  int64_t chunk;
  unsigned* counters;  // zeroed, one a task; used with two sides
  int groups, vectors, parts, passes_per_part, sides, split, slots;
  Pass passes[kMaxDirections];
};

template <typename T, bool kNormalize, bool kCluster>
__global__ void __launch_bounds__(kMaxThreads, 1) channels_last_backward_kernel(const __grid_constant__ Params p) {
  constexpr int N = kLanes<T>;
  constexpr int kQuads = N / 4;
  extern __shared__ __align__(128) unsigned char shared[];

  const int threads = blockDim.x;
  const int vector = threadIdx.x % p.vectors, place = threadIdx.x / p.vectors;
  const uint32_t cluster_index = kCluster ? cluster_rank() : 0;
  const int rank = static_cast<int>(cluster_index);
  int task = blockIdx.x / p.split;
  const int side = task % p.sides;
  task /= p.sides;
  unsigned* const counter = p.counters + task;
  unsigned meetings = 0;
  const int part = task % p.parts;
  task /= p.parts;
  const int64_t channel_offset = (static_cast<int64_t>(task % p.groups) * p.vectors + vector) * 16;
  const int64_t image = task / p.groups;

  // Messages of two lines: [line parity][to the left, to the right][quad][sender with a border on either side][vector].
  const int way_bytes = kQuads * p.slots * 16;
  float4* const messages = reinterpret_cast<float4*>(shared);
  const uint32_t messages_at = shared_address(shared);
  const int own_slot = (place + 1) * p.vectors + vector;
  // The rings: [stage][warp][slot][lane], so that a slot is a constant offset.
  constexpr int kSlotBytes = 32 * 16;
  const auto in_ring = [](int thread) { return thread / 32 * kSlots * kSlotBytes + thread % 32 * 16; };
  const int ring_begin = 4 * way_bytes + in_ring(threadIdx.x);
  // States of the peers' border positions: [stage][left, right][vector].
  const int border_at = 4 * way_bytes + kStages * kSlots * threads * 16;
  const int border_stage_bytes = 2 * p.vectors * 16;
  const int barriers_at = border_at + kStages * border_stage_bytes;
  const uint32_t barriers = messages_at + barriers_at;
  const int stage_bytes = kSlots * threads * 16;
  const int ring_end = ring_begin + kStages * stage_bytes;
  const int left_thread = 4 * way_bytes + in_ring(threadIdx.x - p.vectors) - ring_begin;
  const int right_thread = 4 * way_bytes + in_ring(threadIdx.x + p.vectors) - ring_begin;

  if constexpr (kCluster) {
    if (threadIdx.x < 4) barrier_init(barriers + 8 * threadIdx.x);
    fence_barrier_init();
  }
  const auto next_stage = [&](int stage) { return stage + stage_bytes == ring_end ? ring_begin : stage + stage_bytes; };
  constexpr uint64_t streamed = kEvictFirst, kept = kEvictLast;
  uint32_t left_phase = 0, right_phase = 0;
  int parity = 0;

  for (int n = 0; n < p.passes_per_part; ++n) {
    const Pass& pass = p.passes[(part * p.passes_per_part + n) * p.sides + side];
    const int lines = pass.lines;
    const int j = rank * pass.positions + place;
    const bool active = place < pass.positions && j < pass.length;
    const bool has_left = j > 0, has_right = j + 1 < pass.length;
    // Messages from outside the line are 0.
    for (int i = threadIdx.x; i < 4 * kQuads * p.slots; i += threads) messages[i] = make_float4(0, 0, 0, 0);
    if constexpr (kCluster) {
      cluster_sync();
    } else {
      __syncthreads();
    }
    const bool from_left = kCluster && active && place == 0 && has_left;
    const bool from_right = kCluster && active && place + 1 == pass.positions && has_right;
    const uint32_t border_bytes = p.vectors * kQuads * 16;
    uint32_t left_peer = 0, left_peer_barrier = 0, right_peer = 0, right_peer_barrier = 0;
    if (from_left) {
      left_peer = peer_address(messages_at + ((pass.positions + 1) * p.vectors + vector) * 16, cluster_index - 1);
      left_peer_barrier = peer_address(barriers + 16, cluster_index - 1);
    }
    if (from_right) {
      right_peer = peer_address(messages_at + way_bytes + vector * 16, cluster_index + 1);
      right_peer_barrier = peer_address(barriers, cluster_index + 1);
    }

    // Starts at the last line of the scan.
    const auto walk = [&](const char* data, const Strides& s) -> Walker {
      const int64_t stride = pass.vertical ? s.h : s.w;
      const int64_t first = pass.reversed ? 0 : (lines - 1) * stride;
      return {data + image * s.b + first + j * (pass.vertical ? s.w : s.h) + channel_offset,
              pass.reversed ? stride : -stride};
    };
    const auto walk_output = [&](char* data, const Strides& s) -> Walker {
      return data != nullptr ? walk(data, s) : Walker{nullptr, 0};
    };
    Walker a = walk(pass.a, p.a_stride), x = walk(p.x, p.x_stride), dy = walk(pass.dy, p.dy_stride);
    Walker lam = pass.lam != nullptr ? walk(pass.lam, p.lam_stride) : Walker{ones<T>(), 0};
    Walker u = pass.u != nullptr ? walk(pass.u, p.u_stride) : Walker{ones<T>(), 0};
    Walker state = walk(pass.state, p.state_stride);
    Walker dx = walk_output(pass.dx, p.dx_stride), da = walk_output(pass.da, p.da_stride);
    Walker dlam = walk_output(pass.dlam, p.dlam_stride), du = walk_output(pass.du, p.du_stride);
    Walker partial = dx;
    const int64_t before_offset = has_left ? 0 : p.a_k, after_offset = has_right ? 2 * p.a_k : p.a_k;
    const float left_mask = has_left ? 1.0f : 0.0f, right_mask = has_right ? 1.0f : 0.0f;
    const int64_t state_position = pass.vertical ? p.state_stride.w : p.state_stride.h;
    // With two sides the other one has met the lines from `middle` on before.
    const int middle = p.sides == 2 ? (lines + 1 - side) / 2 : lines;
    const bool meets = p.sides == 2 && pass.dx != nullptr;
    bool met = false;
    const auto adds = [&](int step) { return pass.dx != nullptr && (pass.accumulate || step >= middle); };

    uint4 state_here = make_uint4(0, 0, 0, 0);
    if (active) state_here = __ldcg(reinterpret_cast<const uint4*>(state.at));

    int to_fetch = active ? lines : 0, fetched = 0;
    int fetch_stage = ring_begin, fetch_border = 0;
    const auto fetch = [&] {
      if (to_fetch > 0) {
        --to_fetch;
        const uint32_t to = messages_at + fetch_stage;
        copy_async(to + kBefore * kSlotBytes, a.at + before_offset);
        copy_async(to + kHere * kSlotBytes, a.at + p.a_k);
        copy_async(to + kAfter * kSlotBytes, a.at + after_offset);
        copy_async(to + kLam * kSlotBytes, lam.at);
        copy_async(to + kU * kSlotBytes, u.at);
        if (vector % 8 == 0) keep_in_l2(x.at);
        copy_async(to + kX * kSlotBytes, x.at);
        if (vector % 8 == 0) keep_in_l2(dy.at);
        copy_async(to + kDy * kSlotBytes, dy.at);
        if (fetched < middle ? pass.accumulate && pass.dx != nullptr : met) copy_async(to + kPartial * kSlotBytes, partial.at);
        a.advance();
        lam.advance();
        u.advance();
        x.advance();
        dy.advance();
        partial.advance();
        if (to_fetch > 0) {
          state.advance();
          copy_async(to + kState * kSlotBytes, state.at);
          const uint32_t border = messages_at + border_at + fetch_border + vector * 16;
          if (from_left) copy_async(border, state.at - state_position);
          if (from_right) copy_async(border + p.vectors * 16, state.at + state_position);
        }
      }
      ++fetched;
      fetch_stage = next_stage(fetch_stage);
      fetch_border = fetch_border == (kStages - 1) * border_stage_bytes ? 0 : fetch_border + border_stage_bytes;
      commit_copies();
    };
    const auto read = [&](int stage, int slot) {
      return *reinterpret_cast<const uint4*>(shared + stage + slot * kSlotBytes);
    };

    // Weights, weights times slopes of the normalisation, and the local part of g.
    float w[3][N], sloped[3][N], g[N], kept_message[N];
    const auto prepare = [&](int stage) {
      float gate[N];
      unpack<T>(read(stage, kDy), g);
      unpack<T>(read(stage, kU), gate);
#pragma unroll
      for (int c = 0; c < N; ++c) g[c] *= gate[c];
      const uint4 raw[3] = {read(stage, kBefore), read(stage, kHere), read(stage, kAfter)};
      if constexpr (kNormalize) {
#pragma unroll
        for (int k = 0; k < 3; ++k) unpack<T>(clamp_logits<T>(raw[k]), w[k]);
#pragma unroll
        for (int c = 0; c < N; ++c) {
          const float d0 = decay_clamped<T>(w[0][c]), d1 = decay_clamped<T>(w[1][c]), d2 = decay_clamped<T>(w[2][c]);
          const float e0 = fmaf(d0, left_mask, 1.0f), e1 = 1.0f + d1, e2 = fmaf(d2, right_mask, 1.0f);
          const float q = masked_weights<T>(e0, e1, e2, left_mask, right_mask, w[0][c], w[1][c], w[2][c]);
          // The sum of the sigmoids; sigmoid k is w_k times it, and its slope over itself exp(-a_k) times sigmoid k.
          const float sigmoids = reciprocal<T>(q * e1 * e2);
          sloped[0][c] = w[0][c] * (w[0][c] * sigmoids * d0);
          sloped[1][c] = w[1][c] * (w[1][c] * sigmoids * d1);
          sloped[2][c] = w[2][c] * (w[2][c] * sigmoids * d2);
        }
        bool below = false;
#pragma unroll
        for (int k = 0; k < 3; ++k) below |= any_below_floor<T>(raw[k]);
        if (below) {
#pragma unroll
          for (int k = 0; k < 3; ++k) {
            float logits[N];
            unpack<T>(raw[k], logits);
#pragma unroll
            for (int c = 0; c < N; ++c) sloped[k][c] = logits[c] < kLogitFloor ? 0.0f : sloped[k][c];
          }
        }
      } else {
#pragma unroll
        for (int k = 0; k < 3; ++k) unpack<T>(raw[k], w[k]);
#pragma unroll
        for (int c = 0; c < N; ++c) {
          w[0][c] = has_left ? w[0][c] : 0.0f;
          w[2][c] = has_right ? w[2][c] : 0.0f;
        }
      }
    };

#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) fetch();
    wait_copies<kStages - 2>();
    if (active) prepare(ring_begin);
    __syncthreads();
    int stage = ring_begin, border_stage = 0;
    int64_t in_chunk = p.chunk > 0 ? (lines - 1) % p.chunk : lines - 1;
    for (int step = 0; step < lines; ++step, parity ^= 1) {
      if (meets && step == middle) {
        met = true;
        // What the other side has written is visible from here on; the lines already in the ring lack it.
        task_barrier(counter, ++meetings * p.sides * p.split);
        if (active) {
          int late_stage = stage;
          const char* late = dx.at;
          for (int s = step; s < fetched && s < lines; ++s, late += dx.stride) {
            copy_async(messages_at + late_stage + kPartial * kSlotBytes, late);
            late_stage = next_stage(late_stage);
          }
        }
        commit_copies();
        wait_copies<0>();
      }
      const float4* const received = messages + (parity ^ 1) * 2 * kQuads * p.slots + own_slot;
      float4* const sent = messages + parity * 2 * kQuads * p.slots + own_slot;
      if (kCluster && step > 0) {
        if (from_left) {
          const uint32_t barrier = barriers + 8 * (parity ^ 1);
          if (vector == 0) barrier_expect(barrier, border_bytes);
          barrier_wait(barrier, (left_phase >> (parity ^ 1)) & 1);
          left_phase ^= 2u >> parity;
        }
        if (from_right) {
          const uint32_t barrier = barriers + 16 + 8 * (parity ^ 1);
          if (vector == 0) barrier_expect(barrier, border_bytes);
          barrier_wait(barrier, (right_phase >> (parity ^ 1)) & 1);
          right_phase ^= 2u >> parity;
        }
      }
      if (active) {
        if (step > 0 && in_chunk + 1 != p.chunk) {
#pragma unroll
          for (int q = 0; q < kQuads; ++q) {
            const float4 from_after = received[q * p.slots + p.vectors];
            const float4 from_before = received[(kQuads + q) * p.slots - p.vectors];
            const float l[4] = {from_after.x, from_after.y, from_after.z, from_after.w};
            const float r[4] = {from_before.x, from_before.y, from_before.z, from_before.w};
#pragma unroll
            for (int e = 0; e < 4; ++e) g[4 * q + e] += kept_message[4 * q + e] + (l[e] + r[e]);
          }
        }
#pragma unroll
        for (int q = 0; q < kQuads; ++q) {
          const int c = 4 * q;
          const float4 left = make_float4(w[0][c] * g[c], w[0][c + 1] * g[c + 1], w[0][c + 2] * g[c + 2], w[0][c + 3] * g[c + 3]);
          const float4 right = make_float4(w[2][c] * g[c], w[2][c + 1] * g[c + 1], w[2][c + 2] * g[c + 2], w[2][c + 3] * g[c + 3]);
          sent[q * p.slots] = left;
          sent[(kQuads + q) * p.slots] = right;
          if (kCluster && step + 1 < lines) {
            const uint32_t at = parity * 2 * way_bytes + q * p.slots * 16;
            if (from_left) send_async(left_peer + at, left, left_peer_barrier + 8 * parity);
            if (from_right) send_async(right_peer + at, right, right_peer_barrier + 8 * parity);
          }
        }
#pragma unroll
        for (int c = 0; c < N; ++c) kept_message[c] = w[1][c] * g[c];
      }
      fetch();
      if (active) {
        float v[N], out[N];
        if (dlam.at != nullptr) {
          unpack<T>(read(stage, kX), v);
#pragma unroll
          for (int c = 0; c < N; ++c) out[c] = g[c] * v[c];
          store_global(const_cast<char*>(dlam.at), pack<T>(out), streamed);
          dlam.advance();
        }
        if (du.at != nullptr) {
          unpack<T>(read(stage, kDy), v);
          unpack<T>(state_here, out);
#pragma unroll
          for (int c = 0; c < N; ++c) out[c] *= v[c];
          store_global(const_cast<char*>(du.at), pack<T>(out), streamed);
          du.advance();
        }
        if (dx.at != nullptr) {
          unpack<T>(read(stage, kLam), out);
          if (adds(step)) {
            unpack<T>(read(stage, kPartial), v);
#pragma unroll
            for (int c = 0; c < N; ++c) out[c] = fmaf(out[c], g[c], v[c]);
          } else {
#pragma unroll
            for (int c = 0; c < N; ++c) out[c] *= g[c];
          }
          store_global(const_cast<char*>(dx.at), pack<T>(out), kept);
          dx.advance();
        }
        const uint4 zero = make_uint4(0, 0, 0, 0);
        if (step + 1 < lines) state_here = read(stage, kState);
        if (da.at != nullptr) {
          char* const to = const_cast<char*>(da.at);
          if (in_chunk == 0) {
            store_global(to, zero, streamed);
            store_global(to + p.da_k, zero, streamed);
            store_global(to + 2 * p.da_k, zero, streamed);
          } else {
            const auto neighbour = [&](bool exists, bool outside, int border, int offset) {
              if (!exists) return zero;
              return *reinterpret_cast<const uint4*>(
                  outside ? shared + border_at + border_stage + (border * p.vectors + vector) * 16
                          : shared + stage + kState * kSlotBytes + offset);
            };
            float dw[3][N];
            unpack<T>(neighbour(has_left, place == 0, 0, left_thread), dw[0]);
            unpack<T>(state_here, dw[1]);
            unpack<T>(neighbour(has_right, place + 1 == pass.positions, 1, right_thread), dw[2]);
#pragma unroll
            for (int c = 0; c < N; ++c) {
#pragma unroll
              for (int k = 0; k < 3; ++k) dw[k][c] *= g[c];
              if constexpr (kNormalize) {
                const float mean = fmaf(w[0][c], dw[0][c], fmaf(w[1][c], dw[1][c], w[2][c] * dw[2][c]));
#pragma unroll
                for (int k = 0; k < 3; ++k) dw[k][c] = sloped[k][c] * (dw[k][c] - mean);
              }
            }
            store_global(to, pack<T>(dw[0]), streamed);
            store_global(to + p.da_k, pack<T>(dw[1]), streamed);
            store_global(to + 2 * p.da_k, pack<T>(dw[2]), streamed);
          }
          da.advance();
        }
      }
      if (--in_chunk < 0) in_chunk = p.chunk - 1;
      stage = next_stage(stage);
      border_stage = border_stage == (kStages - 1) * border_stage_bytes ? 0 : border_stage + border_stage_bytes;
      wait_copies<kStages - 2>();
      if (active && step + 1 < lines) prepare(stage);
      __syncthreads();
    }
    // A single line leaves one side nothing to add, but the other side waits for it.
    if (meets && middle == lines) task_barrier(counter, ++meetings * p.sides * p.split);
    // The next pass adds to what both sides have written.
    if (p.sides == 2 && n + 1 < p.passes_per_part) task_barrier(counter, ++meetings * p.sides * p.split);
  }
  if constexpr (kCluster) cluster_sync();
}

Layout layout_of(const LineScanBackward& call) {
  return plan(call.shape, {kMaxThreads, kStages, kSlots, 4, 2, call.dx.data != nullptr, 11.0, 0.9, 0.06});
}

template <typename T, bool kNormalize, bool kCluster>
cudaError_t launch(const Params& p, const Layout& l, const LineScanShape& s, cudaStream_t stream) {
  const auto kernel = channels_last_backward_kernel<T, kNormalize, kCluster>;
  return launch_clusters(kernel, p, l.blocks(s), l.threads, l.shared, l.split, stream);
}

template <typename T>
cudaError_t run(const LineScanBackward& call, void* workspace, cudaStream_t stream) {
  const LineScanShape& s = call.shape;
  const Layout l = layout_of(call);
  const int64_t bytes = sizeof(T);
  Params p;
  p.x = static_cast<const char*>(call.x.data);
  p.x_stride = byte_strides(call.x, bytes);
  p.a_stride = byte_strides(call.a, bytes);
  p.a_k = call.a.k * bytes;
  p.lam_stride = byte_strides(call.lam, bytes);
  p.u_stride = byte_strides(call.u, bytes);
  p.dy_stride = byte_strides(call.dy, bytes);
  p.state_stride = byte_strides(call.state, bytes);
  p.dx_stride = byte_strides(call.dx, bytes);
  p.da_stride = byte_strides(call.da, bytes);
  p.da_k = call.da.k * bytes;
  p.dlam_stride = byte_strides(call.dlam, bytes);
  p.du_stride = byte_strides(call.du, bytes);
  const int64_t tensor = s.batch * s.height * s.width * s.channels * bytes;
  const int per_part = s.num_directions / l.parts;
  p.chunk = s.chunk;
  p.counters = static_cast<unsigned*>(workspace);
  char* const scratch = static_cast<char*>(workspace) + l.counter_bytes(s);
  if (l.sides == 2) {
    const cudaError_t error = cudaMemsetAsync(p.counters, 0, l.counter_bytes(s), stream);
    if (error != cudaSuccess) return error;
  }
  p.groups = l.groups;
  p.vectors = l.vectors;
  p.parts = l.parts;
  p.passes_per_part = per_part / l.sides;
  p.sides = l.sides;
  p.split = l.split;
  p.slots = l.slots;
  const auto slot = [&](const auto& view, int i) {
    return view.data == nullptr ? nullptr : static_cast<char*>(view.data) + i * view.d * bytes;
  };
  int order[kMaxDirections];
  scan_order(s, l.sides, order);
  for (int n = 0; n < s.num_directions; ++n) {
    const int i = order[n];
    const Direction d = s.directions[i];
    Pass& pass = p.passes[n];
    pass.a = slot(call.a, i);
    pass.lam = slot(call.lam, i);
    pass.u = slot(call.u, i);
    pass.dy = slot(call.dy, i);
    pass.state = slot(call.state, i);
    pass.da = slot(call.da, i);
    pass.dlam = slot(call.dlam, i);
    pass.du = slot(call.du, i);
    pass.dx = static_cast<char*>(call.dx.data);
    if (l.scratch) pass.dx = scratch + n / per_part * tensor;
    pass.vertical = is_vertical(d);
    pass.reversed = is_reversed(d);
    pass.accumulate = n % per_part >= l.sides;
    pass.lines = static_cast<int>(num_lines(s, d));
    pass.length = static_cast<int>(line_length(s, d));
    pass.positions = (pass.length + l.split - 1) / l.split;
  }
  const bool clustered = l.split > 1;
  const cudaError_t error =
      s.normalize ? (clustered ? launch<T, true, true>(p, l, s, stream) : launch<T, true, false>(p, l, s, stream))
                  : (clustered ? launch<T, false, true>(p, l, s, stream) : launch<T, false, false>(p, l, s, stream));
  if (error != cudaSuccess || !l.scratch) return error;
  return sum_parts<T>(scratch, call.dx.data, l.parts, tensor, stream);
}

}  // namespace

bool channels_last_backward_applies(const LineScanBackward& call) {
  const LineScanShape& s = call.shape;
  if (s.dtype == DType::kFloat64 || s.affinity_channels != s.channels || call.state.data == nullptr) return false;
  const int bytes = s.dtype == DType::kFloat32 ? 4 : 2;
  if (s.channels * bytes % 16 != 0) return false;
  if (!(vectorised(call.x, bytes) && vectorised(call.a, bytes) && vectorised(call.lam, bytes) &&
        vectorised(call.u, bytes) && vectorised(call.dy, bytes) && vectorised(call.state, bytes) &&
        vectorised(call.dx, bytes) && vectorised(call.da, bytes) && vectorised(call.dlam, bytes) &&
        vectorised(call.du, bytes))) {
    return false;
  }
  if (s.height > 1 << 20 || s.width > 1 << 20) return false;
  const Layout l = layout_of(call);
  const bool dense =
      call.dx.w == s.channels && call.dx.h == s.channels * s.width && call.dx.b == call.dx.h * s.height;
  return l.valid && (dense || !l.scratch);
}

size_t channels_last_backward_workspace(const LineScanBackward& call) { return layout_of(call).workspace(call.shape); }

cudaError_t channels_last_backward(const LineScanBackward& call, void* workspace, cudaStream_t stream) {
  switch (call.shape.dtype) {
    case DType::kFloat16:
      return run<__half>(call, workspace, stream);
    case DType::kBFloat16:
      return run<__nv_bfloat16>(call, workspace, stream);
    case DType::kFloat32:
      return run<float>(call, workspace, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace cgspn::cuda
