// Latent propagation, forward: logits and gates are made by tensor-core products inside the scan.
//
// Per scan line and direction the products are transposed, D = W x^T: rows of a fragment are 16 channels of one of the
// five parameters (three logits, lam, u), columns are 8 positions. A warp owns 16 channels; its weights for one direction
// stay in registers for the whole scan, and all five parameters of a (channel, position) land in the same lane. The line
// of x comes through a ring of asynchronous copies and serves as the other factor (ldmatrix) and as the scan's input
// (ldmatrix transposed). The state lives in shared memory in float32, double-buffered by line parity; outputs are
// transposed back through shared memory (stmatrix) and stored 16 bytes a thread. One __syncthreads a line.
//
// Rounded: y, and the partial sums of y between directions. Logits, gates, states and the bias stay in float32.
#include "latent_forward.cuh"

#include <algorithm>

#include "async.cuh"
#include "numerics.cuh"
#include "sum_parts.cuh"
#include "tensor_core.cuh"
#include "vector.cuh"

namespace cgspn::cuda {
namespace {

constexpr int kStages = 4;
[[maybe_unused]] constexpr int kKinds = 5;  // three logits, lam, u
enum { kLam = 3, kU = 4 };
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kPowerMax = 40.0f * kLog2E;
// Index of position 0 in a row of the state; the entry before it and those after the line hold 0.
[[maybe_unused]] constexpr int kStateOrigin = 4;

struct LineStrides {
  int64_t b = 0, h = 0, w = 0;
};

struct Pass {
  char* y;
  int direction;  // index into the rows of the weight
  bool vertical, reversed, accumulate;
  int lines, length;
};

// Strides in bytes; passes are numbered [part][pass of the part][side].
struct Params {
  const char* x;
  const char* weight;
  const char* bias;
  LineStrides x_stride, y_stride;
  int64_t chunk;
  unsigned* counters;  // zeroed, one a task; used with two sides
  int num_directions, affinity_channels;
  int channel_warps, groups, parts, passes_per_part, sides;
  int rows, state_stride;  // positions that shared memory holds; floats of a row of the state
  bool adds;
  Pass passes[kMaxDirections];
};

__host__ __device__ constexpr int padded_row(int channels) { return 2 * channels + 16; }

__device__ __forceinline__ float exp2_approx(float v) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
}

// exp(-max(a, -40)) for -a in units of log 2; NaN passes.
[[maybe_unused]] __device__ __forceinline__ float decay_of_power(float power) {
  float clamped;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(clamped) : "f"(power), "f"(kPowerMax));
  return exp2_approx(clamped);
}

template <typename T>
__device__ __forceinline__ float load_scalar(const char* p, int64_t index) {
  return widen(reinterpret_cast<const T*>(p)[index]);
}

template <typename T, int K, int kGroup, int kMaxThreads>
__global__ void __launch_bounds__(kMaxThreads, 1) latent_forward_kernel(const __grid_constant__ Params p) {
#if __CUDA_ARCH__ >= 900
  constexpr int kSteps = K / 16;
  constexpr int kRow = padded_row(K);
  constexpr int kPieces = K / 8;
  // Fragments of 16 rows: one a parameter for 16 channels, or two parameters of 8 channels in each.
  constexpr int kRowsOf = kGroup / 8, kFragments = kGroup == 16 ? kKinds : (kKinds + 1) / 2, kValues = 2 * kRowsOf;
  extern __shared__ __align__(128) unsigned char shared[];

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int g = lane / 4, q = lane % 4;
  const int channel_warp = warp % p.channel_warps, line_warp = warp / p.channel_warps;
  const int line_warps = blockDim.x / 32 / p.channel_warps;
  int task = blockIdx.x;
  const int side = task % p.sides;
  task /= p.sides;
  unsigned* const counter = p.counters + task;
  unsigned meetings = 0;
  const int part = task % p.parts;
  task /= p.parts;
  const int block_channel = task % p.groups * p.channel_warps * kGroup;
  const int64_t image = task / p.groups;
  const int channel = block_channel + channel_warp * kGroup;

  const int y_row = padded_row(p.channel_warps * kGroup);
  const int x_bytes = p.rows * kRow, y_bytes = p.rows * y_row;
  const uint32_t x_ring = shared_address(shared);
  const uint32_t partial_ring = x_ring + kStages * x_bytes;
  const uint32_t y_lines = partial_ring + (p.adds ? kStages * y_bytes : 0);
  const int y_lines_at = y_lines - x_ring;
  float* const states = reinterpret_cast<float*>(shared + y_lines_at + 2 * y_bytes);
  const int state_floats = p.channel_warps * kGroup * p.state_stride;  // of one line
  float* const own_state = states + (channel_warp * kGroup + g) * p.state_stride + kStateOrigin + 2 * q;

  // Copies of lines: 16 bytes a thread, kPieces (y_pieces) threads a position.
  const int x_piece = threadIdx.x % kPieces, x_rows = blockDim.x / kPieces;
  const int x_row = threadIdx.x / kPieces < x_rows ? threadIdx.x / kPieces : p.rows;
  const int y_pieces = p.channel_warps * kRowsOf;
  const int y_piece = threadIdx.x % y_pieces, y_rows = blockDim.x / y_pieces;
  const int y_first = threadIdx.x / y_pieces < y_rows ? threadIdx.x / y_pieces : p.rows;
  // Where the lanes point ldmatrix at: rows of eight positions, one matrix of 8 channels after the other.
  const uint32_t factor_at = x_ring + lane % 8 * kRow + lane / 8 * 16;
  const uint32_t input_at = x_ring + lane % 8 * kRow + channel * 2 + lane / 8 % kRowsOf * 16;
  const int column_at = lane % 8 * y_row + channel_warp * kGroup * 2 + lane / 8 % kRowsOf * 16;

  for (int n = 0; n < p.passes_per_part; ++n) {
    const Pass& pass = p.passes[(part * p.passes_per_part + n) * p.sides + side];
    const int lines = pass.lines, length = pass.length;
    const int tiles = (length + 7) / 8;
    const int share = tiles / line_warps, extra = tiles % line_warps;
    const int first_tile = line_warp * share + min(line_warp, extra);
    const int last_tile = first_tile + share + (line_warp < extra);

    uint32_t weights[kFragments][kSteps][4];
    float bias[kKinds][kRowsOf];
#pragma unroll
    for (int fragment = 0; fragment < kFragments; ++fragment) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int kind = kGroup == 16 ? fragment : 2 * fragment + r;
        const int c = channel + g + (kGroup == 16 ? 8 * r : 0), affinity = p.affinity_channels;
        const int row = kind < kLam ? (pass.direction * 3 + kind) * affinity + (affinity == 1 ? 0 : c)
                                    : p.num_directions * (3 * affinity + (kind - kLam) * K) + pass.direction * K + c;
        const char* const w = p.weight + (static_cast<int64_t>(row) * K + 2 * q) * 2;
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          weights[fragment][s][r] = kind < kKinds ? __ldg(reinterpret_cast<const uint32_t*>(w + s * 32)) : 0;
          weights[fragment][s][2 + r] = kind < kKinds ? __ldg(reinterpret_cast<const uint32_t*>(w + s * 32 + 16)) : 0;
        }
        if (kind < kKinds) bias[kind][kGroup == 16 ? r : 0] = load_scalar<T>(p.bias, row) * (kind < kLam ? -kLog2E : 1.0f);
      }
    }

    const int64_t x_line = pass.vertical ? p.x_stride.h : p.x_stride.w, x_place = pass.vertical ? p.x_stride.w : p.x_stride.h;
    const int64_t y_line = pass.vertical ? p.y_stride.h : p.y_stride.w, y_place = pass.vertical ? p.y_stride.w : p.y_stride.h;
    const int64_t x_step = pass.reversed ? -x_line : x_line, y_step = pass.reversed ? -y_line : y_line;
    const int64_t x_begin = image * p.x_stride.b + (pass.reversed ? (lines - 1) * x_line : 0);
    const int64_t y_begin = image * p.y_stride.b + (pass.reversed ? (lines - 1) * y_line : 0) + block_channel * 2;
    // This thread's first 16 bytes on the line that is fetched or stored next.
    const char* x_from = p.x + x_begin + x_row * x_place + x_piece * 16;
    char* y_to = pass.y + y_begin + y_first * y_place + y_piece * 16;
    const char* partial_from = y_to;
    const int64_t x_rows_step = x_rows * x_place, y_rows_step = y_rows * y_place;
    const bool accumulates = pass.accumulate;
    // With two sides the other one has met the lines from `middle` on before.
    const bool meets = p.sides == 2;
    const int middle = meets ? (lines + 1 - side) / 2 : lines;
    bool met = false;

    __syncthreads();
    // Entries outside the line are read with weight 0 and must hold no NaN, nor must positions that fill the last tile.
    for (int i = threadIdx.x; i < 2 * state_floats; i += blockDim.x) states[i] = 0.0f;
    for (int i = threadIdx.x; i < kStages * (tiles * 8 - length) * (kRow / 16); i += blockDim.x) {
      const int stage = i % kStages, rest = i / kStages;
      *reinterpret_cast<uint4*>(shared + stage * x_bytes + length * kRow + rest * 16) = make_uint4(0, 0, 0, 0);
    }

    int fetched = 0, fetch_stage = 0;
    const auto fetch_partial = [&](const char* from, int stage) {
      uint32_t to = partial_ring + stage * y_bytes + y_first * y_row + y_piece * 16;
      for (int row = y_first; row < length; row += y_rows) {
        copy_async(to, from);
        from += y_rows_step;
        to += y_rows * y_row;
      }
    };
    const auto fetch = [&] {
      if (fetched < lines) {
        const char* from = x_from;
        uint32_t to = x_ring + fetch_stage * x_bytes + x_row * kRow + x_piece * 16;
        for (int row = x_row; row < length; row += x_rows) {
          copy_async(to, from);
          from += x_rows_step;
          to += x_rows * kRow;
        }
        if (fetched < middle ? accumulates : met) fetch_partial(partial_from, fetch_stage);
        x_from += x_step;
        partial_from += y_step;
      }
      ++fetched;
      fetch_stage = fetch_stage + 1 == kStages ? 0 : fetch_stage + 1;
      commit_copies();
    };
    const auto store_line = [&](int parity) {
      char* to = y_to;
      const unsigned char* from = shared + y_lines_at + parity * y_bytes + y_first * y_row + y_piece * 16;
      for (int row = y_first; row < length; row += y_rows) {
        store_global(to, *reinterpret_cast<const uint4*>(from), kEvictLast);
        to += y_rows_step;
        from += y_rows * y_row;
      }
      y_to += y_step;
    };

    int stage = 0, parity = 0;
    bool adds = false, restart = true;
    // Where a tile's data lie in shared memory.
    struct Place {
      uint32_t input, partial, out;
      const float* before;
      float* now;
    };
    float acc[kFragments][4] = {};
    const auto parameter = [&](int kind, int i) { return kGroup == 16 ? acc[kind][i] : acc[kind / 2][kind % 2 * 2 + i]; };
    const auto clear = [&] {
#pragma unroll
      for (int fragment = 0; fragment < kFragments; ++fragment) {
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[fragment][i] = 0.0f;
      }
    };
    const auto load_factor = [&](uint32_t(&b)[kSteps][2], uint32_t from) {
#pragma unroll
      for (int s = 0; s + 1 < kSteps; s += 2) {
        uint32_t four[4];
        load_matrices(four, from + s * 32);
        b[s][0] = four[0], b[s][1] = four[1], b[s + 1][0] = four[2], b[s + 1][1] = four[3];
      }
      if constexpr (kSteps % 2 == 1) load_matrices(b[kSteps - 1], from + (kSteps - 1) * 32);
    };
    const auto product = [&](const uint32_t(&b)[kSteps][2], int s) {
#pragma unroll
      for (int f = 0; f < kFragments; ++f) multiply<T>(acc[f], weights[f][s], b[s][0], b[s][1]);
    };
    // New states and outputs of a tile from its parameters in `acc`, which meanwhile become those of the tile at `next`:
    // tensor cores and the other units work at the same time. `kSpecial`: the tile has a border or fills the line, or the
    // scan restarts.
    const auto advance = [&]<bool kSpecial>(const Place& at, uint32_t next, int j) {
      uint32_t b[kSteps][2], input[kRowsOf], so_far[kRowsOf] = {}, out[kRowsOf];
      load_factor(b, next);
      load_transposed(input, at.input);
      if (adds) load_transposed(so_far, at.partial);
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
          for (int k = 0; k < 3; ++k) power[k][i] = fmaf(parameter(k, i), -kLog2E, bias[k][r]);
          gated[i] = (parameter(kLam, i) + bias[kLam][r]) * x[i % 2];
          gate[i] = parameter(kU, i) + bias[kU][r];
        }
      }
      clear();
      float h[kValues];
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
#pragma unroll
        for (int s = i * kSteps / kValues; s < (i + 1) * kSteps / kValues; ++s) product(b, s);
        const int r = i / 2, s = i % 2;
        // As normalise() in numerics.cuh, the numerator times the neighbours directly.
        float d0 = decay_of_power(power[0][i]), d2 = decay_of_power(power[2][i]);
        const float e1 = 1.0f + decay_of_power(power[1][i]);
        float e1_left = e1, e1_right = e1;
        if constexpr (kSpecial) {
          const bool has_left = j + s > 0, has_right = j + s + 1 < length;
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
        unpack_word(so_far[r], y, T());
#pragma unroll
        for (int s = 0; s < 2; ++s) {
          float& state = h[2 * r + s];
          y[s] = fmaf(gate[2 * r + s], state, y[s]);
          if constexpr (kSpecial) state = j + s < length ? state : 0.0f;
        }
        *reinterpret_cast<float2*>(at.now + r * 8 * p.state_stride) = make_float2(h[2 * r], h[2 * r + 1]);
        out[r] = pack_word(y, T());
      }
      store_transposed(at.out, out);
    };

#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) fetch();
    const uint32_t first_factor = factor_at + first_tile * 8 * kRow;
    wait_copies<kStages - 2>();
    __syncthreads();
    if (first_tile < last_tile) {
      uint32_t b[kSteps][2];
      load_factor(b, first_factor);
      clear();
#pragma unroll
      for (int s = 0; s < kSteps; ++s) product(b, s);
    }
    int64_t in_chunk = 0;
    for (int step = 0; step < lines; ++step) {
      const int next_stage = stage + 1 == kStages ? 0 : stage + 1;
      wait_copies<kStages - 3>();
      // This line and the next one of x, the states and outputs of the line before are complete, and the slot of the line
      // before is free.
      __syncthreads();
      if (step > 0) store_line(parity ^ 1);
      if (meets && step == middle) {
        met = true;
        // What the other side has written is visible from here on; the lines already in the ring lack it.
        task_barrier(counter, ++meetings * 2);
        const char* late = y_to;
        int late_stage = stage;
        for (int s = step; s < fetched && s < lines; ++s) {
          fetch_partial(late, late_stage);
          late += y_step;
          late_stage = late_stage + 1 == kStages ? 0 : late_stage + 1;
        }
        commit_copies();
        wait_copies<0>();
        __syncthreads();
      }
      fetch();
      adds = pass.accumulate || step >= middle;
      restart = in_chunk == 0;
      uint32_t factor = first_factor + stage * x_bytes;
      Place at;
      at.input = input_at + stage * x_bytes + first_tile * 8 * kRow;
      at.partial = partial_ring + stage * y_bytes + first_tile * 8 * y_row + column_at;
      at.out = y_lines + parity * y_bytes + first_tile * 8 * y_row + column_at;
      at.before = own_state + (parity ^ 1) * state_floats + first_tile * 8;
      at.now = own_state + parity * state_floats + first_tile * 8;
      for (int t = first_tile; t < last_tile; ++t) {
        // After the last tile the first one of the next line; after the last line whatever the ring holds, unused.
        factor = t + 1 < last_tile ? factor + 8 * kRow : first_factor + next_stage * x_bytes;
        if (t == 0 || t == tiles - 1 || restart) {
          advance.template operator()<true>(at, factor, t * 8 + 2 * q);
        } else {
          advance.template operator()<false>(at, factor, 0);
        }
        at.input += 8 * kRow;
        at.partial += 8 * y_row;
        at.out += 8 * y_row;
        at.before += 8;
        at.now += 8;
      }
      if (++in_chunk == p.chunk) in_chunk = 0;
      parity ^= 1;
      stage = next_stage;
    }
    wait_copies<0>();
    __syncthreads();
    store_line(parity ^ 1);
    // A single line leaves one side nothing to add, but the other side waits for it.
    if (meets && middle == lines) task_barrier(counter, ++meetings * 2);
    // The next pass adds to what both sides have written.
    if (meets && n + 1 < p.passes_per_part) task_barrier(counter, ++meetings * 2);
  }
#endif
}

int positions_of(const LineScanShape& s) {
  int longest = 0;
  for (int d = 0; d < s.num_directions; ++d) {
    const bool vertical = s.directions[d] == Direction::kTopBottom || s.directions[d] == Direction::kBottomTop;
    longest = std::max<int>(longest, static_cast<int>(vertical ? s.width : s.height));
  }
  return (longest + 7) / 8 * 8;
}

// At least 8 entries more than positions, and 8 modulo 32 so that the rows of a fragment fall into different banks.
int state_stride_of(int positions) { return (positions + 31) / 32 * 32 + 8; }

template <typename T, int K, int kGroup, int kMaxThreads>
cudaError_t launch(const Params& p, unsigned blocks, int threads, size_t shared, cudaStream_t stream) {
  const auto kernel = latent_forward_kernel<T, K, kGroup, kMaxThreads>;
  if (threads > kMaxThreads) return cudaErrorInvalidConfiguration;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  if (error != cudaSuccess) return error;
  kernel<<<blocks, threads, shared, stream>>>(p);
  return cudaGetLastError();
}

template <typename T, int K>
cudaError_t launch_layout(const LatentLayout& l, const Params& p, unsigned blocks, cudaStream_t stream) {
  if (l.group == 8) return launch<T, K, 8, 384>(p, blocks, l.threads(), l.shared, stream);
  return launch<T, K, 16, 256>(p, blocks, l.threads(), l.shared, stream);
}

int64_t tensor_bytes(const LineScanShape& s) { return s.batch * s.height * s.width * s.channels * 2; }

int64_t counter_bytes(const LineScanShape& s, const LatentLayout& l) {
  return l.sides == 1 ? 0 : (s.batch * (s.channels / (l.group * l.channel_warps)) * 4 + 255) / 256 * 256;
}

template <typename T>
cudaError_t run(const LatentForward& call, const LatentLayout& l, void* workspace, cudaStream_t stream) {
  const LineScanShape& s = call.shape;
  Params p;
  p.x = static_cast<const char*>(call.x.data);
  p.weight = static_cast<const char*>(call.weight);
  p.bias = static_cast<const char*>(call.bias);
  p.x_stride = {call.x.b * 2, call.x.h * 2, call.x.w * 2};
  p.y_stride = {call.y.b * 2, call.y.h * 2, call.y.w * 2};
  p.chunk = s.chunk;
  p.counters = static_cast<unsigned*>(workspace);
  p.num_directions = s.num_directions;
  p.affinity_channels = static_cast<int>(s.affinity_channels);
  p.channel_warps = l.channel_warps;
  p.groups = static_cast<int>(s.channels / (l.group * l.channel_warps));
  p.parts = l.parts;
  p.passes_per_part = l.passes_per_part;
  p.sides = l.sides;
  p.rows = positions_of(s);
  p.state_stride = state_stride_of(p.rows);
  p.adds = l.sides == 2;
  char* const scratch = static_cast<char*>(workspace) + counter_bytes(s, l);
  for (int d = 0; d < s.num_directions; ++d) {
    const Direction direction = s.directions[d];
    Pass pass;
    pass.direction = d;
    pass.vertical = direction == Direction::kTopBottom || direction == Direction::kBottomTop;
    pass.reversed = direction == Direction::kBottomTop || direction == Direction::kRightLeft;
    pass.lines = static_cast<int>(pass.vertical ? s.height : s.width);
    pass.length = static_cast<int>(pass.vertical ? s.width : s.height);
    pass.accumulate = l.sides == 2 && d >= 2;
    pass.y = l.parts == 1 ? static_cast<char*>(call.y.data) : scratch + d * tensor_bytes(s);
    p.passes[d] = pass;
  }
  if (l.sides == 2) {
    const cudaError_t error = cudaMemsetAsync(workspace, 0, counter_bytes(s, l), stream);
    if (error != cudaSuccess) return error;
  }
  const unsigned blocks = static_cast<unsigned>(s.batch * p.groups * l.parts * l.sides);
  cudaError_t error = cudaErrorInvalidValue;
  switch (s.channels) {
    case 32: error = launch_layout<T, 32>(l, p, blocks, stream); break;
    case 48: error = launch_layout<T, 48>(l, p, blocks, stream); break;
    case 64: error = launch_layout<T, 64>(l, p, blocks, stream); break;
  }
  if (error != cudaSuccess || l.parts == 1) return error;
  return sum_parts<T>(scratch, call.y.data, l.parts, tensor_bytes(s), stream);
}

}  // namespace

size_t latent_shared_bytes(const LineScanShape& s, const LatentLayout& l) {
  const int rows = positions_of(s), y_row = padded_row(l.group * l.channel_warps);
  const int copies = (l.sides == 2 ? kStages : 0) + 2;
  return static_cast<size_t>(rows) * (kStages * padded_row(static_cast<int>(s.channels)) + copies * y_row) +
         2 * l.group * l.channel_warps * state_stride_of(rows) * sizeof(float);
}

size_t latent_workspace(const LatentForward& call, const LatentLayout& l) {
  return counter_bytes(call.shape, l) + (l.parts == 1 ? 0 : l.parts * tensor_bytes(call.shape));
}

cudaError_t latent_forward_with(const LatentForward& call, const LatentLayout& l, void* workspace, cudaStream_t stream) {
  if (call.shape.dtype == DType::kFloat16) return run<__half>(call, l, workspace, stream);
  return run<__nv_bfloat16>(call, l, workspace, stream);
}

}  // namespace cgspn::cuda
