// Layer norm and a narrow linear layer in one pass over x.
//
// A block keeps the whole weight, multiplied by the norm's, in shared memory. A warp owns tiles of 16 kTiles tokens and
// streams them in steps of 64 channels (token_tiles.cuh); from the same registers it feeds the tensor cores and sums up
// each token's mean and variance. Then y = rstd (x W' - mean colsum(W')) + (W norm_bias + bias). Memory traffic per
// token: x once, y once; the weight once a block, from L2. No barrier after the first.
//
// The variance is taken about the mean of the token's first 16 channels, so a mean that is large against the deviation
// costs no digits.
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
  const char *x, *norm_weight, *norm_bias, *weight, *bias;
  char* y;
  int64_t tokens;
  int channels;
  float eps;
};

template <int kOutputs>
__host__ __device__ constexpr size_t weight_bytes(int channels) {
  // 16 bytes of padding a row: rows of a matrix load fall into different banks.
  return static_cast<size_t>(kOutputs) * (channels * 2 + 16);
}

template <int kOutputs, int kTiles, int kWarps, int kStages>
constexpr size_t shared_bytes(int channels) {
  return weight_bytes<kOutputs>(channels) + 2 * kOutputs * sizeof(float) + kWarps * kStages * kTiles * 16 * kRowBytes + 112;
}

// Fills W' and for each output colsum(W') and W norm_bias + bias.
template <typename T, int kOutputs, int kWarps>
__device__ __forceinline__ void fold_weight(const Params& p, char* folded, float* column_sum, float* offset) {
  constexpr int kPerWarp = (kOutputs + kWarps - 1) / kWarps;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row_bytes = p.channels * 2 + 16;
  float sums[kPerWarp] = {}, offsets[kPerWarp] = {};
#pragma unroll 2
  for (int chunk = lane; chunk < p.channels / 8; chunk += 32) {
    uint4 raw[kPerWarp];
#pragma unroll
    for (int i = 0; i < kPerWarp; ++i) {
      const int n = warp + i * kWarps;
      if (n < kOutputs) raw[i] = __ldg(reinterpret_cast<const uint4*>(p.weight + (int64_t(n) * p.channels + chunk * 8) * 2));
    }
    float gain[8], shift[8];
    unpack<T>(__ldg(reinterpret_cast<const uint4*>(p.norm_weight) + chunk), gain);
    unpack<T>(__ldg(reinterpret_cast<const uint4*>(p.norm_bias) + chunk), shift);
#pragma unroll
    for (int i = 0; i < kPerWarp; ++i) {
      const int n = warp + i * kWarps;
      if (n >= kOutputs) break;
      float w[8], rounded[8];
      unpack<T>(raw[i], w);
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        offsets[i] = fmaf(w[c], shift[c], offsets[i]);
        w[c] *= gain[c];
      }
      const uint4 packed = pack<T>(w);
      unpack<T>(packed, rounded);
#pragma unroll
      for (int c = 0; c < 8; ++c) sums[i] += rounded[c];
      *reinterpret_cast<uint4*>(folded + n * row_bytes + chunk * 16) = packed;
    }
  }
#pragma unroll
  for (int i = 0; i < kPerWarp; ++i) {
    const int n = warp + i * kWarps;
    if (n >= kOutputs) break;
#pragma unroll
    for (int delta = 16; delta > 0; delta /= 2) {
      sums[i] += __shfl_xor_sync(0xffffffff, sums[i], delta);
      offsets[i] += __shfl_xor_sync(0xffffffff, offsets[i], delta);
    }
    if (lane == 0) {
      column_sum[n] = sums[i];
      offset[n] = offsets[i] + widen(reinterpret_cast<const T*>(p.bias)[n]);
    }
  }
}

template <typename T, int kOutputs, int kTiles, int kWarps, int kStages>
__global__ void __launch_bounds__(kWarps * 32, 1) layer_norm_linear_kernel(const Params p) {
  constexpr int kRows = 16 * kTiles, kN8 = kOutputs / 8;
  extern __shared__ __align__(128) char shared[];
  char* folded = shared;
  float* column_sum = reinterpret_cast<float*>(shared + weight_bytes<kOutputs>(p.channels));
  float* offset = column_sum + kOutputs;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t ring = ((shared_address(offset + kOutputs) + 127) & ~127u) + warp * kStages * kRows * kRowBytes;

  const int64_t tiles = (p.tokens + kRows - 1) / kRows, step = int64_t(gridDim.x) * kWarps;
  const int row_bytes = p.channels * 2 + 16, num_columns = p.channels / kColumns;
  const int64_t stride = int64_t(p.channels) * 2;

  int64_t load_tile = int64_t(warp) * gridDim.x + blockIdx.x;
  int load_column = 0, load_slot = 0;
  const auto load_next = [&] {
    if (load_tile < tiles) {
      load_rows<kRows>(ring + load_slot * kRows * kRowBytes, p.x + load_column * kRowBytes, load_tile * kRows, p.tokens, stride,
                       8, lane);
      if (++load_column == num_columns) load_column = 0, load_tile += step;
    }
    commit_copies();
    if (++load_slot == kStages) load_slot = 0;
  };
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) load_next();
  fold_weight<T, kOutputs, kWarps>(p, folded, column_sum, offset);
  __syncthreads();

  const uint32_t a_row = lane & 15, a_chunk = lane >> 4;
  const uint32_t b_lane = shared_address(folded) + ((lane & 7) + ((lane >> 4) << 3)) * row_bytes + ((lane >> 3) & 1) * 16;
  int slot = 0;
  for (int64_t tile = int64_t(warp) * gridDim.x + blockIdx.x; tile < tiles; tile += step) {
    float acc[kTiles][kN8][4] = {};
    float pivot[kTiles][2], sum[kTiles][2] = {}, square[kTiles][2] = {};
    for (int column = 0; column < num_columns; ++column) {
      wait_copies<kStages - 2>();
      __syncwarp();
      load_next();
      const uint32_t at = ring + slot * kRows * kRowBytes, b_at = b_lane + column * kRowBytes;
#pragma unroll
      for (int k = 0; k < kColumns / 16; ++k) {
        uint32_t a[kTiles][4];
#pragma unroll
        for (int m = 0; m < kTiles; ++m) load_matrices(a[m], at + slot_offset(m * 16 + a_row, k * 2 + a_chunk));
#pragma unroll
        for (int n = 0; n < kN8; n += 2) {
          uint32_t b[4];
          load_matrices(b, b_at + n * 8 * row_bytes + k * 32);
#pragma unroll
          for (int m = 0; m < kTiles; ++m) {
            multiply<T>(acc[m][n], a[m], b[0], b[1]);
            multiply<T>(acc[m][n + 1], a[m], b[2], b[3]);
          }
        }
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float v[4];
            unpack_word(a[m][half], v, T());
            unpack_word(a[m][half + 2], v + 2, T());
            if (k == 0 && column == 0) pivot[m][half] = quad_sum((v[0] + v[1]) + (v[2] + v[3])) * (1.0f / 16);
#pragma unroll
            for (int c = 0; c < 4; ++c) {
              const float d = v[c] - pivot[m][half];
              sum[m][half] += d;
              square[m][half] = fmaf(d, d, square[m][half]);
            }
          }
        }
      }
      if (++slot == kStages) slot = 0;
    }
    const float inverse = 1.0f / p.channels;
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float off_pivot = quad_sum(sum[m][half]) * inverse;
        const float variance = fmaxf(fmaf(-off_pivot, off_pivot, quad_sum(square[m][half]) * inverse), 0.0f);
        const float rstd = rsqrtf(variance + p.eps), mean = pivot[m][half] + off_pivot;
        const int64_t token = tile * kRows + m * 16 + half * 8 + lane / 4;
        if (token >= p.tokens) continue;
        char* out = p.y + (token * kOutputs + (lane & 3) * 2) * 2;
#pragma unroll
        for (int n = 0; n < kN8; ++n) {
          const int first = n * 8 + (lane & 3) * 2;
          float v[2];
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            v[c] = fmaf(rstd, fmaf(-mean, column_sum[first + c], acc[m][n][half * 2 + c]), offset[first + c]);
          }
          *reinterpret_cast<uint32_t*>(out + n * 16) = pack_word(v, T());
        }
      }
    }
  }
}

template <typename T, int kOutputs, int kTiles, int kWarps, int kStages>
cudaError_t launch(const LayerNormLinear& call, cudaStream_t stream) {
  const auto kernel = layer_norm_linear_kernel<T, kOutputs, kTiles, kWarps, kStages>;
  const auto bytes = [](const void* p) { return static_cast<const char*>(p); };
  const Params p{bytes(call.x), bytes(call.norm_weight), bytes(call.norm_bias), bytes(call.weight), bytes(call.bias),
                 static_cast<char*>(call.y), call.tokens, static_cast<int>(call.channels), call.eps};
  const size_t shared = shared_bytes<kOutputs, kTiles, kWarps, kStages>(p.channels);
  const int64_t tiles = (call.tokens + 16 * kTiles - 1) / (16 * kTiles);
  int blocks = 0;
  if (cudaError_t e = resident_blocks(kernel, kWarps * 32, shared, blocks)) return e;
  kernel<<<static_cast<unsigned>(std::min<int64_t>(blocks, tiles)), kWarps * 32, shared, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace

cudaError_t layer_norm_linear(const LayerNormLinear& call, cudaStream_t stream) {
  if (call.channels % kColumns) return cudaErrorNotSupported;
  const auto by_width = [&](auto tag) {
    using T = typename decltype(tag)::type;
    switch (call.outputs) {
      case 16: return launch<T, 16, 1, 12, 3>(call, stream);
      case 32: return launch<T, 32, 1, 12, 3>(call, stream);
      case 48: return launch<T, 48, 1, 12, 3>(call, stream);
      case 64: return launch<T, 64, 1, 12, 3>(call, stream);
      default: return cudaErrorNotSupported;
    }
  };
  if (call.dtype == DType::kFloat16) return by_width(TypeTag<__half>{});
  if (call.dtype == DType::kBFloat16) return by_width(TypeTag<__nv_bfloat16>{});
  return cudaErrorNotSupported;
}

}  // namespace cgspn::cuda
