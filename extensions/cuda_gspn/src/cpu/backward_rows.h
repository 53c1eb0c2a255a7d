// Backward scans of one block along one axis, in place: see rows.h.
#pragma once

#include "cpu/rows.h"

namespace cgspn::cpu {
namespace {

template <class T, class In>
struct BackwardRow {
  int64_t positions, channels;
  Row<const In> dy, x, lam, u, a[3];
  Row<const In> h, h_before;  // state of this line and of the line before, null if not needed
  const T* carried[3];        // w_k g of the line after; zeros if that starts a segment
  T* carry[3];
  Row<In> da[3], dlam, du;    // null if not asked for
  T* dx;                      // partial sum, null if not asked for
  bool add;
};

// The runs of the positions j + k ... where k is -1 or 1; a run outside the line is replaced by the line's last.
template <class T, int kPieces, class In>
Vec<T> load_with_edge(const Row<const In>& from, int64_t j, int64_t k, int64_t last) {
  In stored[kLanes<T>];
  constexpr int kRun = static_cast<int>(kLanes<T>) / kPieces;
  for (int i = 0; i < kPieces; ++i) {
    const int64_t at = j + k + i;
    std::memcpy(stored + i * kRun, from.at(at < 0 ? 0 : at > last ? last : at, 0), kRun * sizeof(In));
  }
  return load_as(stored);
}

template <class T, class In, int kPieces, bool kNormalize, bool kFirst>
void backward_row_as(const BackwardRow<T, In>& row) {
  Row<const In> dy = row.dy, x = row.x, lam = row.lam, u = row.u, before = row.h_before;
  const Row<const In> h = row.h;
  Row<const In> a0 = row.a[0], a1 = row.a[1], a2 = row.a[2];
  Row<In> da0 = row.da[0], da1 = row.da[1], da2 = row.da[2], dlam = row.dlam, du = row.du;
  const T *from_before = row.carried[2], *from_here = row.carried[1], *from_after = row.carried[0];
  T *to_before = row.carry[0], *to_here = row.carry[1], *to_after = row.carry[2], *dx = row.dx;
  const bool add = row.add;
  const int64_t channels = row.channels, last = row.positions - 1;
  for_both_reaches<kPieces>(row.positions, channels, [&](int64_t begin, int64_t end, int64_t ahead, bool next) __attribute__((always_inline)) {
    look_ahead(ahead, next, dy, x, lam, u, before, a0, a1, a2);
    look_ahead(ahead, next, da0, da1, da2, dlam, du);
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
      const Vec<T> dy_e = read(dy);
      const Vec<T> g = read(u) * dy_e + (load(from_before + e - channels) + load(from_here + e) + load(from_after + e + channels));
      // The line before has asked for it, as what it needs of its own.
      if (du.data) write(du, dy_e * load_pieces<kPieces>(h.at(j, c), h.position));
      if (dlam.data) write(dlam, g * read(x));
      if (dx) accumulate<T, decltype(repeats)::value>(dx + e, read(lam) * g, add, place.repeated);
      if constexpr (kFirst) {
        if (da0.data) {
          write(da0, Vec<T>{});
          write(da1, Vec<T>{});
          write(da2, Vec<T>{});
        }
      } else {
        const Triple<T> a{read(a0), read(a1), read(a2)};
        Triple<T> w = a;
        if (da0.data) {
          Triple<T> neighbours{{}, read(before), {}};
          const auto beside = [=](int64_t k) __attribute__((always_inline)) {
            if constexpr (kPieces == 1) {
              return j + k < 0 || j + k > last ? Vec<T>{} : Vec<T>(load_pieces<1>(before.at(j + k, c), 0));
            } else if constexpr (kAtEnd) {
              // A line's outermost run has no neighbour there; its own stands in, and is masked.
              return load_with_edge<T, kPieces>(before, j, k, last);
            } else {
              return Vec<T>(load_pieces<kPieces>(before.at(j + k, c), before.position));
            }
          };
          neighbours.before = beside(-1);
          neighbours.after = beside(1);
          if constexpr (kAtEnd) neighbours = neighbours.masked(place.ends, T(0));
          Triple<T> da{neighbours.before * g, neighbours.here * g, neighbours.after * g};
          if constexpr (kNormalize) {
            const WeightsAndSlopes<T> both = normalize_with_slopes<T, kAtEnd>(a, place.ends);
            w = both.w;
            const Vec<T> mean = dot(w, da);
            da = {both.slope.before * (da.before - mean), both.slope.here * (da.here - mean), both.slope.after * (da.after - mean)};
          }
          if constexpr (kAtEnd) da = da.masked(place.ends, T(0));
          write(da0, da.before);
          write(da1, da.here);
          write(da2, da.after);
        } else if constexpr (kNormalize) {
          w = normalize<T, kAtEnd>(a, place.ends);
        }
        Triple<T> carry{w.before * g, w.here * g, w.after * g};
        if constexpr (kAtEnd) carry = carry.masked(place.ends, T(0));
        store(to_before + e, carry.before);
        store(to_here + e, carry.here);
        store(to_after + e, carry.after);
      }
    });
  });
}

template <class T, class In, int kPieces>
void backward_rows(const LineScanBackward& call, const Block& block, Partial dx) {
  const LineScanShape& shape = call.shape;
  const Extent extent = extent_of(shape, block);
  const Ones<In> ones(block.channels);
  const Lines<T> carries(6, extent.size(), extent.channels), zeros(1, extent.size(), extent.channels);
  bool add = false;
  for (int d = 0; d < shape.num_directions; ++d) {
    const Direction direction = shape.directions[d];
    if (is_vertical(direction) != block.vertical) continue;
    const Plane<In> x = plane<In>(call.x, shape, block, d), dy = plane<In>(call.dy, shape, block, d);
    const Plane<In> lam = call.lam.data ? plane<In>(call.lam, shape, block, d) : ones.plane();
    const Plane<In> u = call.u.data ? plane<In>(call.u, shape, block, d) : ones.plane();
    const Plane<In> state = plane<In>(call.state, shape, block, d);
    const Plane<In> dlam = plane<In>(call.dlam, shape, block, d), du = plane<In>(call.du, shape, block, d);
    Plane<In> a[3], da[3];
    for (int k = 0; k < 3; ++k) {
      a[k] = plane<In>(call.a, shape, block, d, k);
      da[k] = plane<In>(call.da, shape, block, d, k);
    }
    bool carried = false;
    int turn = 0;
    for (int64_t i = extent.lines - 1; i >= 0; --i, turn = 1 - turn) {
      BackwardRow<T, In> row{};
      row.positions = extent.positions;
      row.channels = extent.channels;
      const bool first = starts_segment(i, shape.chunk);
      row.dy = row_of<const In>(dy, i, -1, extent.channels);
      row.x = row_of<const In>(x, i, -1, extent.channels);
      row.lam = row_of<const In>(lam, i, -1, extent.channels);
      row.u = row_of<const In>(u, i, -1, extent.channels);
      row.h = row_of<const In>(state, i, -1, extent.channels);
      if (!first) row.h_before = row_of<const In>(state, i - 1, -1, extent.channels);
      for (int k = 0; k < 3; ++k) {
        row.a[k] = row_of<const In>(a[k], i, -1, extent.channels);
        row.da[k] = row_of<In>(da[k], i, -1, extent.channels);
        row.carried[k] = carried ? carries[3 * turn + k] : zeros[0];
        row.carry[k] = carries[3 * (1 - turn) + k];
      }
      row.dlam = row_of<In>(dlam, i, -1, extent.channels);
      row.du = row_of<In>(du, i, -1, extent.channels);
      if (call.dx.data) row.dx = static_cast<T*>(dx.data) + image_line(direction, i, extent.lines) * dx.stride;
      row.add = add;
      if (first) {
        backward_row_as<T, In, kPieces, false, true>(row);
      } else if (shape.normalize) {
        backward_row_as<T, In, kPieces, true, false>(row);
      } else {
        backward_row_as<T, In, kPieces, false, false>(row);
      }
      carried = !first;
    }
    add = true;
  }
}

}  // namespace
}  // namespace cgspn::cpu
