// One plane in one direction, by all threads of a block.
#pragma once

#include <cmath>
#include <type_traits>

#include "planar_strips.cuh"

namespace cgspn::cuda {

template <typename T>
__device__ __forceinline__ uint32_t pack_twice(float v) {
  const float pair[2] = {v, v};
  return pack_word(pair, T());
}

// max(v, floor) on all elements, NaN kept.
template <typename T>
__device__ __forceinline__ uint32_t at_least(uint32_t word, uint32_t floor) {
  if constexpr (sizeof(T) == 4) {
    float out;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(__uint_as_float(word)), "f"(__uint_as_float(floor)));
    return __float_as_uint(out);
  } else {
    using Pair = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;
    const Pair out = __hmax2_nan(*reinterpret_cast<const Pair*>(&word), *reinterpret_cast<const Pair*>(&floor));
    return *reinterpret_cast<const uint32_t*>(&out);
  }
}

// `kResident`: y is kept in shared memory.
template <typename T, int P, bool kOdd, bool kResident, bool kVertical>
struct PlanarScan : PlanarStrips<T, P, kOdd, kVertical> {
  using Strips = PlanarStrips<T, P, kOdd, kVertical>;
  using Strips::accumulate, Strips::buffer_bytes, Strips::buffers, Strips::height, Strips::kBytes, Strips::kPerWord, Strips::operands, Strips::p,
      Strips::reversed, Strips::shared, Strips::state, Strips::strip_lines, Strips::width, Strips::y;

  // Two neighbouring positions of a vertical line are read as one word.
  static constexpr bool kPositionPairs = kVertical && kBytes == 2 && P > 1 && !kOdd;
  static constexpr int kColumns = kVertical ? kPlanarOperands : 1;
  static constexpr int kPlaces = kVertical ? 1 : kPlanarOperands;

  // What a thread holds: masks of neighbours outside the line; the words of its values, in vertical strips by position,
  // in horizontal ones by row and operand, with the shift that brings the first of two values down; of two lines the
  // weights, what enters and the output gate.
  struct Thread {
    float left_mask, right_mask[P];
    uint32_t floor;  // of logits, -inf where weights are given
    uint32_t left_bits, right_bits[P];
    uint32_t own[P][kPlaces], shifts[kOdd ? P : 1][kPlaces], columns[kColumns];
    float w[3][2][P], input[2][P], gate[2][P];
  };

  __device__ __forceinline__ void begin(Thread& t, int first, int length) const {
    const bool has_left = first > 0;
    t.floor = pack_twice<T>(p.normalize ? kLogitFloor : -INFINITY);
    t.left_mask = has_left ? 1.0f : 0.0f;
    t.left_bits = has_left ? 0xffffffffu : kPositionPairs ? 0xffff0000u : 0u;
#pragma unroll
    for (int i = 0; i < P; ++i) {
      const int j = first + i;
      t.right_mask[i] = j + 1 < length ? 1.0f : 0.0f;
      t.right_bits[i] = j + 1 < length ? 0xffffffffu : 0u;
      if constexpr (kVertical) {
        t.own[i][0] = shared + min(j, length - 1 - (kPositionPairs && i % 2 == 0)) * kBytes;
      } else {
#pragma unroll
        for (int k = 0; k < kPlaces; ++k) {
          t.own[i][k] = shared + this->value_at(k, min(j, length), 0);
          if constexpr (kOdd) {
            t.shifts[i][k] = t.own[i][k] % 4 * 8;
            t.own[i][k] -= t.own[i][k] % 4;
          }
        }
      }
    }
  }

  // Values of an operand on lines 2 m and 2 m + 1 of the strip; the bits of a logit whose neighbour lies outside the line
  // are cleared, so that nothing spreads from there.
  template <int k>
  __device__ __forceinline__ void read(const Thread& t, int m, float (&v)[2][P]) const {
    const int row_bytes = width * kBytes;
    const auto refine = [&](uint32_t word, int i) {
      if (k == kLeftLogit && i == 0) word &= t.left_bits;
      if (k == kRightLogit) {
        word &= kPositionPairs ? (t.right_bits[i] & 0xffffu) | (t.right_bits[i + (P > 1)] & 0xffff0000u)
                               : t.right_bits[i];
      }
      return k < kLam ? at_least<T>(word, t.floor) : word;
    };
    if constexpr (kPositionPairs) {
#pragma unroll
      for (int l = 0; l < 2; ++l) {
#pragma unroll
        for (int i = 0; i < P; i += 2) {
          const uint32_t at = t.own[i][0] + t.columns[k] + (2 * m + l) * row_bytes;
          unpack_word(refine(load_shared(at), i), &v[l][i], T());
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < P; ++i) {
        float pair[2];
        const uint32_t at = kVertical ? t.own[i][0] + t.columns[k % kColumns] + 2 * m * row_bytes
                                      : t.own[i][k % kPlaces] + t.columns[0] + 2 * m * kBytes;
        const uint32_t next = at + (kVertical ? row_bytes : 4);
        if constexpr (kBytes == 4) {
          unpack_word(refine(load_shared(at), i), pair, T());
          unpack_word(refine(load_shared(next), i), pair + 1, T());
        } else if constexpr (kVertical) {
          unpack_word(refine(load_shared_half(at) | load_shared_half(next) << 16, i), pair, T());
        } else if constexpr (kOdd) {
          const uint32_t both = __funnelshift_r(load_shared(at), load_shared(next), t.shifts[i][k % kPlaces]);
          unpack_word(refine(both, i), pair, T());
        } else {
          unpack_word(refine(load_shared(at), i), pair, T());
        }
        v[0][i] = pair[0];
        v[1][i] = pair[1];
      }
    }
  }

  __device__ __forceinline__ void prepare(Thread& t, int m) const {
    float lam[2][P];
    read<kX>(t, m, t.input);
    read<kLam>(t, m, lam);
    read<kU>(t, m, t.gate);
    read<kLeftLogit>(t, m, t.w[0]);
    read<kMiddleLogit>(t, m, t.w[1]);
    read<kRightLogit>(t, m, t.w[2]);
#pragma unroll
    for (int l = 0; l < 2; ++l) {
#pragma unroll
      for (int i = 0; i < P; ++i) t.input[l][i] *= lam[l][i];
    }
    if (!p.normalize) return;
#pragma unroll
    for (int l = 0; l < 2; ++l) {
#pragma unroll
      for (int i = 0; i < P; ++i) {
        const float masked = i == 0 ? t.left_mask : 1.0f;
        const float e0 = fmaf(decay_clamped<T>(t.w[0][l][i]), masked, 1.0f);
        const float e1 = 1.0f + decay_clamped<T>(t.w[1][l][i]);
        const float e2 = fmaf(decay_clamped<T>(t.w[2][l][i]), t.right_mask[i], 1.0f);
        masked_weights<T>(e0, e1, e2, masked, t.right_mask[i], t.w[0][l][i], t.w[1][l][i], t.w[2][l][i]);
      }
    }
  }

  // `y_plane`: where y is kept in shared memory.
  __device__ __forceinline__ void run(uint32_t y_plane) const {
    const int lines = kVertical ? height : width, length = kVertical ? width : height;
    const int strips = (lines + strip_lines - 1) / strip_lines;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const int first = threadIdx.x * P;
    // [line parity][warp]: states at the left, then at the right ends of warps; 0 beyond the block.
    const uint32_t borders = shared + p.borders;
    const int border_line = 2 * (warps + 1);
    for (int i = threadIdx.x; i < 2 * border_line; i += blockDim.x) store_shared(borders + 4 * i, 0);
    this->fill();
    const bool at_end = lane == 0 || lane == 31;
    uint32_t border_read = borders + 4 * (border_line + (lane == 0 ? warps + 1 + warp : warp + 1));
    uint32_t border_write = borders + 4 * (lane == 0 ? warp : warps + 1 + warp + 1);
    const uint32_t swap_read = border_read ^ (border_read - 4 * border_line);
    const uint32_t swap_write = border_write ^ (border_write + 4 * border_line);

    Thread t;
    begin(t, first, length);
    float h[P] = {};
    int in_chunk = 0;
    // Where this thread's outputs of the present line go.
    const int first_line = reversed ? lines - 1 : 0;
    uint32_t y_own = y_plane + (kVertical ? first_line * p.y_pitch + first : first * p.y_pitch + first_line) * kBytes;
    const int y_step = (reversed ? -1 : 1) * (kVertical ? p.y_pitch : 1) * kBytes;
    char* y_line = kVertical && y != nullptr ? y + first_line * p.y.h + first * kBytes : nullptr;
    char* state_line = kVertical && state != nullptr ? state + first_line * p.state.h + first * kBytes : nullptr;

    // Line 2 m + l of the strip.
    const auto step = [&](auto of_two, int m) {
      constexpr int l = decltype(of_two)::value;
      float next[P];
#pragma unroll
      for (int i = 0; i < P; ++i) next[i] = t.input[l][i];
      if (in_chunk != 0) {
        const float border = __uint_as_float(load_shared(border_read));
        float left = __shfl_up_sync(0xffffffffu, h[P - 1], 1), right = __shfl_down_sync(0xffffffffu, h[0], 1);
        if (lane == 0) left = border;
        if (lane == 31) right = border;
#pragma unroll
        for (int i = 0; i < P; ++i) {
          next[i] = fmaf(t.w[1][l][i], h[i], next[i]);
          next[i] = fmaf(t.w[0][l][i], i == 0 ? left : h[i == 0 ? 0 : i - 1], next[i]);
          next[i] = fmaf(t.w[2][l][i], i == P - 1 ? right : h[i == P - 1 ? 0 : i + 1], next[i]);
        }
      }
      if (++in_chunk == p.chunk) in_chunk = 0;
      // Beyond the line's end a vertical strip gives the line's last value again, a horizontal one zeros.
#pragma unroll
      for (int i = 0; i < P; ++i) h[i] = !kVertical || first + i < length ? next[i] : 0.0f;
      if (at_end) store_shared(border_write, __float_as_uint(lane == 0 ? h[0] : h[P - 1]));
      border_read ^= swap_read;
      border_write ^= swap_write;

#pragma unroll
      for (int i = 0; i < P; ++i) {
        if (first + i >= length) continue;
        const float out = t.gate[l][i] * h[i];
        const auto staged = [&](int operand) {
          const int place = operand % kPlaces;
          return t.own[i][place] + t.columns[0] + (2 * m + l) * kBytes +
                 (kOdd ? t.shifts[i % (kOdd ? P : 1)][place] / 8 : 0);
        };
        if constexpr (kResident) {
          const uint32_t at = y_own + i * (kVertical ? 1 : p.y_pitch) * kBytes;
          store_value<T>(at, accumulate ? load_value<T>(at) + out : out);
        } else if (y != nullptr) {
          if constexpr (kVertical) {
            reinterpret_cast<T*>(y_line)[i] = narrow<T>(out);
          } else {
            store_value<T>(staged(kX), out);
          }
        }
        if (state != nullptr) {
          if constexpr (kVertical) {
            reinterpret_cast<T*>(state_line)[i] = narrow<T>(h[i]);
          } else {
            store_value<T>(staged(kMiddleLogit), h[i]);
          }
        }
      }
      if constexpr (kResident) y_own += y_step;
      if constexpr (kVertical && !kResident) y_line += reversed ? -p.y.h : p.y.h;
      if constexpr (kVertical) state_line += reversed ? -p.state.h : p.state.h;
    };
    constexpr std::integral_constant<int, 0> kFirst;
    constexpr std::integral_constant<int, 1> kSecond;

    const bool plain = this->inside() && (kVertical || p.same_skew);
    const bool stages_y = !kVertical && !kResident && y != nullptr, stages_state = !kVertical && state != nullptr;
    const auto strip_of = [&](int n) { return reversed ? strips - 1 - n : n; };
    for (int n = 1 - buffers; n <= strips; ++n) {
      if (n >= 0) {
        wait_copies<0>();
        __syncthreads();
      }
      if ((stages_y || stages_state) && n > 0) {
        const int buffer = (n - 1) % buffers;
        if (stages_y) this->write_out(strip_of(n - 1), buffer, kX);
        if (stages_state) this->write_out(strip_of(n - 1), buffer, kMiddleLogit);
        __syncthreads();
      }
      const int ahead = n + buffers - 1;
      if (ahead < strips) this->load(strip_of(ahead), ahead % buffers, plain);
      commit_copies();
      if (n < 0 || n == strips) continue;
      if (buffers == 1) {
        wait_copies<0>();
        __syncthreads();
      }

      const int strip = strip_of(n), count = min(strip_lines, lines - strip * strip_lines), pairs = (count + 1) / 2;
      const int buffer_at = n % buffers * buffer_bytes;
#pragma unroll
      for (int k = 0; k < kColumns; ++k) t.columns[k] = buffer_at + (kVertical ? this->column_at(k, strip) : 0);
      for (int q = -1; q < pairs; ++q) {
        const int m = reversed ? pairs - 1 - q : q;
        if (q >= 0) {
          const bool both = 2 * m + 1 < count;
          if (!reversed) {
            step(kFirst, m);
            if (both) {
              __syncthreads();
              step(kSecond, m);
            }
          } else {
            if (both) {
              step(kSecond, m);
              __syncthreads();
            }
            step(kFirst, m);
          }
        }
        if (q + 1 == pairs) break;
        prepare(t, reversed ? m - 1 : m + 1);
        if (q >= 0) __syncthreads();
      }
    }
  }
};

}  // namespace cgspn::cuda
