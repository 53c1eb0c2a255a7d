// The row-stochastic normalisation of three vectors of logits, and its derivative.
#pragma once

#include "cpu/vec.h"

namespace cgspn::cpu {
namespace {

// Which lanes have no neighbour j-1 (`before`) or j+1 (`after`). Only vectors at a line's ends need it.
template <class T>
struct Ends {
  Mask<T> before, after, outside;  // outside: past the line's end

  // For the vector at element `e` of a line of `size` elements, `channels` apart.
  static Ends at(int64_t e, int64_t size, int64_t channels) {
    const Mask<T> element = lane_numbers<T>() + static_cast<Int<T>>(e);
    return {element < static_cast<Int<T>>(channels), element >= static_cast<Int<T>>(size - channels),
            element >= static_cast<Int<T>>(size)};
  }
};

// Three values per element, one for each of the neighbours j-1, j, j+1.
template <class T>
struct Triple {
  Vec<T> before, here, after;

  static Triple load(const T* before, const T* here, const T* after) {
    return {cpu::load(before), cpu::load(here), cpu::load(after)};
  }
  // Entries without a neighbour become `value`, whatever they were.
  Triple masked(const Ends<T>& ends, T value) const {
    return {ends.before ? splat(value) : before, here, ends.after ? splat(value) : after};
  }
};

template <class T>
inline Vec<T> dot(const Triple<T>& w, const Triple<T>& h) {
  return w.before * h.before + (w.here * h.here + w.after * h.after);
}

// w_k proportional to the product of the other two e = 1 + exp(-a): needs one division and does not cancel.
// A missing neighbour is left out: its e becomes a factor 1 and its own product 0.
template <class T, bool kAtEnd>
inline Triple<T> normalize(const Triple<T>& a, const Ends<T>& ends) {
  Triple<T> e{exp_negative(a.before) + T(1), exp_negative(a.here) + T(1), exp_negative(a.after) + T(1)};
  if constexpr (kAtEnd) e = e.masked(ends, T(1));
  Triple<T> p{e.here * e.after, e.before * e.after, e.before * e.here};
  if constexpr (kAtEnd) p = p.masked(ends, T(0));
  const Vec<T> sum = p.before + p.here + p.after;
  return {p.before / sum, p.here / sum, p.after / sum};
}

// dot(normalize(a), h) with one division by the sum of the products. Every e is scaled by 2^-20, so that products of
// two of them leave room for h.
template <class T, bool kAtEnd>
inline Vec<T> weighted_mean(const Triple<T>& a, const Triple<T>& h, const Ends<T>& ends) {
  constexpr T kScale = T(1) / T(1 << 20);
  Triple<T> e{exp_negative<20>(a.before) + kScale, exp_negative<20>(a.here) + kScale, exp_negative<20>(a.after) + kScale};
  if constexpr (kAtEnd) {
    e = e.masked(ends, kScale);
    const Triple<T> p = Triple<T>{e.here * e.after, e.before * e.after, e.before * e.here}.masked(ends, T(0));
    return dot(p, h.masked(ends, T(0))) / (p.before + p.here + p.after);
  } else {
    const Vec<T> after = e.before * e.here;
    return (e.after * (e.here * h.before + e.before * h.here) + after * h.after) / (e.after * (e.before + e.here) + after);
  }
}

template <class T>
struct WeightsAndSlopes {
  Triple<T> w;
  Triple<T> slope;  // w_k (1 - s(a_k)), 0 where the logit is clamped
};

// As normalize, with every e scaled by 2^-29 so that the product of all three stays finite: then
// 1 - s(a_k) = exp(-a_k) / e_k needs no division of its own.
template <class T, bool kAtEnd>
inline WeightsAndSlopes<T> normalize_with_slopes(const Triple<T>& a, const Ends<T>& ends) {
  constexpr T kScale = T(1) / T(1 << 29);
  const Triple<T> q{exp_negative(a.before), exp_negative(a.here), exp_negative(a.after)};
  Triple<T> e{q.before * kScale + kScale, q.here * kScale + kScale, q.after * kScale + kScale};
  if constexpr (kAtEnd) e = e.masked(ends, T(1));
  Triple<T> p{e.here * e.after, e.before * e.after, e.before * e.here};
  const Vec<T> all = T(1) / (p.before * e.before);
  const Triple<T> one_minus_s{p.before * all * q.before * kScale, p.here * all * q.here * kScale,
                              p.after * all * q.after * kScale};
  if constexpr (kAtEnd) p = p.masked(ends, T(0));
  const Vec<T> sum = p.before + p.here + p.after;
  const Triple<T> w{p.before / sum, p.here / sum, p.after / sum};
  const auto slope = [](Vec<T> logit, Vec<T> value) { return logit < kLogitMin<T> ? Vec<T>{} : value; };
  return {w,
          {slope(a.before, w.before * one_minus_s.before), slope(a.here, w.here * one_minus_s.here),
           slope(a.after, w.after * one_minus_s.after)}};
}

// Calls step(e, ends, at_end) for every vector of a line; only those that touch an end get at_end = true.
template <class T, class Step>
inline void for_each_vector(int64_t size, int64_t channels, Step step) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t inner_begin = (channels + lanes - 1) / lanes * lanes;
  const int64_t inner_end = size > channels ? (size - channels) / lanes * lanes : 0;
  int64_t e = 0;
  for (; e < size && e < inner_begin; e += lanes) step(e, Ends<T>::at(e, size, channels), std::true_type{});
  for (; e < inner_end; e += lanes) step(e, Ends<T>{}, std::false_type{});
  for (; e < size; e += lanes) step(e, Ends<T>::at(e, size, channels), std::true_type{});
}

}  // namespace
}  // namespace cgspn::cpu
