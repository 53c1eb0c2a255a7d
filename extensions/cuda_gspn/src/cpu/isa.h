// The kernels of one instruction set; included once per translation unit with its own compiler flags.
#pragma once

#include "cpu/backward.h"

namespace cgspn::cpu {
namespace {

template <class T, class In>
void normalize_as(const RowStochasticForward& call, const Block& block, int d) {
  const LineScanShape& shape = call.shape;
  const Extent extent = extent_of(shape, block);
  const int64_t together = lines_together(block, extent, call.a.w);
  const Lines<T> lines[3] = {{together, extent.size(), 0}, {together, extent.size(), 0}, {together, extent.size(), 0}};
  for (int64_t first = 0; first < extent.lines; first += together) {
    const int64_t count = extent.lines - first < together ? extent.lines - first : together;
    for (int k = 0; k < 3; ++k) {
      read_lines(lines[k][0], lines[k].stride(), plane<In>(call.a, shape, block, d, k).from_line(first), count, extent);
    }
    for (int64_t t = 0; t < count; ++t) {
      T* const line[3] = {lines[0][t], lines[1][t], lines[2][t]};
      normalize_line<T>(extent.size(), extent.channels, line, line);
    }
    for (int k = 0; k < 3; ++k) {
      write_lines(plane<In>(call.w, shape, block, d, k).from_line(first), lines[k][0], lines[k].stride(), count, extent);
    }
  }
}

template <class T, class In>
void normalize_backward_as(const RowStochasticBackward& call, const Block& block, int d) {
  const LineScanShape& shape = call.shape;
  const Extent extent = extent_of(shape, block);
  const Lines<T> logits(3, extent.size(), 0), gradients(3, extent.size(), 0);
  T* const a[3] = {logits[0], logits[1], logits[2]};
  T* const dw[3] = {gradients[0], gradients[1], gradients[2]};
  for (int64_t i = 0; i < extent.lines; ++i) {
    for (int k = 0; k < 3; ++k) {
      read_line(a[k], plane<In>(call.a, shape, block, d, k).from_line(i), extent);
      read_line(dw[k], plane<In>(call.dw, shape, block, d, k).from_line(i), extent);
    }
    normalize_line_backward<T>(extent.size(), extent.channels, a, dw, dw);
    for (int k = 0; k < 3; ++k) write_line(plane<In>(call.da, shape, block, d, k).from_line(i), dw[k], extent);
  }
}

// Calls f with a compute type and a storage type.
template <class F>
void with_types(DType dtype, F f) {
  switch (dtype) {
    case DType::kFloat16: return f(float{}, Half{});
    case DType::kBFloat16: return f(float{}, BFloat16{});
    case DType::kFloat32: return f(float{}, float{});
    case DType::kFloat64: return f(double{}, double{});
  }
}

void forward(const LineScanForward& call, const Block& block, Partial partial) {
  with_types(call.shape.dtype, [&](auto t, auto in) { forward_as<decltype(t), decltype(in)>(call, block, partial); });
}

void backward(const LineScanBackward& call, const Block& block, Partial dx, SharedGradient shared) {
  with_types(call.shape.dtype, [&](auto t, auto in) { backward_as<decltype(t), decltype(in)>(call, block, dx, shared); });
}

void combine(
    const LineScanShape& shape, const ImageView& to, const Block& block, Partial vertical, Partial horizontal,
    int64_t row_begin, int64_t row_end) {
  with_types(shape.dtype, [&](auto t, auto in) {
    combine_as<decltype(t), decltype(in)>(shape, to, block, vertical, horizontal, row_begin, row_end);
  });
}

void finish_shared(const LineScanBackward& call, int64_t batch, int direction, const void* shared, int64_t count, int64_t distance) {
  with_types(call.shape.dtype, [&](auto t, auto in) {
    finish_shared_as<decltype(t), decltype(in)>(call, batch, direction, shared, count, distance);
  });
}

void normalize_block(const RowStochasticForward& call, const Block& block, int direction) {
  with_types(call.shape.dtype, [&](auto t, auto in) { normalize_as<decltype(t), decltype(in)>(call, block, direction); });
}

void normalize_block_backward(const RowStochasticBackward& call, const Block& block, int direction) {
  with_types(call.shape.dtype, [&](auto t, auto in) {
    normalize_backward_as<decltype(t), decltype(in)>(call, block, direction);
  });
}

constexpr Kernels kernels_named(const char* name) {
  return {name, forward, backward, combine, finish_shared, normalize_block, normalize_block_backward};
}

}  // namespace
}  // namespace cgspn::cpu
