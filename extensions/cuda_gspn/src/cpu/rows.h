// One scan line, forward and backward, straight from and to memory, where a position's channels are neighbours.
//
// The last vector of a position is moved back to end with its last channel; the lanes that it repeats get the
// same values again, and only sums have to leave them out.
#pragma once

#include "cpu/readers.h"

namespace cgspn::cpu {
namespace {

// A tensor's scan line: the channels of position j are at data[j * position ...].
template <class In>
struct Row {
  In* data = nullptr;
  int64_t position = 0;

  In* at(int64_t j, int64_t c) const { return data + j * position + c; }
};

template <class In>
Row<const In> constant(const Row<In>& row) {
  return {row.data, row.position};
}

// Asks for the channels of a position some steps ahead: positions are too far apart for the hardware to guess.
template <class In>
inline void prefetch(const Row<In>& row, int64_t j, int64_t channels) {
  // About as long as memory takes, whatever a position costs.
  const int64_t ahead = channels < 16 ? 24 : channels < 64 ? 8 : 4;
  const char* p = reinterpret_cast<const char*>(row.at(j + ahead, 0));
  for (int64_t byte = 0; byte < channels * static_cast<int64_t>(sizeof(In)); byte += 64) __builtin_prefetch(p + byte);
}

// Lanes of a position's last vector that the vector before it has done.
template <class T>
inline Mask<T> repeated(int64_t channels) {
  const Int<T> count = static_cast<Int<T>>((kLanes<T> - channels % kLanes<T>) % kLanes<T>);
  return lane_numbers<T>() < count;
}

// Calls step(c, repeats) for the vectors of one position; the last one repeats lanes where they do not fit.
template <class T, class Step>
__attribute__((always_inline)) inline void for_each_channel_vector(int64_t channels, Step step) {
  constexpr int64_t lanes = kLanes<T>;
  int64_t c = 0;
  for (; c + lanes <= channels; c += lanes) step(c, std::false_type{});
  if (c < channels) step(channels - lanes, std::true_type{});
}

// sum[0..lanes) += v or = v, without the lanes that were added before.
template <class T, bool kRepeats>
inline void accumulate(T* sum, Vec<T> v, bool add, const Mask<T>& mask) {
  if (add) {
    const Vec<T> old = load(sum);
    v = kRepeats ? Vec<T>(mask ? old : old + v) : Vec<T>(old + v);
  }
  store(sum, v);
}

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

template <class T, class In, bool kNormalize, bool kFirst, bool kAtEnd>
__attribute__((always_inline)) inline void forward_position(
    const ForwardRow<T, In>& row, int64_t j, const Ends<T>& ends, const Mask<T>& mask) {
  const int64_t channels = row.channels, e = j * channels;
  const In *x = row.x.at(j, 0), *lam = row.lam.at(j, 0), *u = row.u.at(j, 0);
  const In *a0 = row.a[0].at(j, 0), *a1 = row.a[1].at(j, 0), *a2 = row.a[2].at(j, 0);
  const T *before = row.h_before + e - channels, *here = row.h_before + e, *after = row.h_before + e + channels;
  T *h_out = row.h + e, *sum = row.sum ? row.sum + e : nullptr;
  In* state = row.state.data ? row.state.at(j, 0) : nullptr;
  In* y = row.y.data ? row.y.at(j, 0) : nullptr;
  const bool add = row.add;
  for_each_channel_vector<T>(channels, [=, &ends, &mask](int64_t c, auto repeats) __attribute__((always_inline)) {
    Vec<T> h = load_as(lam + c) * load_as(x + c);
    if constexpr (!kFirst) {
      Triple<T> w{load_as(a0 + c), load_as(a1 + c), load_as(a2 + c)};
      if constexpr (kNormalize) {
        w = normalize<T, kAtEnd>(w, ends);
      } else if constexpr (kAtEnd) {
        w = w.masked(ends, T(0));
      }
      Triple<T> neighbours = Triple<T>::load(before + c, here + c, after + c);
      if constexpr (kAtEnd) neighbours = neighbours.masked(ends, T(0));
      h += dot(w, neighbours);
    }
    store(h_out + c, h);
    if (state) store_as(state + c, h);
    if (sum) {
      accumulate<T, decltype(repeats)::value>(sum + c, load_as(u + c) * h, add, mask);
    } else if (y) {
      store_as(y + c, load_as(u + c) * h);
    }
  });
}

template <class T, class In, bool kNormalize, bool kFirst>
void forward_row_as(const ForwardRow<T, In>& row) {
  const int64_t channels = row.channels, last = row.positions - 1;
  const Mask<T> mask = repeated<T>(channels), all = ~Mask<T>{}, none{};
  forward_position<T, In, kNormalize, kFirst, true>(row, 0, Ends<T>{all, last == 0 ? all : none, none}, mask);
  for (int64_t j = 1; j < last; ++j) {
    prefetch(row.x, j, channels);
    prefetch(row.lam, j, channels);
    prefetch(row.u, j, channels);
    for (int k = 0; k < 3 && !kFirst; ++k) prefetch(row.a[k], j, channels);
    forward_position<T, In, kNormalize, kFirst, false>(row, j, Ends<T>{}, mask);
  }
  if (last > 0) forward_position<T, In, kNormalize, kFirst, true>(row, last, Ends<T>{none, all, none}, mask);
}

template <class T, class In>
void forward_row(const ForwardRow<T, In>& row, bool normalize) {
  if (row.h_before == nullptr) return forward_row_as<T, In, false, true>(row);
  return normalize ? forward_row_as<T, In, true, false>(row) : forward_row_as<T, In, false, false>(row);
}

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

template <class T, class In, bool kNormalize, bool kFirst, bool kAtEnd>
__attribute__((always_inline)) inline void backward_position(
    const BackwardRow<T, In>& row, int64_t j, const Ends<T>& ends, bool has_before, bool has_after, const Mask<T>& mask) {
  const int64_t channels = row.channels, e = j * channels;
  const In *dy = row.dy.at(j, 0), *x = row.x.at(j, 0), *lam = row.lam.at(j, 0), *u = row.u.at(j, 0);
  const In *a0 = row.a[0].at(j, 0), *a1 = row.a[1].at(j, 0), *a2 = row.a[2].at(j, 0);
  const In *h = row.h.at(j, 0), *h_before = row.h_before.at(j, 0);
  const int64_t h_step = row.h_before.position;
  const T *from_before = row.carried[2] + e - channels, *from_here = row.carried[1] + e, *from_after = row.carried[0] + e + channels;
  T *to_before = row.carry[0] + e, *to_here = row.carry[1] + e, *to_after = row.carry[2] + e;
  T* dx = row.dx ? row.dx + e : nullptr;
  In* dlam = row.dlam.data ? row.dlam.at(j, 0) : nullptr;
  In* du = row.du.data ? row.du.at(j, 0) : nullptr;
  const bool need_da = row.da[0].data != nullptr, add = row.add;
  In *da0 = row.da[0].at(j, 0), *da1 = row.da[1].at(j, 0), *da2 = row.da[2].at(j, 0);
  for_each_channel_vector<T>(channels, [=, &ends, &mask](int64_t c, auto repeats) __attribute__((always_inline)) {
    const Vec<T> dy_c = load_as(dy + c);
    const Vec<T> g = load_as(u + c) * dy_c + (load(from_before + c) + load(from_here + c) + load(from_after + c));
    if (du) store_as(du + c, dy_c * load_as(h + c));
    if (dlam) store_as(dlam + c, g * load_as(x + c));
    if (dx) accumulate<T, decltype(repeats)::value>(dx + c, load_as(lam + c) * g, add, mask);
    if constexpr (kFirst) {
      if (need_da) {
        store_as(da0 + c, Vec<T>{});
        store_as(da1 + c, Vec<T>{});
        store_as(da2 + c, Vec<T>{});
      }
    } else {
      const Triple<T> a{load_as(a0 + c), load_as(a1 + c), load_as(a2 + c)};
      Triple<T> w = a;
      if (need_da) {
        Triple<T> neighbours{};
        if (!kAtEnd || has_before) neighbours.before = load_as(h_before - h_step + c);
        neighbours.here = load_as(h_before + c);
        if (!kAtEnd || has_after) neighbours.after = load_as(h_before + h_step + c);
        Triple<T> da{neighbours.before * g, neighbours.here * g, neighbours.after * g};
        if constexpr (kNormalize) {
          const WeightsAndSlopes<T> both = normalize_with_slopes<T, kAtEnd>(a, ends);
          w = both.w;
          const Vec<T> mean = dot(w, da);
          da = {both.slope.before * (da.before - mean), both.slope.here * (da.here - mean), both.slope.after * (da.after - mean)};
        }
        if constexpr (kAtEnd) da = da.masked(ends, T(0));
        store_as(da0 + c, da.before);
        store_as(da1 + c, da.here);
        store_as(da2 + c, da.after);
      } else if constexpr (kNormalize) {
        w = normalize<T, kAtEnd>(a, ends);
      }
      Triple<T> carry{w.before * g, w.here * g, w.after * g};
      if constexpr (kAtEnd) carry = carry.masked(ends, T(0));
      store(to_before + c, carry.before);
      store(to_here + c, carry.here);
      store(to_after + c, carry.after);
    }
  });
}

template <class T, class In, bool kNormalize, bool kFirst>
void backward_row_as(const BackwardRow<T, In>& row) {
  const int64_t channels = row.channels, last = row.positions - 1;
  const Mask<T> mask = repeated<T>(channels), all = ~Mask<T>{}, none{};
  backward_position<T, In, kNormalize, kFirst, true>(row, 0, Ends<T>{all, last == 0 ? all : none, none}, false, last > 0, mask);
  for (int64_t j = 1; j < last; ++j) {
    prefetch(row.dy, j, channels);
    prefetch(row.lam, j, channels);
    prefetch(row.u, j, channels);
    if (row.dlam.data) prefetch(row.x, j, channels);
    if (row.du.data) prefetch(row.h, j, channels);
    for (int k = 0; k < 3 && !kFirst; ++k) prefetch(row.a[k], j, channels);
    if (!kFirst && row.da[0].data) prefetch(row.h_before, j, channels);
    backward_position<T, In, kNormalize, kFirst, false>(row, j, Ends<T>{}, true, true, mask);
  }
  if (last > 0) backward_position<T, In, kNormalize, kFirst, true>(row, last, Ends<T>{none, all, none}, true, false, mask);
}

template <class T, class In>
void backward_row(const BackwardRow<T, In>& row, bool first, bool normalize) {
  if (first) return backward_row_as<T, In, false, true>(row);
  normalize ? backward_row_as<T, In, true, false>(row) : backward_row_as<T, In, false, false>(row);
}

template <class In>
Row<In> row_of(const Plane<In>& plane, int64_t i) {
  return {plane.data == nullptr ? nullptr : plane.data + i * plane.line, plane.position};
}

// Ones that stand for an absent gate.
template <class In>
class Ones {
 public:
  explicit Ones(int64_t channels) : lines_(1, channels, 0) {
    for (int64_t c = 0; c < channels; ++c) lines_[0][c] = narrow<In>(typename Compute<In>::type(1));
  }
  Plane<In> plane() const { return {lines_[0], 0, 0, 1}; }

 private:
  Lines<In> lines_;
};

inline bool absent_or_channels_last(const DirectionView& view) { return view.data == nullptr || view.c == 1; }

// Whether whole vectors of channels can be read and written in place.
template <class T>
bool fits_rows(const LineScanShape& shape, const Block& block) {
  return block.channels >= kLanes<T> && shape.affinity_channels == shape.channels;
}

template <class T>
bool fits_rows(const LineScanForward& call, const Block& block) {
  const bool y_fits = call.sum || absent_or_channels_last(call.y);
  return fits_rows<T>(call.shape, block) && call.x.c == 1 && call.a.c == 1 && absent_or_channels_last(call.lam) &&
         absent_or_channels_last(call.u) && absent_or_channels_last(call.state) && y_fits;
}

template <class T>
bool fits_rows(const LineScanBackward& call, const Block& block) {
  return fits_rows<T>(call.shape, block) && call.x.c == 1 && call.a.c == 1 && absent_or_channels_last(call.lam) &&
         absent_or_channels_last(call.u) && absent_or_channels_last(call.state) && absent_or_channels_last(call.dy) &&
         (call.da.data == nullptr || call.da.c == 1) && absent_or_channels_last(call.dlam) && absent_or_channels_last(call.du);
}

template <class T, class In>
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
      row.x = constant(row_of(x, i));
      row.lam = constant(row_of(lam, i));
      row.u = constant(row_of(u, i));
      for (int k = 0; k < 3; ++k) row.a[k] = constant(row_of(a[k], i));
      row.h_before = starts_segment(i, shape.chunk) ? nullptr : h[(i + 1) % 2];
      row.h = h[i % 2];
      if (call.sum) {
        row.sum = static_cast<T*>(partial.data) + image_line(direction, i, extent.lines) * partial.stride;
      } else {
        row.y = row_of(y, i);
      }
      row.add = add;
      row.state = row_of(state, i);
      forward_row<T, In>(row, shape.normalize);
    }
    add = true;
  }
}

template <class T, class In>
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
      row.dy = constant(row_of(dy, i));
      row.x = constant(row_of(x, i));
      row.lam = constant(row_of(lam, i));
      row.u = constant(row_of(u, i));
      row.h = constant(row_of(state, i));
      if (!first) row.h_before = constant(row_of(state, i - 1));
      for (int k = 0; k < 3; ++k) {
        row.a[k] = constant(row_of(a[k], i));
        row.da[k] = row_of(da[k], i);
        row.carried[k] = carried ? carries[3 * turn + k] : zeros[0];
        row.carry[k] = carries[3 * (1 - turn) + k];
      }
      row.dlam = row_of(dlam, i);
      row.du = row_of(du, i);
      if (call.dx.data) row.dx = static_cast<T*>(dx.data) + image_line(direction, i, extent.lines) * dx.stride;
      row.add = add;
      backward_row<T, In>(row, first, shape.normalize);
      carried = !first;
    }
    add = true;
  }
}

}  // namespace
}  // namespace cgspn::cpu
