// What the two latent forward kernels share: parameters, weights in registers, and how calls are turned into passes.
#pragma once

#include <algorithm>
#include <cstdint>

#include "async.cuh"
#include "geometry.cuh"
#include "latent_forward.cuh"
#include "numerics.cuh"
#include "tensor_core.cuh"
#include "vector.cuh"

namespace cgspn::cuda {

constexpr int kKinds = 5;  // three logits, lam, u
enum { kLam = 3, kU = 4 };
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kPowerMax = 40.0f * kLog2E;
// Index of position 0 in a row of the state; the entry before it and those after the line hold 0, or what a neighbouring
// block sends.
constexpr int kStateOrigin = 4;

struct LatentStrides {
  int64_t b = 0, h = 0, w = 0;
};

struct LatentPass {
  char* y;
  bool vertical, reversed;
  int lines, length;
};

// Strides in bytes; one pass a direction, in the order of the weight's rows.
struct LatentParams {
  const char* x;
  const char* weight;
  const char* bias;
  LatentStrides x_stride, y_stride;
  int64_t chunk;
  int num_directions, affinity_channels;
  int channel_warps, groups, split;
  int rows, state_stride;  // positions that shared memory holds; floats of a row of the state
  LatentPass passes[kMaxDirections];
};

__host__ __device__ constexpr int padded_row(int channels) { return 2 * channels + 16; }

// Positions of a block's share of the longest line, in whole tiles of 8.
inline int latent_positions(const LineScanShape& s, int split) {
  int64_t longest = 0;
  for (int d = 0; d < s.num_directions; ++d) longest = std::max(longest, line_length(s, s.directions[d]));
  return (static_cast<int>((longest + 7) / 8) + split - 1) / split * 8;
}

// At least 8 entries more than positions, and 8 modulo 32 so that the rows of a fragment fall into different banks.
inline int latent_state_stride(int positions) { return (positions + 31) / 32 * 32 + 8; }

__device__ __forceinline__ float exp2_approx(float v) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
}

// exp(-max(a, -40)) for -a in units of log 2; NaN passes.
__device__ __forceinline__ float decay_of_power(float power) {
  float clamped;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(clamped) : "f"(power), "f"(kPowerMax));
  return exp2_approx(clamped);
}

// A warp's weights, as fragments of 16 rows: one a parameter for 16 channels, or two parameters of 8 channels in each.
template <typename T, int K, int kGroup>
struct LatentWeights {
  static constexpr int kSteps = K / 16, kRowsOf = kGroup / 8;
  static constexpr int kFragments = kGroup == 16 ? kKinds : (kKinds + 1) / 2;
  uint32_t factor[kFragments][kSteps][4];
  float bias[3][kRowsOf];              // of the logits, in units of -log 2
  float start[kFragments][4] = {};     // what the first product of a fragment adds to: the gates' bias

  __device__ __forceinline__ void load(const LatentParams& p, int direction, int channel, int lane) {
    const int g = lane / 4, q = lane % 4, affinity = p.affinity_channels;
#pragma unroll
    for (int fragment = 0; fragment < kFragments; ++fragment) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int kind = kGroup == 16 ? fragment : 2 * fragment + r;
        const int c = channel + g + (kGroup == 16 ? 8 * r : 0);
        const int row = kind < kLam ? (direction * 3 + kind) * affinity + (affinity == 1 ? 0 : c)
                                    : p.num_directions * (3 * affinity + (kind - kLam) * K) + direction * K + c;
        const char* const w = p.weight + (static_cast<int64_t>(row) * K + 2 * q) * 2;
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          factor[fragment][s][r] = kind < kKinds ? __ldg(reinterpret_cast<const uint32_t*>(w + s * 32)) : 0;
          factor[fragment][s][2 + r] = kind < kKinds ? __ldg(reinterpret_cast<const uint32_t*>(w + s * 32 + 16)) : 0;
        }
        if (kind < kLam) {
          bias[kind][kGroup == 16 ? r : 0] = widen(reinterpret_cast<const T*>(p.bias)[row]) * -kLog2E;
        } else if (kind < kKinds) {
          start[fragment][2 * r] = start[fragment][2 * r + 1] = widen(reinterpret_cast<const T*>(p.bias)[row]);
        }
      }
    }
  }

  // acc, the parameters of 8 positions, gets step `s` of the product with `b`.
  __device__ __forceinline__ void product(float (&acc)[kFragments][4], const uint32_t (&b)[kSteps][2], int s) const {
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
      if (s == 0) {
        multiply_from<T>(acc[f], factor[f][s], b[s][0], b[s][1], start[f]);
      } else {
        multiply<T>(acc[f], factor[f][s], b[s][0], b[s][1]);
      }
    }
  }
};

// Eight positions of x as the other factor; `from` is where the lane points ldmatrix at.
template <int kSteps>
__device__ __forceinline__ void load_factor(uint32_t (&b)[kSteps][2], uint32_t from) {
#pragma unroll
  for (int s = 0; s + 1 < kSteps; s += 2) {
    uint32_t four[4];
    load_matrices(four, from + s * 32);
    b[s][0] = four[0], b[s][1] = four[1], b[s + 1][0] = four[2], b[s + 1][1] = four[3];
  }
  if constexpr (kSteps % 2 == 1) load_matrices(b[kSteps - 1], from + (kSteps - 1) * 32);
}

// Copies lines of x by `threads` threads, 16 bytes a thread and K / 8 threads a position, into a ring of kStages lines.
template <int K, int kStages>
class LineCopies {
 public:
  static constexpr int kRow = padded_row(K), kPieces = K / 8;
  __device__ __forceinline__ LineCopies(const LatentParams& p, const LatentPass& pass, int64_t image, int first_position, int length,
                                        uint32_t ring, int thread, int threads)
      : ring_(ring), line_bytes_(p.rows * kRow), lines_(pass.lines), length_(length), rows_(threads / kPieces) {
    const int row = thread / kPieces, piece = thread % kPieces;
    first_ = row < rows_ ? row : p.rows;
    const int64_t line = pass.vertical ? p.x_stride.h : p.x_stride.w, place = pass.vertical ? p.x_stride.w : p.x_stride.h;
    step_ = pass.reversed ? -line : line;
    rows_step_ = rows_ * place;
    to_ = first_ * kRow + piece * 16;
    from_ = p.x + image * p.x_stride.b + (pass.reversed ? (pass.lines - 1) * line : 0) + (first_position + first_) * place + piece * 16;
  }

  __device__ __forceinline__ void next() {
    if (copied_ < lines_) {
      const char* from = from_;
      uint32_t to = ring_ + stage_ * line_bytes_ + to_;
      for (int row = first_; row < length_; row += rows_) {
        copy_async(to, from);
        from += rows_step_;
        to += rows_ * kRow;
      }
      from_ += step_;
    }
    ++copied_;
    stage_ = stage_ + 1 == kStages ? 0 : stage_ + 1;
    commit_copies();
  }

 private:
  uint32_t ring_, to_;
  int line_bytes_, lines_, length_, rows_, first_, copied_ = 0, stage_ = 0;
  int64_t step_, rows_step_;
  const char* from_;
};

// The kernel whose warps have one tile each, for layouts of 8 channels a warp (latent_one_tile.cu).
cudaError_t latent_one_tile(const LatentForward& call, const LatentLayout& layout, const LatentParams& params, unsigned blocks,
                            cudaStream_t stream);
size_t latent_one_tile_shared_bytes(const LineScanShape& shape, const LatentLayout& layout);

}  // namespace cgspn::cuda
