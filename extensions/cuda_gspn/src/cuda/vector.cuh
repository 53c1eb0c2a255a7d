// 16 bytes of neighbouring channels as float32 values.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

namespace cgspn::cuda {

template <typename T>
constexpr int kLanes = 16 / sizeof(T);

__device__ __forceinline__ void unpack_word(uint32_t word, float* out, __nv_bfloat16) {
  out[0] = __uint_as_float(word << 16);
  out[1] = __uint_as_float(word & 0xffff0000u);
}
__device__ __forceinline__ void unpack_word(uint32_t word, float* out, __half) {
  const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&word));
  out[0] = pair.x;
  out[1] = pair.y;
}
__device__ __forceinline__ void unpack_word(uint32_t word, float* out, float) { out[0] = __uint_as_float(word); }

__device__ __forceinline__ uint32_t pack_word(const float* in, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(in[0], in[1]);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ uint32_t pack_word(const float* in, __half) {
  const __half2 pair = __floats2half2_rn(in[0], in[1]);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ uint32_t pack_word(const float* in, float) { return __float_as_uint(in[0]); }

// max(v, -40) on all elements, NaN kept.
template <typename T>
__device__ __forceinline__ uint32_t clamp_word(uint32_t word) {
  if constexpr (sizeof(T) == 4) {
    float out;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(__uint_as_float(word)), "f"(-40.0f));
    return __float_as_uint(out);
  } else if constexpr (std::is_same_v<T, __half>) {
    const __half2 out = __hmax2_nan(*reinterpret_cast<const __half2*>(&word), __float2half2_rn(-40.0f));
    return *reinterpret_cast<const uint32_t*>(&out);
  } else {
    const __nv_bfloat162 out = __hmax2_nan(*reinterpret_cast<const __nv_bfloat162*>(&word), __float2bfloat162_rn(-40.0f));
    return *reinterpret_cast<const uint32_t*>(&out);
  }
}

// Whether any element is below -40; NaN is not.
template <typename T>
__device__ __forceinline__ bool any_below_floor(uint4 raw) {
  if constexpr (sizeof(T) == 4) {
    return __uint_as_float(raw.x) < -40.0f || __uint_as_float(raw.y) < -40.0f || __uint_as_float(raw.z) < -40.0f ||
           __uint_as_float(raw.w) < -40.0f;
  } else {
    const auto inside = [](const uint32_t& word) {
      if constexpr (std::is_same_v<T, __half>) {
        return __hbgeu2(*reinterpret_cast<const __half2*>(&word), __float2half2_rn(-40.0f));
      } else {
        return __hbgeu2(*reinterpret_cast<const __nv_bfloat162*>(&word), __float2bfloat162_rn(-40.0f));
      }
    };
    return !(inside(raw.x) && inside(raw.y) && inside(raw.z) && inside(raw.w));
  }
}

template <typename T>
__device__ __forceinline__ uint4 clamp_logits(uint4 raw) {
  return {clamp_word<T>(raw.x), clamp_word<T>(raw.y), clamp_word<T>(raw.z), clamp_word<T>(raw.w)};
}

template <typename T>
__device__ __forceinline__ void unpack(uint4 raw, float (&out)[kLanes<T>]) {
  constexpr int kPer = kLanes<T> / 4;
  unpack_word(raw.x, out, T());
  unpack_word(raw.y, out + kPer, T());
  unpack_word(raw.z, out + 2 * kPer, T());
  unpack_word(raw.w, out + 3 * kPer, T());
}

template <typename T>
__device__ __forceinline__ uint4 pack(const float (&in)[kLanes<T>]) {
  constexpr int kPer = kLanes<T> / 4;
  return {pack_word(in, T()), pack_word(in + kPer, T()), pack_word(in + 2 * kPer, T()), pack_word(in + 3 * kPer, T())};
}

// 1 in every channel, read in place of an absent gate.
__device__ const uint4 kOnes[3] = {{0x3c003c00, 0x3c003c00, 0x3c003c00, 0x3c003c00},
                                   {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80},
                                   {0x3f800000, 0x3f800000, 0x3f800000, 0x3f800000}};
template <typename T>
__device__ __forceinline__ const char* ones() {
  return reinterpret_cast<const char*>(kOnes + (sizeof(T) == 4 ? 2 : std::is_same_v<T, __half> ? 0 : 1));
}

// A pointer to a thread's channels on the current line.
struct Walker {
  const char* at;
  int64_t stride;
  __device__ __forceinline__ void advance() { at += stride; }
};

}  // namespace cgspn::cuda
