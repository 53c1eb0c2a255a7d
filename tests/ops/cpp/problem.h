// One call of the operator on host memory: sizes, layout, inputs, outputs. No torch.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cgspn/cpu.h"

struct BFloat16 {
  uint16_t bits;
  BFloat16() = default;
  explicit BFloat16(double v) {
    const float f = static_cast<float>(v);
    uint32_t u;
    std::memcpy(&u, &f, 4);
    bits = static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
  }
  explicit operator double() const {
    const uint32_t u = static_cast<uint32_t>(bits) << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
  }
};

template <class T>
constexpr cgspn::DType kDType = cgspn::DType::kFloat32;
template <>
inline constexpr cgspn::DType kDType<double> = cgspn::DType::kFloat64;
template <>
inline constexpr cgspn::DType kDType<BFloat16> = cgspn::DType::kBFloat16;

struct Sizes {
  int64_t b, c, h, w;
  int directions = 4;
  bool shared = false, channels_last = true, sum = true, normalize = true, keep_state = true;
  int64_t chunk = 0;
  bool padded = false;  // unused values behind a pixel's logits, so that its gates begin at whole 16 bytes

  int64_t affinity_channels() const { return shared ? 1 : c; }
  int64_t logits() const { return 3 * directions * affinity_channels(); }
  int64_t padding() const { return padded ? (8 - logits() % 8) % 8 : 0; }
  int64_t pixels() const { return b * h * w; }
  std::string name() const {
    char text[128];
    std::snprintf(text, sizeof text, "(%ld,%ld,%ld,%ld) D=%d%s%s%s%s%s%s chunk=%ld", static_cast<long>(b), static_cast<long>(c),
                  static_cast<long>(h), static_cast<long>(w), directions, shared ? " shared" : "",
                  padded ? " padded" : "",
                  channels_last ? " channels-last" : " NCHW", sum ? "" : " unsummed", normalize ? "" : " weights",
                  keep_state ? "" : " recompute", static_cast<long>(chunk));
    return text;
  }
};

// The inputs lie in memory as one linear layer makes them, [a | lam | u] per pixel, or plane by plane.
template <class T>
struct Problem {
  Sizes sizes;
  std::vector<T> x, parameters, dy, y, state, dx, gradients;

  explicit Problem(const Sizes& s) : sizes(s) {
    std::mt19937 random(1);
    std::normal_distribution<double> normal;
    const int64_t image = s.pixels() * s.c;
    const auto draw = [&](int64_t n) {
      std::vector<T> v(n);
      for (T& e : v) e = T(normal(random));
      return v;
    };
    x = draw(image);
    parameters = draw(s.pixels() * row());
    dy = draw(s.sum ? image : image * s.directions);
    y.resize(dy.size());
    state.resize(image * s.directions);
    dx.resize(image);
    gradients.resize(parameters.size());
  }

  int64_t row() const { return sizes.logits() + sizes.padding() + 2 * sizes.directions * sizes.c; }

  cgspn::LineScanShape shape() const {
    cgspn::LineScanShape shape;
    shape.dtype = kDType<T>;
    shape.batch = sizes.b;
    shape.channels = sizes.c;
    shape.affinity_channels = sizes.affinity_channels();
    shape.height = sizes.h;
    shape.width = sizes.w;
    shape.num_directions = sizes.directions;
    for (int d = 0; d < sizes.directions; ++d) shape.directions[d] = static_cast<cgspn::Direction>(d);
    shape.chunk = sizes.chunk;
    shape.normalize = sizes.normalize;
    return shape;
  }

  cgspn::ImageView image(T* data) const {
    const auto [b, c, h, w] = std::tuple{sizes.b, sizes.c, sizes.h, sizes.w};
    (void)b;
    if (sizes.channels_last) return {data, h * w * c, 1, w * c, c};
    return {data, c * h * w, h * w, w, 1};
  }

  cgspn::DirectionView output(T* data) const {
    const cgspn::ImageView v = image(data);
    const int64_t d = sizes.sum ? 1 : sizes.directions, c = sizes.c, plane = sizes.h * sizes.w;
    if (sizes.channels_last) return {data, v.b * d, sizes.sum ? 0 : c, 1, v.h * d, v.w * d};
    return {data, v.b * d, sizes.sum ? 0 : c * plane, v.c, v.h, v.w};
  }

  cgspn::DirectionView states(T* data) const {
    const cgspn::ImageView v = image(data);
    return {data, v.b, sizes.pixels() * sizes.c, v.c, v.h, v.w};
  }

  cgspn::AffinityView affinity(T* data) const {
    const int64_t ca = sizes.affinity_channels(), h = sizes.h, w = sizes.w, c = sizes.shared ? 0 : 1;
    if (sizes.channels_last) return {data, h * w * row(), 3 * ca, ca, c, w * row(), row()};
    return {data, sizes.directions * 3 * ca * h * w, 3 * ca * h * w, ca * h * w, c * h * w, w, 1};
  }

  // which: 0 for lam, 1 for u.
  cgspn::DirectionView gate(T* data, int which) const {
    const int64_t c = sizes.c, h = sizes.h, w = sizes.w;
    const int64_t before = sizes.logits() + sizes.padding() + which * sizes.directions * c;
    if (sizes.channels_last) return {data + before, h * w * row(), c, 1, w * row(), row()};
    return {data + before * sizes.pixels(), sizes.directions * c * h * w, c * h * w, h * w, w, 1};
  }

  // Calls on the given copies of the tensors, on the host or on a device.
  cgspn::LineScanForward forward(T* x_, T* parameters_, T* y_, T* state_) const {
    cgspn::LineScanForward call;
    call.shape = shape();
    call.x = image(x_);
    call.a = affinity(parameters_);
    call.lam = gate(parameters_, 0);
    call.u = gate(parameters_, 1);
    call.y = output(y_);
    call.sum = sizes.sum;
    if (sizes.keep_state) call.state = states(state_);
    return call;
  }

  cgspn::LineScanBackward backward(T* x_, T* parameters_, T* dy_, T* state_, T* dx_, T* gradients_) const {
    cgspn::LineScanBackward call;
    call.shape = shape();
    call.x = image(x_);
    call.a = affinity(parameters_);
    call.lam = gate(parameters_, 0);
    call.u = gate(parameters_, 1);
    call.dy = output(dy_);
    if (sizes.keep_state) call.state = states(state_);
    call.dx = image(dx_);
    call.da = affinity(gradients_);
    call.dlam = gate(gradients_, 0);
    call.du = gate(gradients_, 1);
    return call;
  }

  void run_on_cpu() {
    const cgspn::cpu::Threads threads{2, [](int64_t count, void (*task)(int64_t, void*), void* context) {
                                        std::vector<std::thread> pool;
                                        for (int64_t i = 0; i < count; ++i) pool.emplace_back(task, i, context);
                                        for (std::thread& thread : pool) thread.join();
                                      }};
    cgspn::cpu::line_scan_forward(forward(x.data(), parameters.data(), y.data(), state.data()), threads);
    cgspn::cpu::line_scan_backward(
        backward(x.data(), parameters.data(), dy.data(), state.data(), dx.data(), gradients.data()), threads);
  }
};

// Largest difference over the largest magnitude; NaN where either has one.
template <class T>
double distance(const std::vector<T>& got, const std::vector<T>& want) {
  double error = 0, scale = 1;
  for (size_t i = 0; i < got.size(); ++i) {
    const double g = static_cast<double>(got[i]), w = static_cast<double>(want[i]);
    if (!std::isfinite(g) || !std::isfinite(w)) return std::numeric_limits<double>::quiet_NaN();
    error = std::max(error, std::abs(g - w));
    scale = std::max(scale, std::abs(w));
  }
  return error / scale;
}
