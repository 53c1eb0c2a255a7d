// A linear layer from a narrow space, its bias, LayerScale and the residual, in one pass over x.
//
// A block keeps the whole weight in shared memory. A warp owns tiles of 16 kTiles tokens: it loads their rows of h into
// registers, then streams x in steps of 64 channels through its ring (token_tiles.cuh), adds the tensor cores' products
// to it in place and writes it out in 16-byte pieces. Memory traffic per token: h and x once, y once; the weight once a
// block, from L2. No barrier after the first.
#include <algorithm>

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
  int channels;
};

// A row of the weight: 64 inputs are swizzled, fewer are padded so that eight rows fall into different banks.
template <int kInputs>
constexpr int kWeightRow = kInputs == 64 ? 128 : kInputs * 2 + 16;

template <int kInputs>
__device__ __forceinline__ uint32_t weight_offset(int row, int chunk) {
  return row * kWeightRow<kInputs> + ((kInputs == 64 ? chunk ^ (row & 7) : chunk) << 4);
}

template <int kInputs, int kTiles, int kWarps, int kStages, bool kScaled>
constexpr size_t shared_bytes(int channels) {
  const size_t ring = kWarps * kStages * kTiles * 16 * kRowBytes;
  return static_cast<size_t>(channels) * (kWeightRow<kInputs> + (kScaled ? 8 : 4)) + ring + 112;
}

template <typename T, int kInputs, int kTiles, int kWarps, int kStages, bool kScaled>
__global__ void __launch_bounds__(kWarps * 32, 1) linear_residual_kernel(const Params p) {
  constexpr int kRows = 16 * kTiles, kSteps = kInputs / 16;
  extern __shared__ __align__(128) char shared[];
  const uint32_t weight = shared_address(shared);
  float* bias = reinterpret_cast<float*>(shared + p.channels * kWeightRow<kInputs>);
  float* scale = bias + (kScaled ? p.channels : 0);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t ring = ((shared_address(scale + p.channels) + 127) & ~127u) + warp * kStages * kRows * kRowBytes;
  const char* ring_bytes = shared + (ring - weight);

  for (int i = threadIdx.x; i < p.channels * (kInputs / 8); i += kWarps * 32) {
    copy_async(weight + weight_offset<kInputs>(i / (kInputs / 8), i % (kInputs / 8)), p.weight + int64_t(i) * 16);
  }
  commit_copies();

  const int64_t tiles = (p.tokens + kRows - 1) / kRows, step = int64_t(gridDim.x) * kWarps;
  const int num_columns = p.channels / kColumns;
  const int64_t stride = int64_t(p.channels) * 2;

  // The first slot of a tile holds h, the others 64 channels of x each.
  int64_t load_tile = int64_t(warp) * gridDim.x + blockIdx.x;
  int load_column = -1, load_slot = 0;
  const auto load_next = [&] {
    if (load_tile < tiles) {
      const uint32_t to = ring + load_slot * kRows * kRowBytes;
      if (load_column < 0) {
        load_rows<kRows>(to, p.h, load_tile * kRows, p.tokens, kInputs * 2, kInputs / 8, lane);
      } else {
        load_rows<kRows>(to, p.x + load_column * kRowBytes, load_tile * kRows, p.tokens, stride, 8, lane);
      }
      if (++load_column == num_columns) load_column = -1, load_tile += step;
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
    return current * kRows * kRowBytes;
  };
  for (int64_t tile = int64_t(warp) * gridDim.x + blockIdx.x; tile < tiles; tile += step) {
    uint32_t a[kTiles][kSteps][4];
    const uint32_t h_at = ring + next_slot();
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int k = 0; k < kSteps; ++k) load_matrices(a[m][k], h_at + slot_offset(m * 16 + a_row, k * 2 + a_chunk));
    }
    char* out = p.y + (tile * kRows + (lane >> 3)) * stride + (lane & 7) * 16;
    const int64_t left = p.tokens - tile * kRows - (lane >> 3);
    for (int column = 0; column < num_columns; ++column, out += kRowBytes) {
      const int at = next_slot();
      char* x = const_cast<char*>(ring_bytes) + at;
      const float* bias_at = bias + column * kColumns + (lane & 3) * 2;
      const float* scale_at = scale + column * kColumns + (lane & 3) * 2;
#pragma unroll
      for (int n = 0; n < 8; n += 2) {
        float acc[kTiles][2][4];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float2 start = *reinterpret_cast<const float2*>(bias_at + (n + j) * 8);
#pragma unroll
          for (int m = 0; m < kTiles; ++m) {
            acc[m][j][0] = acc[m][j][2] = start.x;
            acc[m][j][1] = acc[m][j][3] = start.y;
          }
        }
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
          uint32_t b[4];
          load_matrices(b, weight + weight_offset<kInputs>(column * kColumns + n * 8 + b_row, k * 2 + b_chunk));
#pragma unroll
          for (int m = 0; m < kTiles; ++m) {
            multiply<T>(acc[m][0], a[m][k], b[0], b[1]);
            multiply<T>(acc[m][1], a[m][k], b[2], b[3]);
          }
        }
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float2 factor{1, 1};
          if constexpr (kScaled) factor = *reinterpret_cast<const float2*>(scale_at + (n + j) * 8);
#pragma unroll
          for (int m = 0; m < kTiles; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              const int row = m * 16 + half * 8 + lane / 4;
              uint32_t* word = reinterpret_cast<uint32_t*>(x + slot_offset(row, n + j) + (lane & 3) * 4);
              float v[2];
              unpack_word(*word, v, T());
              v[0] = kScaled ? fmaf(acc[m][j][half * 2], factor.x, v[0]) : v[0] + acc[m][j][half * 2];
              v[1] = kScaled ? fmaf(acc[m][j][half * 2 + 1], factor.y, v[1]) : v[1] + acc[m][j][half * 2 + 1];
              *word = pack_word(v, T());
            }
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
  }
}

template <typename T, int kInputs, int kTiles, int kWarps, int kStages, bool kScaled>
cudaError_t launch(const LinearResidual& call, cudaStream_t stream) {
  const auto kernel = linear_residual_kernel<T, kInputs, kTiles, kWarps, kStages, kScaled>;
  const auto bytes = [](const void* p) { return static_cast<const char*>(p); };
  const Params p{bytes(call.h), bytes(call.weight), bytes(call.bias), bytes(call.scale), bytes(call.x),
                 static_cast<char*>(call.y), call.tokens, static_cast<int>(call.channels)};
  const int64_t tiles = (call.tokens + 16 * kTiles - 1) / (16 * kTiles);
  const size_t shared = shared_bytes<kInputs, kTiles, kWarps, kStages, kScaled>(p.channels);
  int blocks = 0;
  if (cudaError_t e = resident_blocks(kernel, kWarps * 32, shared, blocks)) return e;
  kernel<<<static_cast<unsigned>(std::min<int64_t>(blocks, tiles)), kWarps * 32, shared, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace

cudaError_t linear_residual(const LinearResidual& call, cudaStream_t stream) {
  if (call.channels % kColumns) return cudaErrorNotSupported;
  const auto by_scale = [&](auto tag, auto inputs) {
    using T = typename decltype(tag)::type;
    constexpr int kInputs = decltype(inputs)::value;
    return call.scale ? launch<T, kInputs, 1, 12, 3, true>(call, stream) : launch<T, kInputs, 1, 12, 3, false>(call, stream);
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
  if (call.dtype == DType::kFloat16) return by_width(TypeTag<__half>{});
  if (call.dtype == DType::kBFloat16) return by_width(TypeTag<__nv_bfloat16>{});
  return cudaErrorNotSupported;
}

}  // namespace cgspn::cuda
