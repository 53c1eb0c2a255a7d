// Channels-last forward kernel.
//
// A cluster of `split` blocks owns whole lines of one image and of one group of channels (128 bytes where the channels
// allow); each block holds `positions` neighbouring positions of a line, each thread 16 bytes of channels of one
// position, its state in registers. The cluster scans the directions of its part one after the other.
//
// Per line: every thread feeds itself through a private ring of asynchronous copies kStages deep; states go to the
// neighbours through double-buffered shared memory (one __syncthreads a line) and across block borders by st.async into
// the peer's shared memory, counted by an mbarrier. The weights of the next line are computed between sending the
// state and the barrier, so that neither exchange is waited for.
//
// Sum over directions: the first direction of a part writes its output, the later ones add to it (for opposite
// directions the same thread, most recent line first, so much of it is still in L2). One part writes y directly;
// several parts go to scratch and sum_parts adds them in order.
#include <algorithm>

#include "async.cuh"
#include "channels_last_forward.cuh"
#include "channels_last_plan.cuh"
#include "dispatch.cuh"
#include "numerics.cuh"
#include "sum_parts.cuh"
#include "vector.cuh"

namespace cgspn::cuda {
namespace {

constexpr int kStages = 4;
constexpr int kMaxThreads = 384;
enum Slot { kBefore, kHere, kAfter, kLam, kX, kU, kPartial, kSlots };

struct Pass {
  const char *a, *lam, *u;
  char *y, *state;
  bool vertical, reversed, accumulate;
  int lines, length, positions;
};

// Strides in bytes. Passes are numbered [part][pass of the part][side]: with two sides the cluster's halves scan
// opposite directions at once, each writing the lines it meets first and adding to those the other has written.
struct Params {
  const char* x;
  Strides x_stride, a_stride, lam_stride, u_stride, y_stride, state_stride;
  int64_t a_k;
  int64_t chunk;
  unsigned* counters;  // zeroed, one a task; used with two sides
  int groups, vectors, parts, passes_per_part, sides, split, slots;
  Pass passes[kMaxDirections];
};

template <typename T, bool kNormalize, bool kCluster>
__global__ void __launch_bounds__(kMaxThreads, 1) channels_last_forward_kernel(const __grid_constant__ Params p) {
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

  // States of two lines: [line parity][quad of channels][position with a border on either side][vector].
  const int state_bytes = kQuads * p.slots * 16;  // of one line
  float4* const states = reinterpret_cast<float4*>(shared);
  const uint32_t states_at = shared_address(shared);
  const int own_slot = (place + 1) * p.vectors + vector;
  // The rings: [stage][warp][slot][lane], so that a slot is a constant offset.
  constexpr int kSlotBytes = 32 * 16;
  const auto in_ring = [](int thread) { return thread / 32 * kSlots * kSlotBytes + thread % 32 * 16; };
  const int ring_begin = 2 * state_bytes + in_ring(threadIdx.x);
  const int ring_bytes = kStages * kSlots * threads * 16;
  const int barriers_at = 2 * state_bytes + ring_bytes;
  const uint32_t barriers = states_at + barriers_at;  // [side of the block][line parity]
  const int stage_bytes = kSlots * threads * 16;
  const int ring_end = ring_begin + kStages * stage_bytes;

  if constexpr (kCluster) {
    if (threadIdx.x < 4) barrier_init(barriers + 8 * threadIdx.x);
    fence_barrier_init();
  }
  const auto next_stage = [&](int stage) { return stage + stage_bytes == ring_end ? ring_begin : stage + stage_bytes; };
  constexpr uint64_t streamed = kEvictFirst, kept = kEvictLast;
  uint32_t left_phase = 0, right_phase = 0;  // one bit per line parity
  int parity = 0;

  for (int n = 0; n < p.passes_per_part; ++n) {
    const Pass& pass = p.passes[(part * p.passes_per_part + n) * p.sides + side];
    const int lines = pass.lines;
    const int j = rank * pass.positions + place;
    const bool active = place < pass.positions && j < pass.length;
    const bool has_left = j > 0, has_right = j + 1 < pass.length;
    // Borders and places beyond the line's end are read with weight 0 and must hold no NaN.
    for (int i = threadIdx.x; i < 2 * kQuads * p.slots; i += threads) states[i] = make_float4(0, 0, 0, 0);
    if constexpr (kCluster) {
      cluster_sync();
    } else {
      __syncthreads();
    }
    const bool from_left = kCluster && active && place == 0 && has_left;
    const bool from_right = kCluster && active && place + 1 == pass.positions && has_right;
    const uint32_t border_bytes = p.vectors * kQuads * 16;
    // Where the neighbouring blocks expect our border, for line parity 0 and the first quad.
    uint32_t left_peer = 0, left_peer_barrier = 0, right_peer = 0, right_peer_barrier = 0;
    if (from_left) {
      left_peer = peer_address(states_at + ((pass.positions + 1) * p.vectors + vector) * 16, cluster_index - 1);
      left_peer_barrier = peer_address(barriers + 16, cluster_index - 1);
    }
    if (from_right) {
      right_peer = peer_address(states_at + vector * 16, cluster_index + 1);
      right_peer_barrier = peer_address(barriers, cluster_index + 1);
    }

    const auto walk = [&](const char* data, const Strides& s) -> Walker {
      const int64_t stride = pass.vertical ? s.h : s.w;
      const int64_t first = pass.reversed ? (lines - 1) * stride : 0;
      return {data + image * s.b + first + j * (pass.vertical ? s.w : s.h) + channel_offset,
              pass.reversed ? -stride : stride};
    };
    Walker a = walk(pass.a, p.a_stride), x = walk(p.x, p.x_stride), y = walk(pass.y, p.y_stride);
    Walker lam = pass.lam != nullptr ? walk(pass.lam, p.lam_stride) : Walker{ones<T>(), 0};
    Walker u = pass.u != nullptr ? walk(pass.u, p.u_stride) : Walker{ones<T>(), 0};
    Walker state = pass.state != nullptr ? walk(pass.state, p.state_stride) : Walker{nullptr, 0};
    Walker partial = y;
    // A neighbour outside the line gets weight 0, whatever is read in its place.
    const int64_t before_offset = has_left ? 0 : p.a_k, after_offset = has_right ? 2 * p.a_k : p.a_k;
    const float left_mask = has_left ? 1.0f : 0.0f, right_mask = has_right ? 1.0f : 0.0f;
    // From this line on the output is added to.
    // With two sides the other one has met the lines from `middle` on before.
    const int middle = p.sides == 2 ? (lines + 1 - side) / 2 : lines;
    const bool meets = p.sides == 2;
    bool met = false;
    const auto adds = [&](int step) { return pass.accumulate || step >= middle; };

    int to_fetch = active ? lines : 0, fetched = 0;
    int fetch_stage = ring_begin;
    const auto fetch = [&] {
      if (to_fetch > 0) {
        --to_fetch;
        const uint32_t to = states_at + fetch_stage;
        copy_async(to + kBefore * kSlotBytes, a.at + before_offset);
        copy_async(to + kHere * kSlotBytes, a.at + p.a_k);
        copy_async(to + kAfter * kSlotBytes, a.at + after_offset);
        if (vector % 8 == 0) keep_in_l2(x.at);
        copy_async(to + kX * kSlotBytes, x.at);
        copy_async(to + kLam * kSlotBytes, lam.at);
        copy_async(to + kU * kSlotBytes, u.at);
        if (fetched < middle ? pass.accumulate : met) copy_async(to + kPartial * kSlotBytes, partial.at);
        a.advance();
        x.advance();
        lam.advance();
        u.advance();
        partial.advance();
      }
      ++fetched;
      fetch_stage = next_stage(fetch_stage);
      commit_copies();
    };
    const auto read = [&](int stage, int slot) {
      return *reinterpret_cast<const uint4*>(shared + stage + slot * kSlotBytes);
    };

    float w[3][N], input[N], h[N];
    const auto prepare = [&](int stage) {
      float lam_now[N];
      unpack<T>(read(stage, kX), input);
      unpack<T>(read(stage, kLam), lam_now);
#pragma unroll
      for (int c = 0; c < N; ++c) input[c] *= lam_now[c];
      if constexpr (kNormalize) {
        unpack<T>(clamp_logits<T>(read(stage, kBefore)), w[0]);
        unpack<T>(clamp_logits<T>(read(stage, kHere)), w[1]);
        unpack<T>(clamp_logits<T>(read(stage, kAfter)), w[2]);
#pragma unroll
        for (int c = 0; c < N; ++c) {
          const float e0 = fmaf(decay_clamped<T>(w[0][c]), left_mask, 1.0f);
          const float e1 = 1.0f + decay_clamped<T>(w[1][c]);
          const float e2 = fmaf(decay_clamped<T>(w[2][c]), right_mask, 1.0f);
          masked_weights<T>(e0, e1, e2, left_mask, right_mask, w[0][c], w[1][c], w[2][c]);
        }
      } else {
        unpack<T>(read(stage, kBefore), w[0]);
        unpack<T>(read(stage, kHere), w[1]);
        unpack<T>(read(stage, kAfter), w[2]);
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
    int stage = ring_begin;
    int64_t in_chunk = 0;
    for (int step = 0; step < lines; ++step, parity ^= 1) {
      if (meets && step == middle) {
        met = true;
        // What the other side has written is visible from here on; the lines already in the ring lack it.
        task_barrier(counter, ++meetings * p.sides * p.split);
        if (active) {
          int late_stage = stage;
          const char* late = y.at;
          for (int s = step; s < fetched && s < lines; ++s, late += y.stride) {
            copy_async(states_at + late_stage + kPartial * kSlotBytes, late);
            late_stage = next_stage(late_stage);
          }
        }
        commit_copies();
        wait_copies<0>();
      }
      const float4* const before = states + (parity ^ 1) * kQuads * p.slots + own_slot;
      float4* const now = states + parity * kQuads * p.slots + own_slot;
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
        if (in_chunk == 0) {
#pragma unroll
          for (int c = 0; c < N; ++c) h[c] = input[c];
        } else {
#pragma unroll
          for (int q = 0; q < kQuads; ++q) {
            const float4 left = before[q * p.slots - p.vectors], right = before[q * p.slots + p.vectors];
            const float l[4] = {left.x, left.y, left.z, left.w}, r[4] = {right.x, right.y, right.z, right.w};
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              const int c = 4 * q + e;
              h[c] = fmaf(w[0][c], l[e], fmaf(w[2][c], r[e], fmaf(w[1][c], h[c], input[c])));
            }
          }
        }
#pragma unroll
        for (int q = 0; q < kQuads; ++q) {
          const float4 v = make_float4(h[4 * q], h[4 * q + 1], h[4 * q + 2], h[4 * q + 3]);
          now[q * p.slots] = v;
          if (kCluster && step + 1 < lines) {
            const uint32_t at = parity * state_bytes + q * p.slots * 16;
            if (from_left) send_async(left_peer + at, v, left_peer_barrier + 8 * parity);
            if (from_right) send_async(right_peer + at, v, right_peer_barrier + 8 * parity);
          }
        }
      }
      fetch();
      if (active) {
        if (state.at != nullptr) {
          store_global(const_cast<char*>(state.at), pack<T>(h), streamed);
          state.advance();
        }
        float out[N];
        unpack<T>(read(stage, kU), out);
        if (adds(step)) {
          float so_far[N];
          unpack<T>(read(stage, kPartial), so_far);
#pragma unroll
          for (int c = 0; c < N; ++c) out[c] = fmaf(out[c], h[c], so_far[c]);
        } else {
#pragma unroll
          for (int c = 0; c < N; ++c) out[c] *= h[c];
        }
        store_global(const_cast<char*>(y.at), pack<T>(out), kept);
        y.advance();
      }
      if (++in_chunk == p.chunk) in_chunk = 0;
      stage = next_stage(stage);
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

Layout layout_of(const LineScanForward& call) {
  // One layout with and without states, so that both give the same y.
  return plan(call.shape, {kMaxThreads, kStages, kSlots, 2, 0, call.sum, 5.5, 0.75, 0.05});
}

template <typename T, bool kNormalize, bool kCluster>
cudaError_t launch(const Params& p, const Layout& l, const LineScanShape& s, cudaStream_t stream) {
  const auto kernel = channels_last_forward_kernel<T, kNormalize, kCluster>;
  return launch_clusters(kernel, p, l.blocks(s), l.threads, l.shared, l.split, stream);
}

template <typename T>
cudaError_t run(const LineScanForward& call, void* workspace, cudaStream_t stream) {
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
  p.state_stride = byte_strides(call.state, bytes);
  const int64_t tensor = s.batch * s.height * s.width * s.channels * bytes;
  const ImageView y_view{call.y.data, call.y.b, call.y.c, call.y.h, call.y.w};
  p.y_stride = byte_strides(y_view, bytes);
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
  p.passes_per_part = s.num_directions / l.parts / l.sides;
  p.sides = l.sides;
  p.split = l.split;
  p.slots = l.slots;
  const auto slot = [&](const auto& view, int i) {
    return view.data == nullptr ? nullptr : static_cast<char*>(view.data) + i * view.d * bytes;
  };
  const int per_part = s.num_directions / l.parts;
  int order[kMaxDirections];
  scan_order(s, l.sides, order);
  for (int n = 0; n < s.num_directions; ++n) {
    const int i = order[n];
    const Direction d = s.directions[i];
    Pass& pass = p.passes[n];
    pass.a = slot(call.a, i);
    pass.lam = slot(call.lam, i);
    pass.u = slot(call.u, i);
    pass.state = slot(call.state, i);
    pass.y = call.sum ? static_cast<char*>(call.y.data) : slot(call.y, i);
    if (l.scratch) pass.y = scratch + n / per_part * tensor;
    pass.vertical = is_vertical(d);
    pass.reversed = is_reversed(d);
    pass.accumulate = call.sum && n % per_part >= l.sides;
    pass.lines = static_cast<int>(num_lines(s, d));
    pass.length = static_cast<int>(line_length(s, d));
    pass.positions = (pass.length + l.split - 1) / l.split;
  }
  const cudaError_t error =
      l.split > 1 ? (s.normalize ? launch<T, true, true>(p, l, s, stream) : launch<T, false, true>(p, l, s, stream))
                  : (s.normalize ? launch<T, true, false>(p, l, s, stream) : launch<T, false, false>(p, l, s, stream));
  if (error != cudaSuccess || !l.scratch) return error;
  return sum_parts<T>(scratch, call.y.data, l.parts, tensor, stream);
}

}  // namespace

bool channels_last_forward_applies(const LineScanForward& call) {
  const LineScanShape& s = call.shape;
  if (s.dtype == DType::kFloat64 || s.affinity_channels != s.channels || call.y.data == nullptr) return false;
  const int bytes = s.dtype == DType::kFloat32 ? 4 : 2;
  if (s.channels * bytes % 16 != 0) return false;
  if (!(vectorised(call.x, bytes) && vectorised(call.a, bytes) && vectorised(call.lam, bytes) &&
        vectorised(call.u, bytes) && vectorised(call.y, bytes) && vectorised(call.state, bytes))) {
    return false;
  }
  if (s.height > 1 << 20 || s.width > 1 << 20) return false;
  const Layout l = layout_of(call);
  const bool dense =
      call.y.w == s.channels && call.y.h == s.channels * s.width && call.y.b == call.y.h * s.height;
  return l.valid && (dense || !l.scratch);
}

size_t channels_last_forward_workspace(const LineScanForward& call) { return layout_of(call).workspace(call.shape); }

cudaError_t channels_last_forward(const LineScanForward& call, void* workspace, cudaStream_t stream) {
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
