// What a thread of the bulk-copy kernels reads, writes and sends: 4, 8 or 16 bytes of neighbouring channels.
#pragma once

#include "cuda/async.cuh"
#include "cuda/numerics.cuh"
#include "cuda/vector.cuh"

namespace cgspn::cuda {

// 4, 8 or 16 bytes of neighbouring channels.
template <int kBytes>
struct alignas(kBytes) Words {
  uint32_t words[kBytes / 4];
};

template <int kBytes>
__device__ __forceinline__ Words<kBytes> load_words(const unsigned char* shared) {
  return *reinterpret_cast<const Words<kBytes>*>(shared);
}

template <typename T, int N>
__device__ __forceinline__ void unpack_words(const Words<N * sizeof(T)>& raw, float (&out)[N]) {
#pragma unroll
  for (int i = 0; i < N * static_cast<int>(sizeof(T)) / 4; ++i) {
    unpack_word(raw.words[i], out + i * (4 / sizeof(T)), T());
  }
}

template <typename T, int N>
__device__ __forceinline__ Words<N * sizeof(T)> pack_words(const float (&in)[N]) {
  Words<N * sizeof(T)> raw;
#pragma unroll
  for (int i = 0; i < N * static_cast<int>(sizeof(T)) / 4; ++i) raw.words[i] = pack_word(in + i * (4 / sizeof(T)), T());
  return raw;
}

// What a thread with N channels sends to its neighbours at once.
template <int N>
using Exchanged = std::conditional_t<N == 2, float2, float4>;

__device__ __forceinline__ float lane(const float2& v, int i) { return i == 0 ? v.x : v.y; }
__device__ __forceinline__ float lane(const float4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}
__device__ __forceinline__ float2 as_unit(const float* v, float2) { return make_float2(v[0], v[1]); }
__device__ __forceinline__ float4 as_unit(const float* v, float4) { return make_float4(v[0], v[1], v[2], v[3]); }

template <typename T>
__device__ __forceinline__ bool word_below_floor(uint32_t word) {
  if constexpr (sizeof(T) == 4) {
    return __uint_as_float(word) < -40.0f;
  } else if constexpr (std::is_same_v<T, __half>) {
    return !__hbgeu2(*reinterpret_cast<const __half2*>(&word), __float2half2_rn(-40.0f));
  } else {
    return !__hbgeu2(*reinterpret_cast<const __nv_bfloat162*>(&word), __float2bfloat162_rn(-40.0f));
  }
}

// One logit, or weight, that all channels share.
template <typename T, bool kClamp>
__device__ __forceinline__ float load_logit(const unsigned char* shared) {
  const float v = widen(*reinterpret_cast<const T*>(shared));
  if constexpr (!kClamp) return v;
  float clamped;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(clamped) : "f"(v), "f"(kLogitFloor));
  return clamped;
}

template <int kBytes>
__device__ __forceinline__ void store_words(void* p, const Words<kBytes>& v, uint64_t policy) {
  if constexpr (kBytes == 16) {
    store_global(p, make_uint4(v.words[0], v.words[1], v.words[2], v.words[3]), policy);
  } else if constexpr (kBytes == 8) {
    asm volatile("st.global.L2::cache_hint.v2.b32 [%0], {%1, %2}, %3;" ::"l"(p), "r"(v.words[0]), "r"(v.words[1]),
                 "l"(policy)
                 : "memory");
  } else {
    asm volatile("st.global.L2::cache_hint.b32 [%0], %1, %2;" ::"l"(p), "r"(v.words[0]), "l"(policy) : "memory");
  }
}

}  // namespace cgspn::cuda
