// A linear layer from a narrow space, its bias, LayerScale and the residual, in one pass over x.
//
// A block keeps the whole weight in shared memory. A warp takes 16 tokens and a share of their channels at a time: it loads
// the tokens' h into registers, its parts added up and rounded, then streams x in steps of 64 channels through its ring
// (token_tiles.cuh), adds the tensor cores' products to it in place and writes it out in 16-byte pieces. Memory traffic per
// token: x once, y once, h once (and again from L2 for every further share); the weight once a block, from L2. No barrier
// after the first.
#include "cgspn/token_linear_cuda.h"
#include "dispatch.cuh"
#include "numerics.cuh"
#include "tensor_core.cuh"
#include "token_tiles.cuh"
#include "vector.cuh"

namespace cgspn::cuda {
namespace {

struct Params {
  const char *h, *weight, *bias, *scale, *x;
  char* y;
  int64_t tokens;
  int channels, shares, h_parts;
  unsigned* counter;
};

// A row of the weight: 64 inputs are swizzled, fewer are padded so that eight rows fall into different banks.
template <int kInputs>
constexpr int kWeightRow = kInputs == 64 ? 128 : kInputs * 2 + 16;

template <int kInputs>
__device__ __forceinline__ uint32_t weight_offset(int row, int chunk) {
  return row * kWeightRow<kInputs> + ((kInputs == 64 ? chunk ^ (row & 7) : chunk) << 4);
}

template <int kInputs, bool kScaled>
size_t shared_bytes(int channels) {
  return static_cast<size_t>(channels) * (kWeightRow<kInputs> + (kScaled ? 8 : 4)) + kRingBytes + 112;
}

template <typename T, int kInputs, bool kScaled>
__global__ void __launch_bounds__(kWarps * 32, 1) linear_residual_kernel(const Params p) {
  constexpr int kSteps = kInputs / 16;
  extern __shared__ __align__(128) char shared[];
  const uint32_t weight = shared_address(shared);
  float* bias = reinterpret_cast<float*>(shared + p.channels * kWeightRow<kInputs>);
  float* scale = bias + (kScaled ? p.channels : 0);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  unsigned* slot_task = reinterpret_cast<unsigned*>(scale + p.channels) + warp * kStages;
  const uint32_t rings = (shared_address(scale + p.channels) + kWarps * kStages * sizeof(unsigned) + 127) & ~127u;
  const uint32_t ring = rings + warp * kStages * kSlotBytes;
  char* ring_bytes = shared + (ring - weight);

  for (int i = threadIdx.x; i < p.channels * (kInputs / 8); i += kWarps * 32) {
    copy_async(weight + weight_offset<kInputs>(i / (kInputs / 8), i % (kInputs / 8)), p.weight + int64_t(i) * 16);
  }
  commit_copies();
  await_previous_kernel();

  const unsigned num_tasks = static_cast<unsigned>((p.tokens + kRows - 1) / kRows * p.shares);
  const int num_columns = p.channels / kColumns / p.shares;
  const int64_t stride = int64_t(p.channels) * 2;

  // The first slots of a task hold the parts of h, the others 64 channels of x each.
  Tasks tasks(p.counter, warp * gridDim.x + blockIdx.x, gridDim.x * kWarps);
  unsigned load_task = tasks.take();
  int load_column = -p.h_parts, load_slot = 0;
  const auto load_next = [&] {
    if (lane == 0) slot_task[load_slot] = load_task;
    if (load_task < num_tasks) {
      const uint32_t to = ring + load_slot * kSlotBytes;
      const int64_t token = int64_t(load_task / p.shares) * kRows;
      if (load_column < 0) {
        const int64_t row = int64_t(p.h_parts) * kInputs * 2;
        load_rows(to, p.h + (load_column + p.h_parts) * kInputs * 2, token, p.tokens, row, kInputs / 8, lane);
      } else {
        const int column = load_task % p.shares * num_columns + load_column;
        load_rows(to, p.x + column * kRowBytes, token, p.tokens, stride, 8, lane);
      }
      if (++load_column == num_columns) load_column = -p.h_parts, load_task = tasks.take();
    }
    commit_copies();
    if (++load_slot == kStages) load_slot = 0;
  };
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) load_next();
  for (int c = threadIdx.x; c < p.channels; c += kWarps * 32) {
    bias[c] = widen(reinterpret_cast<const T*>(p.bias)[c]);
    if constexpr (kScaled) scale[c] = widen(reinterpret_cast<const T*>(p.scale)[c]);
  }
  wait_copies<kStages - 1>();
  __syncthreads();

  const uint32_t a_row = lane & 15, a_chunk = lane >> 4;
  const int b_row = (lane & 7) + ((lane >> 4) << 3), b_chunk = (lane >> 3) & 1;
  int slot = 0;
  const auto next_slot = [&] {
    wait_copies<kStages - 2>();
    __syncwarp();
    load_next();
    const int current = slot;
    if (++slot == kStages) slot = 0;
    return current * kSlotBytes;
  };
  while (true) {
    const unsigned task = slot_task[slot];
    if (task >= num_tasks) break;
    uint32_t a[kSteps][4];
    const auto load_part = [&] {
      const uint32_t at = ring + next_slot();
#pragma unroll
      for (int k = 0; k < kSteps; ++k) load_matrices(a[k], at + slot_offset(a_row, k * 2 + a_chunk));
    };
    load_part();
    if (p.h_parts > 1) {
      float sum[kSteps][4][2] = {};
      for (int part = 1;; ++part) {
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float v[2];
            unpack_word(a[k][i], v, T());
            sum[k][i][0] += v[0];
            sum[k][i][1] += v[1];
          }
        }
        if (part == p.h_parts) break;
        load_part();
      }
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
#pragma unroll
        for (int i = 0; i < 4; ++i) a[k][i] = pack_word(sum[k][i], T());
      }
    }
    const int64_t token = int64_t(task / p.shares) * kRows + (lane >> 3);
    const int first = task % p.shares * num_columns;
    char* out = p.y + token * stride + first * kRowBytes + (lane & 7) * 16;
    const int64_t left = p.tokens - token;
    for (int column = first; column < first + num_columns; ++column, out += kRowBytes) {
      char* x = ring_bytes + next_slot();
      const float* bias_at = bias + column * kColumns + (lane & 3) * 2;
      const float* scale_at = scale + column * kColumns + (lane & 3) * 2;
#pragma unroll
      for (int n = 0; n < 8; n += 2) {
        float acc[2][4];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float2 start = *reinterpret_cast<const float2*>(bias_at + (n + j) * 8);
          acc[j][0] = acc[j][2] = start.x;
          acc[j][1] = acc[j][3] = start.y;
        }
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
          uint32_t b[4];
          load_matrices(b, weight + weight_offset<kInputs>(column * kColumns + n * 8 + b_row, k * 2 + b_chunk));
          multiply<T>(acc[0], a[k], b[0], b[1]);
          multiply<T>(acc[1], a[k], b[2], b[3]);
        }
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float2 factor{1, 1};
          if constexpr (kScaled) factor = *reinterpret_cast<const float2*>(scale_at + (n + j) * 8);
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            uint32_t* word = reinterpret_cast<uint32_t*>(x + slot_offset(half * 8 + lane / 4, n + j) + (lane & 3) * 4);
            float v[2];
            unpack_word(*word, v, T());
            v[0] = kScaled ? fmaf(acc[j][half * 2], factor.x, v[0]) : v[0] + acc[j][half * 2];
            v[1] = kScaled ? fmaf(acc[j][half * 2 + 1], factor.y, v[1]) : v[1] + acc[j][half * 2 + 1];
            *word = pack_word(v, T());
          }
        }
      }
      __syncwarp();
#pragma unroll
      for (int i = 0; i < kRows / 4; ++i) {
        const uint4 v = *reinterpret_cast<const uint4*>(x + slot_offset(4 * i + (lane >> 3), lane & 7));
        if (4 * i < left) *reinterpret_cast<uint4*>(out + 4 * i * stride) = v;
      }
    }
    __syncwarp();
  }
}

// Shares of a row that are tasks of their own: fine enough for an even end, coarse enough to load h seldom.
int row_shares(int64_t channels) {
  const int64_t columns = channels / kColumns;
  for (int shares : {3, 2}) {
    if (columns % shares == 0 && columns / shares >= 4) return shares;
  }
  return 1;
}

int64_t num_tasks(const LinearResidual& call) {
  return (call.tokens + kRows - 1) / kRows * row_shares(call.channels);
}

template <typename T, int kInputs, bool kScaled>
cudaError_t launch(const LinearResidual& call, void* workspace, cudaStream_t stream) {
  const auto kernel = linear_residual_kernel<T, kInputs, kScaled>;
  const auto bytes = [](const void* p) { return static_cast<const char*>(p); };
  Params p{bytes(call.h), bytes(call.weight), bytes(call.bias), bytes(call.scale), bytes(call.x),
           static_cast<char*>(call.y), call.tokens, static_cast<int>(call.channels), row_shares(call.channels),
           static_cast<int>(call.parts), nullptr};
  return launch_tasks(kernel, p, shared_bytes<kInputs, kScaled>(p.channels), num_tasks(call), workspace, stream,
                      {.cleared = call.cleared, .early = call.early});
}

}  // namespace

cudaError_t linear_residual(const LinearResidual& call, void* workspace, cudaStream_t stream) {
  if (call.channels % kColumns) return cudaErrorNotSupported;
  const auto by_scale = [&](auto tag, auto inputs) {
    using T = typename decltype(tag)::type;
    constexpr int kInputs = decltype(inputs)::value;
    return call.scale ? launch<T, kInputs, true>(call, workspace, stream) : launch<T, kInputs, false>(call, workspace, stream);
  };
  const auto by_width = [&](auto tag) {
    switch (call.inputs) {
      case 16: return by_scale(tag, std::integral_constant<int, 16>{});
      case 32: return by_scale(tag, std::integral_constant<int, 32>{});
      case 48: return by_scale(tag, std::integral_constant<int, 48>{});
      case 64: return by_scale(tag, std::integral_constant<int, 64>{});
      default: return cudaErrorNotSupported;
    }
  };
  return call.dtype == DType::kBFloat16 ? by_width(TypeTag<__nv_bfloat16>{}) : cudaErrorNotSupported;
}

}  // namespace cgspn::cuda
