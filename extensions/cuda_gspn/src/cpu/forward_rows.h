// Forward scans of one block along one axis, in place: see rows.h.
#pragma once

#include "cpu/rows.h"

namespace cgspn::cpu {
namespace {

template <class T, class In>
struct ForwardRow {
  int64_t positions, channels;
  Row<const In> x, lam, u, a[3];
  const T* h_before;  // null on the first line of a segment
  T* h;
  T* sum;             // null if the directions are not summed
  bool add;
  Row<In> y, state;   // null if not asked for
};

template <class T, class In, int kPieces, bool kNormalize, bool kFirst>
void forward_row_as(const ForwardRow<T, In>& row) {
  Row<const In> x = row.x, lam = row.lam, u = row.u, a0 = row.a[0], a1 = row.a[1], a2 = row.a[2];
  Row<In> y = row.y, state = row.state;
  const T* const h_before = row.h_before;
  T *const h_line = row.h, *const sum = row.sum;
  const bool add = row.add;
  const int64_t channels = row.channels;
  for_both_reaches<kPieces>(row.positions, channels, [&](int64_t begin, int64_t end, int64_t ahead, bool next) __attribute__((always_inline)) {
    look_ahead(ahead, next, x, lam, u, a0, a1, a2);
    look_ahead(ahead, next, y, state);
    for_each_place<T, kPieces>(begin, end, row.positions, channels, [=](const Place<T>& place, auto at_end, auto repeats) __attribute__((always_inline)) {
      constexpr bool kAtEnd = decltype(at_end)::value;
      const int64_t j = place.j, c = place.c, e = j * channels + c;
      const auto read = [=](const Row<const In>& from) __attribute__((always_inline)) {
        from.template prefetch<kPieces>(from.at(j, c));
        return load_pieces<kPieces>(from.at(j, c), from.position);
      };
      const auto write = [=](const Row<In>& to, Vec<T> v) __attribute__((always_inline)) {
        to.template prefetch<kPieces>(to.at(j, c));
        store_pieces<kPieces>(to.at(j, c), to.position, v);
      };
      Vec<T> h = read(lam) * read(x);
      if constexpr (!kFirst) {
        const Triple<T> before = Triple<T>::load(h_before + e - channels, h_before + e, h_before + e + channels);
        h += propagate<T, kNormalize, kAtEnd>(Triple<T>{read(a0), read(a1), read(a2)}, before, place.ends);
      }
      store(h_line + e, h);
      if (state.data) write(state, h);
      if (sum) {
        accumulate<T, decltype(repeats)::value>(sum + e, read(u) * h, add, place.repeated);
      } else if (y.data) {
        write(y, read(u) * h);
      }
    });
  });
}

template <class T, class In, int kPieces>
void forward_rows(const LineScanForward& call, const Block& block, Partial partial) {
  const LineScanShape& shape = call.shape;
  const Extent extent = extent_of(shape, block);
  const Ones<In> ones(block.channels);
  const Lines<T> h(2, extent.size(), extent.channels);
  bool add = false;
  for (int d = 0; d < shape.num_directions; ++d) {
    const Direction direction = shape.directions[d];
    if (is_vertical(direction) != block.vertical) continue;
    const Plane<In> x = plane<In>(call.x, shape, block, d), y = plane<In>(call.y, shape, block, d);
    const Plane<In> lam = call.lam.data ? plane<In>(call.lam, shape, block, d) : ones.plane();
    const Plane<In> u = call.u.data ? plane<In>(call.u, shape, block, d) : ones.plane();
    const Plane<In> state = plane<In>(call.state, shape, block, d);
    const Plane<In> a[3] = {plane<In>(call.a, shape, block, d, 0), plane<In>(call.a, shape, block, d, 1), plane<In>(call.a, shape, block, d, 2)};
    for (int64_t i = 0; i < extent.lines; ++i) {
      ForwardRow<T, In> row{};
      row.positions = extent.positions;
      row.channels = extent.channels;
      row.x = row_of<const In>(x, i, 1, extent.channels);
      row.lam = row_of<const In>(lam, i, 1, extent.channels);
      row.u = row_of<const In>(u, i, 1, extent.channels);
      for (int k = 0; k < 3; ++k) row.a[k] = row_of<const In>(a[k], i, 1, extent.channels);
      row.h_before = starts_segment(i, shape.chunk) ? nullptr : h[(i + 1) % 2];
      row.h = h[i % 2];
      if (call.sum) {
        row.sum = static_cast<T*>(partial.data) + image_line(direction, i, extent.lines) * partial.stride;
      } else {
        row.y = row_of<In>(y, i, 1, extent.channels);
      }
      row.add = add;
      row.state = row_of<In>(state, i, 1, extent.channels);
      if (row.h_before == nullptr) {
        forward_row_as<T, In, kPieces, false, true>(row);
      } else if (shape.normalize) {
        forward_row_as<T, In, kPieces, true, false>(row);
      } else {
        forward_row_as<T, In, kPieces, false, false>(row);
      }
    }
    add = true;
  }
}

}  // namespace
}  // namespace cgspn::cpu
