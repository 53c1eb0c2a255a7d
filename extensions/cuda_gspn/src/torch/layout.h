// The stride rule of every output; cgspn/ops/layout.py states the same for the fake kernels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

namespace cgspn {

using Sizes = std::vector<int64_t>;

inline Sizes strides_in_order(const Sizes& sizes, const std::vector<size_t>& order) {
  Sizes strides(sizes.size(), 1);
  int64_t step = 1;
  for (auto axis = order.rbegin(); axis != order.rend(); ++axis) {
    strides[*axis] = step;
    step *= std::max<int64_t>(sizes[*axis], 1);
  }
  return strides;
}

// Axis order of (B, ..., H, W): B, H, W, then the rest.
inline std::vector<size_t> channels_last_order(size_t ndim) {
  std::vector<size_t> order{0, ndim - 2, ndim - 1};
  for (size_t axis = 1; axis + 2 < ndim; ++axis) order.push_back(axis);
  return order;
}

inline bool matches(const Sizes& sizes, const Sizes& strides, const Sizes& expected) {
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] != 1 && strides[i] != expected[i]) return false;
  }
  return true;
}

inline bool is_dense(const Sizes& sizes, const Sizes& strides) {
  std::vector<size_t> contiguous(sizes.size());
  std::iota(contiguous.begin(), contiguous.end(), size_t{0});
  if (matches(sizes, strides, strides_in_order(sizes, channels_last_order(sizes.size())))) return true;
  if (matches(sizes, strides, strides_in_order(sizes, contiguous))) return true;
  if (std::count(sizes.begin(), sizes.end(), 0) > 0) return false;
  std::vector<std::pair<int64_t, int64_t>> axes;
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] != 1) axes.emplace_back(strides[i], sizes[i]);
  }
  std::sort(axes.begin(), axes.end());
  int64_t expected = 1;
  for (auto [stride, size] : axes) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

inline Sizes strides_like(const Sizes& sizes, const Sizes& strides) {
  return is_dense(sizes, strides) ? strides : strides_in_order(sizes, channels_last_order(sizes.size()));
}

// y (B, D, C, H, W) for x (B, C, H, W): directions directly outside C.
inline Sizes unsummed_strides(const Sizes& sizes, const Sizes& strides, int64_t num_directions) {
  const Sizes like = strides_like(sizes, strides);
  const int64_t channels = sizes[1], inner = channels == 1 ? 1 : like[1], block = inner * channels;
  const auto outer = [&](int64_t stride) { return stride >= block ? stride * num_directions : stride; };
  return {outer(like[0]), block, inner, outer(like[2]), outer(like[3])};
}

// State (B, D, C, H, W) for x (B, C, H, W): directions slowest.
inline Sizes state_strides(const Sizes& sizes, const Sizes& strides) {
  const Sizes like = strides_like(sizes, strides);
  const int64_t numel = sizes[0] * sizes[1] * sizes[2] * sizes[3];
  return {like[0], std::max<int64_t>(numel, 1), like[1], like[2], like[3]};
}

}  // namespace cgspn
