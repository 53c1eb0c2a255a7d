// Element types, their accumulation types and the row-stochastic normalisation shared by all kernels.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace cgspn::cuda {

template <typename T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <typename T>
using Accumulator = typename AccumulatorOf<T>::type;

__device__ __forceinline__ float widen(__half v) { return __half2float(v); }
__device__ __forceinline__ float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ double widen(double v) { return v; }

template <typename T>
__device__ __forceinline__ T narrow(Accumulator<T> v);
template <>
__device__ __forceinline__ __half narrow<__half>(float v) { return __float2half_rn(v); }
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float v) { return __float2bfloat16_rn(v); }
template <>
__device__ __forceinline__ float narrow<float>(float v) { return v; }
template <>
__device__ __forceinline__ double narrow<double>(double v) { return v; }

// exp and 1 / d as accurate as T needs: the hardware approximations lie far below half and bfloat16 rounding,
// float32 takes the full-range exponential and one Newton step so that long scans gain no bias.
__device__ __forceinline__ float exponential(float v) { return expf(v); }
__device__ __forceinline__ double exponential(double v) { return exp(v); }

__device__ __forceinline__ float fast_reciprocal(float d) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(d));
  return r;
}
template <typename T>
__device__ __forceinline__ float reciprocal(float d) { return fast_reciprocal(d); }
template <>
__device__ __forceinline__ float reciprocal<float>(float d) {
  const float r = fast_reciprocal(d);
  return fmaf(r, fmaf(-d, r, 1.0f), r);
}
template <typename T>
__device__ __forceinline__ double reciprocal(double d) { return 1.0 / d; }

// p / d from r, the reciprocal of d. In float32 a step on the remainder makes a weight of 1 exactly 1: one that is an
// ulp below it loses as much again at every line.
template <typename T>
__device__ __forceinline__ Accumulator<T> quotient(Accumulator<T> p, Accumulator<T> d, Accumulator<T> r) {
  const Accumulator<T> w = p * r;
  if constexpr (sizeof(T) == 4) {
    return fmaf(fmaf(-d, w, p), r, w);
  } else {
    return w;
  }
}

constexpr float kLogitFloor = -40.0f;

// exp(-a) of a logit that is not below -40.
template <typename T>
__device__ __forceinline__ float decay_clamped(float a) {
  if constexpr (sizeof(T) == 2) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(a * -1.4426950408889634f));
    return result;
  } else {
    return exponential(-a);
  }
}

// exp(-max(a, -40)); NaN passes, which a plain maximum would hide.
template <typename T>
__device__ __forceinline__ Accumulator<T> decay(Accumulator<T> a) {
  using Acc = Accumulator<T>;
  if constexpr (sizeof(T) == 2) {
    constexpr float kLog2E = 1.4426950408889634f;
    float power, result;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(power) : "f"(a * -kLog2E), "f"(-kLogitFloor * kLog2E));
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(power));
    return result;
  } else {
    return exponential(a < Acc(kLogitFloor) ? Acc(-kLogitFloor) : -a);
  }
}

// Row-stochastic weights in product form: with e_k = 1 + exp(-a_k), w_k is the product of the other two e over the
// sum of such products. A neighbour outside the line counts as e = 1 in the products and has no term of its own.
template <typename T>
__device__ __forceinline__ void normalise(const Accumulator<T> decays[3], bool has_left, bool has_right,
                                          Accumulator<T> w[3]) {
  using Acc = Accumulator<T>;
  const Acc e0 = has_left ? Acc(1) + decays[0] : Acc(1);
  const Acc e1 = Acc(1) + decays[1];
  const Acc e2 = has_right ? Acc(1) + decays[2] : Acc(1);
  const Acc p0 = has_left ? e1 * e2 : Acc(0);
  const Acc p1 = e0 * e2;
  const Acc p2 = has_right ? e0 * e1 : Acc(0);
  const Acc sum = p0 + p1 + p2, r = reciprocal<T>(sum);
  w[0] = quotient<T>(p0, sum, r);
  w[1] = quotient<T>(p1, sum, r);
  w[2] = quotient<T>(p2, sum, r);
}

// The same with fewer operations from e_k and masks, 0 for a neighbour outside the line, whose e is 1. Returns e_0 over
// the sum.
template <typename T>
__device__ __forceinline__ float masked_weights(float e0, float e1, float e2, float left_mask, float right_mask,
                                                float& w0, float& w1, float& w2) {
  const float p0 = e1 * e2 * left_mask, e1_right = e1 * right_mask;
  const float sum = fmaf(e0, e2 + e1_right, p0);
  const float r = reciprocal<T>(sum), q = e0 * r;
  w0 = quotient<T>(p0, sum, r);
  if constexpr (sizeof(T) == 4) {
    w1 = quotient<T>(e0 * e2, sum, r);
    w2 = quotient<T>(e0 * e1_right, sum, r);
  } else {
    w1 = q * e2;
    w2 = q * e1_right;
  }
  return q;
}

// Gradient of the logits from the gradient of the weights; `dw` of a missing neighbour must be 0.
template <typename T>
__device__ __forceinline__ void normalise_backward(const Accumulator<T> a[3], const Accumulator<T> decays[3],
                                                   const Accumulator<T> w[3], const Accumulator<T> dw[3],
                                                   bool has_left, bool has_right, Accumulator<T> da[3]) {
  using Acc = Accumulator<T>;
  const Acc mean = w[0] * dw[0] + w[1] * dw[1] + w[2] * dw[2];
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    const bool inside = k == 1 || (k == 0 ? has_left : has_right);
    // d sigmoid / sigmoid = 1 - sigmoid = exp(-a) / (1 + exp(-a)).
    const Acc slope = decays[k] * reciprocal<T>(Acc(1) + decays[k]);
    da[k] = inside && !(a[k] < Acc(kLogitFloor)) ? w[k] * (dw[k] - mean) * slope : Acc(0);
  }
}

}  // namespace cgspn::cuda
