// Latent propagation, forward, for few images: a block's warps have one tile of 8 channels and 8 positions each.
//
// The products and weights of latent_forward.cu, arranged for the shortest chain of dependent steps a line: a warp has the
// normalised weights of its tile ready when the neighbours' states of the line before arrive, so that between two lines there
// are only three multiply-adds. It then makes the weights of the next line from products that it already has, and the
// products of the line after that. Warps arrive at a line's barrier as soon as their states are written, and wait there only
// before they read their neighbours'. Two warps more copy lines of x and nothing else. Blocks of a cluster share a line as in latent_forward.cu.
#include <algorithm>

#include "async.cuh"
#include "channels_last_plan.cuh"
#include "latent_kernel.cuh"
#include "numerics.cuh"
#include "tensor_core.cuh"
#include "vector.cuh"

namespace cgspn::cuda {
namespace {

constexpr int kStages = 8, kMaxWarps = 12, kCopyWarps = 2;

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ uint32_t transpose_matrix(uint32_t v) {
  uint32_t r; asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v)); return r;
}
template <typename T, int K>
__global__ void __launch_bounds__((kMaxWarps + kCopyWarps) * 32, 1) latent_one_tile_kernel(const __grid_constant__ LatentParams p) {
#if __CUDA_ARCH__ >= 900
  using Weights = LatentWeights<T, K, 8>;
  constexpr int kSteps = Weights::kSteps, kRow = padded_row(K);
  extern __shared__ __align__(128) unsigned char shared[];
  allow_next_kernel();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  const int channel_warp = warp % p.channel_warps, tile = warp / p.channel_warps;
  const int rank = p.split > 1 ? static_cast<int>(cluster_rank()) : 0;
  int task = blockIdx.x / p.split;
  const int direction = task % p.num_directions;
  task /= p.num_directions;
  const int block_channel = task % p.groups * p.channel_warps * 8;
  const int64_t image = task / p.groups;
  const int channel = block_channel + channel_warp * 8;
  const LatentPass& pass = p.passes[direction];
  const int lines = pass.lines;
  const int block_tiles = ((pass.length + 7) / 8 + p.split - 1) / p.split;
  const int first_position = rank * block_tiles * 8;
  const int length = min(max(pass.length - first_position, 0), block_tiles * 8), tiles = (length + 7) / 8;
  const bool has_left_block = rank > 0 && length > 0, has_right_block = first_position + length < pass.length;
  const int compute_warps = blockDim.x / 32 - kCopyWarps;
  const bool active = tile < tiles;

  const int x_bytes = p.rows * kRow;
  const uint32_t x_ring = shared_address(shared);
  float* const states = reinterpret_cast<float*>(shared + kStages * x_bytes);
  const int state_floats = p.channel_warps * 8 * p.state_stride;
  const int state_at = (channel_warp * 8 + g) * p.state_stride + kStateOrigin + tile * 8 + 2 * q;
  const uint32_t borders = shared_address(states + 2 * state_floats), sent = borders + 32;

  Weights weights;
  weights.load(p, direction, channel, lane);
  const int64_t y_line = pass.vertical ? p.y_stride.h : p.y_stride.w, y_place = pass.vertical ? p.y_stride.w : p.y_stride.h;
  const int64_t y_step = pass.reversed ? -y_line : y_line;
  const int64_t y_begin = image * p.y_stride.b + (first_position + tile * 8 + g) * y_place + (pass.reversed ? (lines - 1) * y_line : 0);
  char* y_to = pass.y + y_begin + (channel + 2 * q) * 2;
  const bool stores = tile * 8 + g < length;

  for (int i = threadIdx.x; i < 2 * state_floats; i += blockDim.x) states[i] = 0.0f;
  for (int i = threadIdx.x; i < kStages * (tiles * 8 - length) * (kRow / 16); i += blockDim.x) {
    const int stage = i % kStages, rest = i / kStages;
    *reinterpret_cast<uint4*>(shared + stage * x_bytes + length * kRow + rest * 16) = make_uint4(0, 0, 0, 0);
  }
  if (threadIdx.x == 0) {
    for (int b = 0; b < 4; ++b) barrier_init(borders + 8 * b);
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(sent), "r"(blockDim.x / 32) : "memory");
    fence_barrier_init();
  }
  const bool to_left = has_left_block && tile == 0, to_right = has_right_block && tile + 1 == tiles, at_border = to_left || to_right;
  uint32_t left_peer = 0, left_barrier = 0, right_peer = 0, right_barrier = 0;
  if (p.split > 1) {
    const uint32_t row = shared_address(states + (channel_warp * 8 + g) * p.state_stride + kStateOrigin);
    if (to_left) left_peer = peer_address(row + 4 * 8 * block_tiles, rank - 1), left_barrier = peer_address(borders + 16, rank - 1);
    if (to_right) right_peer = peer_address(row - 4, rank + 1), right_barrier = peer_address(borders, rank + 1);
    cluster_sync();
  }
  await_previous_kernel();
  if (length == 0) return;

  LineCopies<K, kStages> copies(p, pass, image, first_position, length, x_ring, threadIdx.x - compute_warps * 32, kCopyWarps * 32);
  float acc[Weights::kFragments][4];
  const uint32_t factor_lane = x_ring + (tile * 8 + lane % 8) * kRow + lane / 8 * 16;
  const auto make_products = [&](uint32_t line) {
    uint32_t b[kSteps][2];
    load_factor(b, factor_lane + line);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) weights.product(acc, b, s);
  };
  // 0 for neighbours outside the line. Positions that fill the last tile have x = 0 and finite states of their own.
  const int j = first_position + tile * 8 + 2 * q;
  const float left_mask = j > 0 ? 1.0f : 0.0f;
  const float right_mask[2] = {j + 1 < pass.length ? 1.0f : 0.0f, j + 2 < pass.length ? 1.0f : 0.0f};
  float w[3][2], gated[2], gate[2], h[2] = {};
  const uint32_t input_lane = x_ring + (tile * 8 + lane % 8) * kRow + channel * 2;
  const auto make_weights = [&](uint32_t line) {
    uint32_t input[1];
    load_transposed(input, input_lane + line);
    float x[2];
    unpack_word(input[0], x, T());
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const auto parameter = [&](int kind) { return acc[kind / 2][kind % 2 * 2 + s]; };
      const auto decay = [&](int k) { return decay_of_power(fmaf(parameter(k), -kLog2E, weights.bias[k][0])); };
      // As normalise() in numerics.cuh.
      const float e0 = s == 0 ? fmaf(decay(0), left_mask, 1.0f) : 1.0f + decay(0);
      const float e1 = 1.0f + decay(1), e2 = fmaf(decay(2), right_mask[s], 1.0f);
      const float p0 = s == 0 ? e1 * e2 * left_mask : e1 * e2, e1_right = e1 * right_mask[s];
      const float r = fast_reciprocal(fmaf(e0, e2 + e1_right, p0)), e0_r = e0 * r;
      w[0][s] = p0 * r;
      w[1][s] = e0_r * e2;
      w[2][s] = e0_r * e1_right;
      gated[s] = parameter(kLam) * x[s];
      gate[s] = parameter(kU);
    }
  };

  if (warp >= compute_warps) {
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) copies.next();
    wait_copies<kStages - 4>();
  }
  __syncthreads();
  // A line's slot is free once the line after it has been sent: its last reader made weights before.
  if (warp >= compute_warps || !active) {
    for (int step = 0; step < lines; ++step) {
      barrier_wait(sent, (step & 1) ^ 1);
      if (warp >= compute_warps) {
        wait_copies<kStages - 5>();
        __syncwarp();
      }
      if (lane == 0) barrier_arrive(sent);
      if (warp >= compute_warps) copies.next();
    }
    wait_copies<0>();
    return;
  }
  make_products(0);
  make_weights(0);
  make_products(x_bytes);
  // Where the line lies that products are made of next, in bytes from the ring's start.
  uint32_t ahead = 2 * x_bytes, next = x_bytes;
  const int chunk = static_cast<int>(min(p.chunk, int64_t{1} << 30));
  int in_chunk = 0;
  const float* before = states + state_at + state_floats;
  float* now = states + state_at;
  for (int step = 0; step < lines; ++step) {
    const int parity = step & 1;
    barrier_wait(sent, parity ^ 1);
    if (at_border) {
      const int phase = (step - 1) >> 1 & 1, other = 8 * (parity ^ 1);
      if (to_left) barrier_wait(borders + other, phase);
      if (to_right) barrier_wait(borders + 16 + other, phase);
    }
    const float left = before[-1], right = before[2];
    const float first = h[0], second = h[1];
    h[0] = fmaf(w[0][0], left, fmaf(w[2][0], second, fmaf(w[1][0], first, gated[0])));
    h[1] = fmaf(w[2][1], right, fmaf(w[0][1], first, fmaf(w[1][1], second, gated[1])));
    if (in_chunk == 0) h[0] = gated[0], h[1] = gated[1];
    *reinterpret_cast<float2*>(now) = make_float2(h[0], h[1]);
    if (at_border && step + 1 < lines) {
      const int to = 4 * parity * state_floats;
      if (to_left && q == 0) send_async(left_peer + to, h[0], left_barrier + 8 * parity);
      if (to_right && q == 3) send_async(right_peer + to, h[1], right_barrier + 8 * parity);
      if (channel_warp == 0 && lane == 0) {
        const uint32_t bytes = p.channel_warps * 32;
        if (to_left) barrier_expect(borders + 8 * parity, bytes);
        if (to_right) barrier_expect(borders + 16 + 8 * parity, bytes);
      }
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(sent);
    const float y[2] = {gate[0] * h[0], gate[1] * h[1]};
    const uint32_t out = transpose_matrix(pack_word(y, T()));
    if (stores) *reinterpret_cast<uint32_t*>(y_to) = out;
    y_to += y_step;
    make_weights(next);
    make_products(ahead);
    next = ahead;
    ahead = ahead + x_bytes == kStages * x_bytes ? 0 : ahead + x_bytes;
    if (++in_chunk == chunk) in_chunk = 0;
    float* const other = const_cast<float*>(before);
    before = now;
    now = other;
  }
#endif
}

template <typename T>
cudaError_t launch(const LatentForward& call, const LatentLayout& l, const LatentParams& p, unsigned blocks, cudaStream_t stream) {
  if (l.threads() > kMaxWarps * 32) return cudaErrorInvalidConfiguration;
  const auto with = [&](auto* kernel) { return launch_clusters<LatentParams>(kernel, p, blocks, l.threads() + kCopyWarps * 32, l.shared, l.split, stream, call.early); };
  switch (call.shape.channels) {
    case 32: return with(latent_one_tile_kernel<T, 32>);
    case 48: return with(latent_one_tile_kernel<T, 48>);
    case 64: return with(latent_one_tile_kernel<T, 64>);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace

cudaError_t latent_one_tile(const LatentForward& call, const LatentLayout& l, const LatentParams& p, unsigned blocks, cudaStream_t stream) {
  if (call.shape.dtype == DType::kFloat16) return launch<__half>(call, l, p, blocks, stream);
  return launch<__nv_bfloat16>(call, l, p, blocks, stream);
}

size_t latent_one_tile_shared_bytes(const LineScanShape& s, const LatentLayout& l) {
  const int rows = latent_positions(s, l.split);
  return static_cast<size_t>(kStages) * rows * padded_row(static_cast<int>(s.channels)) +
         2 * 8 * l.channel_warps * latent_state_stride(rows) * sizeof(float) + 5 * sizeof(uint64_t);
}

}  // namespace cgspn::cuda
