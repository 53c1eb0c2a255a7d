// One scan line, forward and backward, on line buffers.
#pragma once

#include <type_traits>

#include "cpu/weights.h"

namespace cgspn::cpu {
namespace {

template <class T>
struct ForwardLine {
  int64_t size, channels;
  const T *x, *lam, *u;
  const T* a[3];        // not read on the first line of a segment
  const T* h_before;    // state of the line before, null on the first line of a segment
  T* h;
  T* y;                 // null if only the state is wanted
  bool add;             // y += u h instead of y = u h
};

// What the line before hands on: `a` holds logits or weights.
template <class T, bool kNormalize, bool kAtEnd>
__attribute__((always_inline)) inline Vec<T> propagate(const Triple<T>& a, const Triple<T>& before, const Ends<T>& ends) {
  if constexpr (kNormalize) {
    return weighted_mean<T, kAtEnd>(a, before, ends);
  } else if constexpr (kAtEnd) {
    return dot(a.masked(ends, T(0)), before.masked(ends, T(0)));
  } else {
    return dot(a, before);
  }
}

template <class T, bool kNormalize, bool kFirst, bool kAdd>
void forward_line_as(const ForwardLine<T>& line) {
  const T *x = line.x, *lam = line.lam, *u = line.u, *before = line.h_before;
  const T *a0 = line.a[0], *a1 = line.a[1], *a2 = line.a[2];
  T *h_out = line.h, *y = line.y;
  const int64_t channels = line.channels;
  for_each_vector<T>(line.size, channels, [&](int64_t e, const Ends<T>& ends, auto at_end) __attribute__((always_inline)) {
    Vec<T> h = load(lam + e) * load(x + e);
    if constexpr (!kFirst) {
      constexpr bool kAtEnd = decltype(at_end)::value;
      const Triple<T> a = Triple<T>::load(a0 + e, a1 + e, a2 + e);
      h += propagate<T, kNormalize, kAtEnd>(a, Triple<T>::load(before + e - channels, before + e, before + e + channels), ends);
    }
    store(h_out + e, h);
    if (y == nullptr) return;
    Vec<T> out = load(u + e) * h;
    if constexpr (kAdd) out += load(y + e);
    store(y + e, out);
  });
}

template <class T, bool kNormalize>
void forward_line(const ForwardLine<T>& line) {
  const bool first = line.h_before == nullptr;
  if (first && line.add) return forward_line_as<T, kNormalize, true, true>(line);
  if (first) return forward_line_as<T, kNormalize, true, false>(line);
  if (line.add) return forward_line_as<T, kNormalize, false, true>(line);
  return forward_line_as<T, kNormalize, false, false>(line);
}

template <class T>
struct BackwardLine {
  int64_t size, channels;
  const T *dy, *x, *lam, *u;
  const T* a[3];
  const T* h;                // state of this line, null if `du` is
  const T* h_before;         // state of the line before, null on the first line of a segment or if `da` is
  bool first;                // first line of a segment
  const T* carried[3];       // w_k g of the line after, null if that starts a segment
  T* carry[3];               // w_k g of this line
  T* da[3];                  // null if not asked for, as are the following
  T *dlam, *du, *dx;
  bool add;                  // dx += lam g instead of dx = lam g
};

// With g_i = dL/dh_i: g_i(j) = u_i(j) dy_i(j) + sum_k w_{i+1}(j-k, k) g_{i+1}(j-k).
template <class T, bool kNormalize, bool kFirst, bool kLast>
void backward_line_as(const BackwardLine<T>& line) {
  const int64_t channels = line.channels;
  const T *x = line.x, *lam = line.lam, *u = line.u, *dy = line.dy, *h = line.h, *before = line.h_before;
  const T *a0 = line.a[0], *a1 = line.a[1], *a2 = line.a[2];
  const T *from_before = line.carried[2], *from_here = line.carried[1], *from_after = line.carried[0];
  T *to_before = line.carry[0], *to_here = line.carry[1], *to_after = line.carry[2];
  T *da0 = line.da[0], *da1 = line.da[1], *da2 = line.da[2], *dlam = line.dlam, *du = line.du, *dx = line.dx;
  const bool add = line.add;
  for_each_vector<T>(line.size, channels, [&](int64_t e, const Ends<T>& ends, auto at_end) __attribute__((always_inline)) {
    constexpr bool kAtEnd = decltype(at_end)::value;
    const Vec<T> dy_e = load(dy + e);
    Vec<T> g = load(u + e) * dy_e;
    if constexpr (!kLast) g += load(from_before + e - channels) + load(from_here + e) + load(from_after + e + channels);
    // What lies past the line's end must not reach the line before.
    if constexpr (kAtEnd) g = ends.outside ? Vec<T>{} : g;
    if (du) store(du + e, dy_e * load(h + e));
    if (dlam) store(dlam + e, g * load(x + e));
    if (dx) {
      const Vec<T> here = load(lam + e) * g;
      store(dx + e, add ? load(dx + e) + here : here);
    }
    if constexpr (kFirst) {
      if (da0) {
        store(da0 + e, Vec<T>{});
        store(da1 + e, Vec<T>{});
        store(da2 + e, Vec<T>{});
      }
    } else {
      const Triple<T> a = Triple<T>::load(a0 + e, a1 + e, a2 + e);
      Triple<T> w = a, da{};
      Triple<T> neighbours{};
      if (da0) {
        neighbours = Triple<T>::load(before + e - channels, before + e, before + e + channels);
        if constexpr (kAtEnd) neighbours = neighbours.masked(ends, T(0));
      }
      if constexpr (kNormalize) {
        const WeightsAndSlopes<T> both = normalize_with_slopes<T, kAtEnd>(a, ends);
        w = both.w;
        const Vec<T> mean = dot(w, neighbours);
        da = {g * both.slope.before * (neighbours.before - mean), g * both.slope.here * (neighbours.here - mean),
              g * both.slope.after * (neighbours.after - mean)};
      } else {
        da = {g * neighbours.before, g * neighbours.here, g * neighbours.after};
        if constexpr (kAtEnd) w = w.masked(ends, T(0));
      }
      if (da0) {
        if constexpr (kAtEnd) da = da.masked(ends, T(0));
        store(da0 + e, da.before);
        store(da1 + e, da.here);
        store(da2 + e, da.after);
      }
      Triple<T> carry{w.before * g, w.here * g, w.after * g};
      if constexpr (kAtEnd) carry = carry.masked(ends, T(0));
      store(to_before + e, carry.before);
      store(to_here + e, carry.here);
      store(to_after + e, carry.after);
    }
  });
}

template <class T, bool kNormalize>
void backward_line(const BackwardLine<T>& line) {
  const bool last = line.carried[0] == nullptr;
  if (line.first && last) return backward_line_as<T, kNormalize, true, true>(line);
  if (line.first) return backward_line_as<T, kNormalize, true, false>(line);
  if (last) return backward_line_as<T, kNormalize, false, true>(line);
  return backward_line_as<T, kNormalize, false, false>(line);
}

// w = row-stochastic weights of logits; `w` may be `a`.
template <class T>
void normalize_line(int64_t size, int64_t channels, const T* const a[3], T* const w[3]) {
  for_each_vector<T>(size, channels, [&](int64_t e, const Ends<T>& ends, auto at_end) {
    const auto out = normalize<T, decltype(at_end)::value>(Triple<T>::load(a[0] + e, a[1] + e, a[2] + e), ends);
    store(w[0] + e, out.before);
    store(w[1] + e, out.here);
    store(w[2] + e, out.after);
  });
}

// da = slope (dw - sum_k w_k dw_k); `da` may be `dw`.
template <class T>
void normalize_line_backward(int64_t size, int64_t channels, const T* const a[3], const T* const dw[3], T* const da[3]) {
  for_each_vector<T>(size, channels, [&](int64_t e, const Ends<T>& ends, auto at_end) {
    constexpr bool kAtEnd = decltype(at_end)::value;
    const auto both = normalize_with_slopes<T, kAtEnd>(Triple<T>::load(a[0] + e, a[1] + e, a[2] + e), ends);
    Triple<T> grad = Triple<T>::load(dw[0] + e, dw[1] + e, dw[2] + e);
    if constexpr (kAtEnd) grad = grad.masked(ends, T(0));
    const Vec<T> mean = dot(both.w, grad);
    Triple<T> out{both.slope.before * (grad.before - mean), both.slope.here * (grad.here - mean),
                  both.slope.after * (grad.after - mean)};
    if constexpr (kAtEnd) out = out.masked(ends, T(0));
    store(da[0] + e, out.before);
    store(da[1] + e, out.here);
    store(da[2] + e, out.after);
  });
}

}  // namespace
}  // namespace cgspn::cpu
