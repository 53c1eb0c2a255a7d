// Layer norm and a narrow linear layer in one pass over x.
//
// A block keeps the whole weight, multiplied by the norm's, in shared memory. A warp takes 16 tokens at a time and streams
// them in steps of 64 channels (token_tiles.cuh); from the same registers it feeds the tensor cores and sums up each
// token's mean and variance. Then y = rstd (x W' - mean colsum(W')) + (W norm_bias + bias). Memory traffic per
// token: x once, y once; the weight once a block, from L2. No barrier after the first.
//
// Where the mean of a token's first 16 channels is large against their deviation, that mean, rounded to 16 bits, is taken
// from all channels in the registers, so that neither the variance nor the product cancels; the difference of two numbers
// of one magnitude is exact.
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
  unsigned *counter, *clears;
};

template <int kOutputs>
__host__ __device__ constexpr size_t weight_bytes(int channels) {
  // 16 bytes of padding a row: rows of a matrix load fall into different banks.
  return static_cast<size_t>(kOutputs) * (channels * 2 + 16);
}

template <int kOutputs>
size_t shared_bytes(int channels) {
  return weight_bytes<kOutputs>(channels) + 2 * kOutputs * sizeof(float) + kRingBytes + 112;
}

// Fills W' and for each output colsum(W') and W norm_bias + bias.
template <typename T, int kOutputs>
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

__device__ __forceinline__ uint32_t subtract(uint32_t a, uint32_t b, __nv_bfloat16) {
  const __nv_bfloat162 out =
      __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&a), *reinterpret_cast<const __nv_bfloat162*>(&b));
  return *reinterpret_cast<const uint32_t*>(&out);
}

// What to take from all channels of a row, twice in a word; `v` are this lane's four of the row's first 16 channels.
template <typename T>
__device__ __forceinline__ uint32_t choose_pivot(const float (&v)[4]) {
  const float mean = quad_sum((v[0] + v[1]) + (v[2] + v[3])) * (1.0f / 16);
  float spread = 0;
#pragma unroll
  for (int c = 0; c < 4; ++c) spread = fmaf(v[c] - mean, v[c] - mean, spread);
  const float pivot = mean * mean > 4 * quad_sum(spread) ? mean : 0.0f;
  const float twice[2] = {pivot, pivot};
  return pack_word(twice, T());
}

template <typename T, int kOutputs>
__global__ void __launch_bounds__(kWarps * 32, 1) layer_norm_linear_kernel(const Params p) {
  constexpr int kN8 = kOutputs / 8;
  allow_next_kernel();
  if (p.clears && blockIdx.x == 0 && threadIdx.x == 0) *p.clears = 0;
  extern __shared__ __align__(128) char shared[];
  char* folded = shared;
  float* column_sum = reinterpret_cast<float*>(shared + weight_bytes<kOutputs>(p.channels));
  float* offset = column_sum + kOutputs;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  unsigned* slot_task = reinterpret_cast<unsigned*>(offset + kOutputs) + warp * kStages;
  const uint32_t rings = (shared_address(offset + kOutputs) + kWarps * kStages * sizeof(unsigned) + 127) & ~127u;
  const uint32_t ring = rings + warp * kStages * kSlotBytes;

  const unsigned num_tasks = static_cast<unsigned>((p.tokens + kRows - 1) / kRows);
  const int row_bytes = p.channels * 2 + 16, num_columns = p.channels / kColumns;
  const int64_t stride = int64_t(p.channels) * 2;

  Tasks tasks(p.counter, warp * gridDim.x + blockIdx.x, gridDim.x * kWarps);
  unsigned load_task = tasks.take();
  int load_column = 0, load_slot = 0;
  const auto load_next = [&] {
    if (lane == 0) slot_task[load_slot] = load_task;
    if (load_task < num_tasks) {
      load_rows(ring + load_slot * kSlotBytes, p.x + load_column * kRowBytes, int64_t(load_task) * kRows, p.tokens, stride, 8,
                lane);
      if (++load_column == num_columns) load_column = 0, load_task = tasks.take();
    }
    commit_copies();
    if (++load_slot == kStages) load_slot = 0;
  };
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) load_next();
  fold_weight<T, kOutputs>(p, folded, column_sum, offset);
  __syncthreads();

  const uint32_t a_row = lane & 15, a_chunk = lane >> 4;
  const uint32_t b_lane = shared_address(folded) + ((lane & 7) + ((lane >> 4) << 3)) * row_bytes + ((lane >> 3) & 1) * 16;
  int slot = 0;
  while (true) {
    const unsigned task = slot_task[slot];
    if (task >= num_tasks) break;
    float acc[kN8][4] = {};
    float sum[2] = {}, square[2] = {};
    uint32_t pivot[2];
    for (int column = 0; column < num_columns; ++column) {
      wait_copies<kStages - 2>();
      __syncwarp();
      load_next();
      const uint32_t at = ring + slot * kSlotBytes, b_at = b_lane + column * kRowBytes;
#pragma unroll
      for (int k = 0; k < kColumns / 16; ++k) {
        uint32_t a[4];
        load_matrices(a, at + slot_offset(a_row, k * 2 + a_chunk));
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float v[4];
          if (k == 0 && column == 0) {
            unpack_word(a[half], v, T());
            unpack_word(a[half + 2], v + 2, T());
            pivot[half] = choose_pivot<T>(v);
          }
          a[half] = subtract(a[half], pivot[half], T());
          a[half + 2] = subtract(a[half + 2], pivot[half], T());
          unpack_word(a[half], v, T());
          unpack_word(a[half + 2], v + 2, T());
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            sum[half] += v[c];
            square[half] = fmaf(v[c], v[c], square[half]);
          }
        }
#pragma unroll
        for (int n = 0; n < kN8; n += 2) {
          uint32_t b[4];
          load_matrices(b, b_at + n * 8 * row_bytes + k * 32);
          multiply<T>(acc[n], a, b[0], b[1]);
          multiply<T>(acc[n + 1], a, b[2], b[3]);
        }
      }
      if (++slot == kStages) slot = 0;
    }
    const float inverse = 1.0f / p.channels;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float mean = quad_sum(sum[half]) * inverse;
      const float variance = fmaxf(fmaf(-mean, mean, quad_sum(square[half]) * inverse), 0.0f);
      const float rstd = rsqrtf(variance + p.eps);
      const int64_t token = int64_t(task) * kRows + half * 8 + lane / 4;
      if (token >= p.tokens) continue;
      char* out = p.y + (token * kOutputs + (lane & 3) * 2) * 2;
#pragma unroll
      for (int n = 0; n < kN8; ++n) {
        const int first = n * 8 + (lane & 3) * 2;
        float v[2];
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          v[c] = fmaf(rstd, fmaf(-mean, column_sum[first + c], acc[n][half * 2 + c]), offset[first + c]);
        }
        *reinterpret_cast<uint32_t*>(out + n * 16) = pack_word(v, T());
      }
    }
    __syncwarp();
  }
}

int64_t num_tasks(const LayerNormLinear& call) { return (call.tokens + kRows - 1) / kRows; }

template <typename T, int kOutputs>
cudaError_t launch(const LayerNormLinear& call, void* workspace, cudaStream_t stream) {
  const auto kernel = layer_norm_linear_kernel<T, kOutputs>;
  const auto bytes = [](const void* p) { return static_cast<const char*>(p); };
  Params p{bytes(call.x), bytes(call.norm_weight), bytes(call.norm_bias), bytes(call.weight), bytes(call.bias),
           static_cast<char*>(call.y), call.tokens, static_cast<int>(call.channels), call.eps, nullptr,
           static_cast<unsigned*>(call.clears)};
  return launch_tasks(kernel, p, shared_bytes<kOutputs>(p.channels), num_tasks(call), workspace, stream,
                      {.most_blocks = call.most_blocks});
}

}  // namespace

cudaError_t layer_norm_linear(const LayerNormLinear& call, void* workspace, cudaStream_t stream) {
  if (call.channels % kColumns) return cudaErrorNotSupported;
  const auto by_width = [&](auto tag) {
    using T = typename decltype(tag)::type;
    switch (call.outputs) {
      case 16: return launch<T, 16>(call, workspace, stream);
      case 32: return launch<T, 32>(call, workspace, stream);
      case 48: return launch<T, 48>(call, workspace, stream);
      case 64: return launch<T, 64>(call, workspace, stream);
      default: return cudaErrorNotSupported;
    }
  };
  return call.dtype == DType::kBFloat16 ? by_width(TypeTag<__nv_bfloat16>{}) : cudaErrorNotSupported;
}

}  // namespace cgspn::cuda
