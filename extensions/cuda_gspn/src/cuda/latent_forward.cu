// Latent propagation, forward: logits and gates are made by tensor-core products inside the scan.
//
// Per scan line and direction the products are transposed, D = W x^T: rows of a fragment are 16 channels of one of the
// five parameters (three logits, lam, u), columns are 8 positions. A warp owns 16 channels; its weights for one direction
// stay in registers for the whole scan, and all five parameters of a (channel, position) land in the same lane. The line
// of x comes through a ring of asynchronous copies and serves as the other factor (ldmatrix) and as the scan's input
// (ldmatrix transposed). The state lives in shared memory in float32, double-buffered by line parity; outputs are
// transposed back through shared memory (stmatrix) and stored 16 bytes a thread. One __syncthreads a line; half of the
// warps copy lines before their tiles, half after, so that copies and products meet on every scheduler.
//
// A cluster of `split` blocks may share the positions of a line: the states at a block's border go into its neighbour's
// shared memory by st.async, counted by an mbarrier.
//
// Every direction has blocks of its own and writes a part; an ordered sum follows unless the parts are what is wanted.
// Rounded: the parts and their sum. Logits, gates, states and the bias stay in float32.
#include "latent_forward.cuh"

#include <algorithm>

#include "async.cuh"
#include "channels_last_plan.cuh"
#include "latent_kernel.cuh"
#include "numerics.cuh"
#include "sum_parts.cuh"
#include "tensor_core.cuh"
#include "vector.cuh"

namespace cgspn::cuda {
namespace {

constexpr int kStages = 4, kGroup = 16, kMaxWarps = 8;

template <typename T, int K>
__global__ void __launch_bounds__(kMaxWarps * 32, 1) latent_forward_kernel(const __grid_constant__ LatentParams p) {
#if __CUDA_ARCH__ >= 900
  using Weights = LatentWeights<T, K, kGroup>;
  constexpr int kSteps = Weights::kSteps, kRowsOf = Weights::kRowsOf, kValues = 2 * kRowsOf, kRow = padded_row(K);
  extern __shared__ __align__(128) unsigned char shared[];

  allow_next_kernel();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int g = lane / 4, q = lane % 4;
  const int channel_warp = warp % p.channel_warps, line_warp = warp / p.channel_warps;
  const int line_warps = blockDim.x / 32 / p.channel_warps;
  const bool copies_late = warp / 4 % 2 == 1;
  const int rank = p.split > 1 ? static_cast<int>(cluster_rank()) : 0;
  int task = blockIdx.x / p.split;
  const int direction = task % p.num_directions;
  task /= p.num_directions;
  const int block_channel = task % p.groups * p.channel_warps * kGroup;
  const int64_t image = task / p.groups;
  const int channel = block_channel + channel_warp * kGroup;

  const LatentPass& pass = p.passes[direction];
  const int lines = pass.lines;
  // The block's share of a line, in whole tiles.
  const int block_tiles = ((pass.length + 7) / 8 + p.split - 1) / p.split;
  const int first_position = rank * block_tiles * 8;
  const int length = min(max(pass.length - first_position, 0), block_tiles * 8);
  const int tiles = (length + 7) / 8;
  const bool has_left_block = rank > 0 && length > 0, has_right_block = first_position + length < pass.length;
  const int own_tiles = tiles / line_warps + (line_warp < tiles % line_warps);
  const int lowest_tile = line_warp * (tiles / line_warps) + min(line_warp, tiles % line_warps);
  // A warp begins at the tile whose states a neighbouring block waits for.
  const bool backwards = has_right_block && line_warp > 0 && lowest_tile + own_tiles == tiles;
  const int first_tile = backwards ? tiles - 1 : lowest_tile, tile_step = backwards ? -1 : 1;

  const int y_row = padded_row(p.channel_warps * kGroup);
  const int x_bytes = p.rows * kRow, y_bytes = p.rows * y_row;
  const uint32_t x_ring = shared_address(shared);
  const uint32_t y_lines = x_ring + kStages * x_bytes;
  float* const states = reinterpret_cast<float*>(shared + kStages * x_bytes + 2 * y_bytes);
  const int state_floats = p.channel_warps * kGroup * p.state_stride;  // of one line
  const int state_at = (channel_warp * kGroup + g) * p.state_stride + kStateOrigin + 2 * q;
  const uint32_t borders = shared_address(states + 2 * state_floats);  // barriers, [side of the block][line parity]

  // Copies of lines of y: 16 bytes a thread, y_pieces threads a position.
  const int y_pieces = p.channel_warps * kRowsOf;
  const int y_piece = threadIdx.x % y_pieces, y_rows = blockDim.x / y_pieces;
  const int y_first = threadIdx.x / y_pieces < y_rows ? threadIdx.x / y_pieces : p.rows;

  Weights weights;
  weights.load(p, direction, channel, lane);

  const int64_t y_line = pass.vertical ? p.y_stride.h : p.y_stride.w, y_place = pass.vertical ? p.y_stride.w : p.y_stride.h;
  const int64_t y_step = pass.reversed ? -y_line : y_line;
  const int64_t y_begin = image * p.y_stride.b + first_position * y_place + (pass.reversed ? (lines - 1) * y_line : 0);
  // This thread's first 16 bytes on the line that is stored next.
  char* y_to = pass.y + y_begin + block_channel * 2 + y_first * y_place + y_piece * 16;
  const int64_t y_rows_step = y_rows * y_place;

  // Entries outside the line are read with weight 0 and must hold no NaN, nor must positions that fill the last tile.
  for (int i = threadIdx.x; i < 2 * state_floats; i += blockDim.x) states[i] = 0.0f;
  for (int i = threadIdx.x; i < kStages * (tiles * 8 - length) * (kRow / 16); i += blockDim.x) {
    const int stage = i % kStages, rest = i / kStages;
    *reinterpret_cast<uint4*>(shared + stage * x_bytes + length * kRow + rest * 16) = make_uint4(0, 0, 0, 0);
  }
  // Where the neighbouring blocks expect this lane's state at their border, on a line of parity 0.
  uint32_t left_peer = 0, right_peer = 0, left_barrier = 0, right_barrier = 0;
  if (p.split > 1) {
    if (threadIdx.x == 0) {
      for (int b = 0; b < 4; ++b) barrier_init(borders + 8 * b);
      fence_barrier_init();
    }
    const uint32_t row = shared_address(states + state_at - 2 * q);
    if (has_left_block) {
      left_peer = peer_address(row + 4 * 8 * block_tiles, rank - 1);
      left_barrier = peer_address(borders + 16, rank - 1);
    }
    if (has_right_block) {
      right_peer = peer_address(row - 4, rank + 1);
      right_barrier = peer_address(borders, rank + 1);
    }
    cluster_sync();
  }
  await_previous_kernel();
  if (length == 0) return;

  LineCopies<K, kStages> copies(p, pass, image, first_position, length, x_ring, threadIdx.x, blockDim.x);
  const auto store_line = [&](int parity) {
    char* to = y_to;
    const unsigned char* from = shared + kStages * x_bytes + parity * y_bytes + y_first * y_row + y_piece * 16;
    for (int row = y_first; row < length; row += y_rows) {
      store_global(to, *reinterpret_cast<const uint4*>(from), kEvictLast);
      to += y_rows_step;
      from += y_rows * y_row;
    }
    y_to += y_step;
  };

  int stage = 0, parity = 0;
  bool restart = true;
  // Where a tile's data lie in shared memory.
  struct Place {
    uint32_t input, out;
    const float* before;
    float* now;
  };
  float acc[Weights::kFragments][4] = {}, h[kValues];
  // New states and outputs of tile `t` from its parameters in `acc`, which meanwhile become those of the tile at `next`:
  // tensor cores and the other units work at the same time. `kSpecial`: the tile has a border or fills the line, or the
  // scan restarts.
  const auto advance = [&]<bool kSpecial>(const Place& at, uint32_t next, int t) {
    const int j = first_position + t * 8 + 2 * q;
    uint32_t b[kSteps][2], input[kRowsOf], out[kRowsOf];
    load_factor(b, next);
    load_transposed(input, at.input);
    float around[kRowsOf][4], power[3][kValues], gated[kValues], gate[kValues];
#pragma unroll
    for (int r = 0; r < kRowsOf; ++r) {
      const float* const before = at.before + r * 8 * p.state_stride;
      const float2 own = *reinterpret_cast<const float2*>(before);
      around[r][0] = before[-1], around[r][1] = own.x, around[r][2] = own.y, around[r][3] = before[2];
      float x[2];
      unpack_word(input[r], x, T());
#pragma unroll
      for (int i = 2 * r; i < 2 * r + 2; ++i) {
#pragma unroll
        for (int k = 0; k < 3; ++k) power[k][i] = fmaf(acc[k][i], -kLog2E, weights.bias[k][r]);
        gated[i] = acc[kLam][i] * x[i % 2];
        gate[i] = acc[kU][i];
      }
    }
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
#pragma unroll
      for (int s = i * kSteps / kValues; s < (i + 1) * kSteps / kValues; ++s) weights.product(acc, b, s);
      const int r = i / 2, s = i % 2;
      // As normalise() in numerics.cuh, the numerator times the neighbours directly.
      float d0 = decay_of_power(power[0][i]), d2 = decay_of_power(power[2][i]);
      const float e1 = 1.0f + decay_of_power(power[1][i]);
      float e1_left = e1, e1_right = e1;
      if constexpr (kSpecial) {
        const bool has_left = j + s > 0, has_right = j + s + 1 < pass.length;
        d0 = has_left ? d0 : 0.0f;
        e1_left = has_left ? e1 : 0.0f;
        d2 = has_right ? d2 : 0.0f;
        e1_right = has_right ? e1 : 0.0f;
      }
      const float e0 = 1.0f + d0, e2 = 1.0f + d2;
      const float p0 = e1_left * e2;
      const float sum = fmaf(e0, e2 + e1_right, p0);
      const float mixed = fmaf(e0, fmaf(e1_right, around[r][s + 2], e2 * around[r][s + 1]), p0 * around[r][s]);
      h[i] = fmaf(mixed, fast_reciprocal(sum), gated[i]);
      if constexpr (kSpecial) h[i] = restart ? gated[i] : h[i];
    }
#pragma unroll
    for (int r = 0; r < kRowsOf; ++r) {
      float y[2];
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        float& state = h[2 * r + s];
        y[s] = gate[2 * r + s] * state;
        if constexpr (kSpecial) state = j + s < pass.length ? state : 0.0f;
      }
      *reinterpret_cast<float2*>(at.now + r * 8 * p.state_stride) = make_float2(h[2 * r], h[2 * r + 1]);
      out[r] = pack_word(y, T());
    }
    store_transposed(at.out, out);
  };
  // Borders of the lines before come from the neighbouring blocks, those of this line go to them.
  const auto receive = [&](int t, int step) {
    const int other = parity ^ 1, phase = (step - 1) / 2 & 1;
    if (has_left_block && t == 0) barrier_wait(borders + 8 * other, phase);
    if (has_right_block && t + 1 == tiles) barrier_wait(borders + 16 + 8 * other, phase);
  };
  const auto send = [&](int t) {
    const bool to_left = has_left_block && t == 0 && q == 0, to_right = has_right_block && t + 1 == tiles && q == 3;
#pragma unroll
    for (int r = 0; r < kRowsOf; ++r) {
      const uint32_t to = 4 * (parity * state_floats + r * 8 * p.state_stride);
      if (to_left) send_async(left_peer + to, h[2 * r], left_barrier + 8 * parity);
      if (to_right) send_async(right_peer + to, h[2 * r + 1], right_barrier + 8 * parity);
    }
  };
  const auto is_special = [&](int t) { return t == 0 || t + 1 == tiles; };

#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) copies.next();
  // Where the lanes point ldmatrix at: rows of eight positions, one matrix of 8 channels after the other.
  const uint32_t first_factor = x_ring + (first_tile * 8 + lane % 8) * kRow + lane / 8 * 16;
  const uint32_t first_input = x_ring + (first_tile * 8 + lane % 8) * kRow + channel * 2 + lane / 8 % kRowsOf * 16;
  const uint32_t first_out =
      y_lines + (first_tile * 8 + lane % 8) * y_row + channel_warp * kGroup * 2 + lane / 8 % kRowsOf * 16;
  const int factor_step = tile_step * 8 * kRow, out_step = tile_step * 8 * y_row, state_step = tile_step * 8;
  const int leading = own_tiles > 0 && is_special(first_tile);
  const int trailing = own_tiles > 1 && is_special(first_tile + tile_step * (own_tiles - 1));
  wait_copies<kStages - 2>();
  __syncthreads();
  if (own_tiles > 0) {
    uint32_t b[kSteps][2];
    load_factor(b, first_factor);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) weights.product(acc, b, s);
  }
  int64_t in_chunk = 0;
  for (int step = 0; step < lines; ++step) {
    const int next_stage = stage + 1 == kStages ? 0 : stage + 1;
    wait_copies<kStages - 3>();
    // This line and the next one of x, the states and outputs of the line before are complete, and the slot of the line
    // before is free.
    __syncthreads();
    restart = in_chunk == 0;
    const bool sends = step + 1 < lines;
    if (p.split > 1 && threadIdx.x == 0 && sends) {
      const uint32_t bytes = p.channel_warps * kGroup * 4;
      if (has_left_block) barrier_expect(borders + 8 * parity, bytes);
      if (has_right_block) barrier_expect(borders + 16 + 8 * parity, bytes);
    }
    if (!copies_late) {
      if (step > 0) store_line(parity ^ 1);
      copies.next();
    }
    uint32_t factor = first_factor + stage * x_bytes;
    const uint32_t last_factor = first_factor + next_stage * x_bytes;
    Place at;
    at.input = first_input + stage * x_bytes;
    at.out = first_out + parity * y_bytes;
    at.before = states + state_at + (parity ^ 1) * state_floats + first_tile * 8;
    at.now = states + state_at + parity * state_floats + first_tile * 8;
    int n = 0;
    const auto next_tile = [&] {
      at.input += factor_step;
      at.out += out_step;
      at.before += state_step;
      at.now += state_step;
      ++n;
    };
    // After the last tile the first one of the next line; after the last line whatever the ring holds, unused.
    const auto next_factor = [&] {
      factor = n + 1 < own_tiles ? factor + factor_step : last_factor;
      return factor;
    };
    const auto special = [&](int until) {
      for (; n < until; next_tile()) {
        const int t = first_tile + n * tile_step;
        if (p.split > 1 && step > 0) receive(t, step);
        advance.template operator()<true>(at, next_factor(), t);
        if (p.split > 1 && sends) send(t);
      }
    };
    special(restart ? own_tiles : leading);
    for (; n < own_tiles - trailing; next_tile()) advance.template operator()<false>(at, next_factor(), 0);
    special(own_tiles);
    if (copies_late) {
      if (step > 0) store_line(parity ^ 1);
      copies.next();
    }
    if (++in_chunk == p.chunk) in_chunk = 0;
    parity ^= 1;
    stage = next_stage;
  }
  wait_copies<0>();
  __syncthreads();
  store_line(parity ^ 1);
#endif
}

template <typename T>
cudaError_t launch(const LatentForward& call, const LatentLayout& l, const LatentParams& p, unsigned blocks, cudaStream_t stream) {
  if (l.threads() > kMaxWarps * 32) return cudaErrorInvalidConfiguration;
  const auto with = [&](auto* kernel) { return launch_clusters<LatentParams>(kernel, p, blocks, l.threads(), l.shared, l.split, stream, call.early); };
  switch (call.shape.channels) {
    case 32: return with(latent_forward_kernel<T, 32>);
    case 48: return with(latent_forward_kernel<T, 48>);
    case 64: return with(latent_forward_kernel<T, 64>);
    default: return cudaErrorInvalidValue;
  }
}

int64_t tensor_bytes(const LineScanShape& s) { return s.batch * s.height * s.width * s.channels * 2; }

bool sums_parts(const LatentForward& call) { return call.sum && call.shape.num_directions > 1; }

LatentParams params_of(const LatentForward& call, const LatentLayout& l, char* parts, int64_t part_bytes) {
  const LineScanShape& s = call.shape;
  LatentParams p;
  p.x = static_cast<const char*>(call.x.data);
  p.weight = static_cast<const char*>(call.weight);
  p.bias = static_cast<const char*>(call.bias);
  p.x_stride = {call.x.b * 2, call.x.h * 2, call.x.w * 2};
  p.y_stride = {call.y.b * 2, call.y.h * 2, call.y.w * 2};
  p.chunk = s.chunk;
  p.num_directions = s.num_directions;
  p.affinity_channels = static_cast<int>(s.affinity_channels);
  p.channel_warps = l.channel_warps;
  p.groups = static_cast<int>(s.channels / (l.group * l.channel_warps));
  p.split = l.split;
  p.rows = latent_positions(s, l.split);
  p.state_stride = latent_state_stride(p.rows);
  for (int d = 0; d < s.num_directions; ++d) {
    const Direction direction = s.directions[d];
    p.passes[d] = {parts + d * part_bytes, is_vertical(direction), is_reversed(direction),
                   static_cast<int>(num_lines(s, direction)), static_cast<int>(line_length(s, direction))};
  }
  return p;
}

}  // namespace

int64_t latent_blocks(const LineScanShape& s, const LatentLayout& l) {
  return s.batch * (s.channels / (l.group * l.channel_warps)) * s.num_directions * l.split;
}

size_t latent_shared_bytes(const LineScanShape& s, const LatentLayout& l) {
  if (l.group == 8) return latent_one_tile_shared_bytes(s, l);
  const int rows = latent_positions(s, l.split), y_row = padded_row(kGroup * l.channel_warps);
  return static_cast<size_t>(rows) * (kStages * padded_row(static_cast<int>(s.channels)) + 2 * y_row) +
         2 * kGroup * l.channel_warps * latent_state_stride(rows) * sizeof(float) + 4 * sizeof(uint64_t);
}

size_t latent_forward_workspace(const LatentForward& call) {
  return sums_parts(call) ? call.shape.num_directions * tensor_bytes(call.shape) : 0;
}

cudaError_t latent_forward_with(const LatentForward& call, const LatentLayout& l, void* workspace, cudaStream_t stream) {
  const LineScanShape& s = call.shape;
  // Parts to be summed lie one behind the other, each laid out as y.
  char* const parts = static_cast<char*>(sums_parts(call) ? workspace : call.y.data);
  const int64_t part_bytes = sums_parts(call) ? tensor_bytes(s) : call.y.d * 2;
  const LatentParams p = params_of(call, l, parts, part_bytes);
  const unsigned blocks = static_cast<unsigned>(latent_blocks(s, l));
  const bool half = s.dtype == DType::kFloat16;
  const cudaError_t error = l.group == 8 ? latent_one_tile(call, l, p, blocks, stream)
                            : half       ? launch<__half>(call, l, p, blocks, stream)
                                         : launch<__nv_bfloat16>(call, l, p, blocks, stream);
  if (error != cudaSuccess || !sums_parts(call)) return error;
  const auto sum = half ? sum_parts<__half> : sum_parts<__nv_bfloat16>;
  return sum(parts, call.y.data, s.num_directions, part_bytes, stream, false);
}

}  // namespace cgspn::cuda
