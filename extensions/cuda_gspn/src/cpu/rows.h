// Scan lines straight from and to memory, where a position's channels are neighbours.
//
// A vector holds channels of one position or, where there are few, all channels of several positions. The last
// vector is moved back to end with the last channel or position; the lanes that it repeats get the same values
// again, and only sums have to leave them out.
#pragma once

#include "cpu/pieces.h"
#include "cpu/planes.h"
#include "cpu/scan.h"

namespace cgspn::cpu {
namespace {

// A tensor's scan line: the channels of position j are at data[j * position ...], on the line that is visited next
// `line` elements further, and those that are needed some positions later `ahead` elements further.
template <class In>
struct Row {
  In* data = nullptr;
  int64_t position = 0, line = 0, ahead = 0;
  bool unaligned = false;  // vectors may straddle two cache lines

  In* at(int64_t j, int64_t c) const { return data + j * position + c; }

  // Asks for what is needed later: positions are too far apart for the hardware to guess. The second level of the cache
  // has room for more requests than the first.
  template <int kPieces>
  __attribute__((always_inline)) void prefetch(const In* p) const {
    for (int k = 0; k < kPieces; ++k) __builtin_prefetch(p + ahead + k * position, 0, 2);
    if (kPieces == 1 && unaligned) __builtin_prefetch(p + ahead + (kStoredBytes<std::remove_const_t<In>> / sizeof(In) - 1), 0, 2);
  }
};

// Sets how far the rows look ahead; `next`: to the line that is visited next.
template <class... Rows>
__attribute__((always_inline)) inline void look_ahead(int64_t positions, bool next, Rows&... rows) {
  ((rows.ahead = positions * rows.position + (next ? rows.line : 0)), ...);
}

// Positions to look ahead: the requests of so many elements a tensor are on their way at once.
inline int64_t positions_ahead(int64_t channels) { return (512 + channels - 1) / channels; }

// Line `i`; the scan goes `step` lines at a time.
template <class In, class Other>
Row<In> row_of(const Plane<Other>& plane, int64_t i, int64_t step, int64_t channels) {
  if (plane.data == nullptr) return {};
  Row<In> row{plane.data + i * plane.line, plane.position, step * plane.line, 0, false};
  constexpr int64_t kSize = sizeof(In), kBytes = kStoredBytes<std::remove_const_t<In>>;
  row.unaligned = (reinterpret_cast<intptr_t>(row.data) | row.position * kSize | channels * kSize) % kBytes != 0;
  return row;
}

// sum[0..lanes) += v or = v, without the lanes that were added before.
template <class T, bool kRepeats>
inline void accumulate(T* sum, Vec<T> v, bool add, const Mask<T>& repeated) {
  if (add) {
    const Vec<T> old = load(sum);
    v = kRepeats ? Vec<T>(repeated ? old : old + v) : Vec<T>(old + v);
  }
  store(sum, v);
}

// Which vector of a line a step works on, and what is special about it.
template <class T>
struct Place {
  int64_t j, c;       // first position and channel
  Ends<T> ends;       // lanes without a neighbour
  Mask<T> repeated;   // lanes that the vector before has done
};

// Calls step(place, at_end, repeats) for all vectors of the positions [begin, end) of a line.
template <class T, int kPieces, class Step>
__attribute__((always_inline)) inline void for_each_place(
    int64_t begin, int64_t end, int64_t positions, int64_t channels, Step step) {
  const Mask<T> lanes = lane_numbers<T>();
  if constexpr (kPieces == 1) {
    const Mask<T> all = ~Mask<T>{}, none{};
    const int64_t whole = channels / kLanes<T> * kLanes<T>, last = positions - 1;
    const Mask<T> repeated = lanes < static_cast<Int<T>>(kLanes<T> - (channels - whole));
    const auto position = [&](int64_t j, const Ends<T>& ends, auto at_end) __attribute__((always_inline)) {
      for (int64_t c = 0; c < whole; c += kLanes<T>) step(Place<T>{j, c, ends, none}, at_end, std::false_type{});
      if (whole < channels) step(Place<T>{j, channels - kLanes<T>, ends, repeated}, at_end, std::true_type{});
    };
    for (int64_t j = begin; j < end;) {
      if (j == 0 || j == last) {
        position(j, Ends<T>{j == 0 ? all : none, j == last ? all : none, none}, std::true_type{});
        ++j;
      }
      for (; j < end && j < last; ++j) position(j, Ends<T>{}, std::false_type{});
    }
  } else {
    const Mask<T> number = lanes / static_cast<Int<T>>(channels);
    const auto edge = [&](int64_t j, int64_t done) __attribute__((always_inline)) {
      const Mask<T> at = number + static_cast<Int<T>>(j);
      const Ends<T> ends{at == Int<T>{0}, at == static_cast<Int<T>>(positions - 1), Mask<T>{}};
      step(Place<T>{j, 0, ends, at < static_cast<Int<T>>(done)}, std::true_type{}, std::true_type{});
    };
    for (int64_t j = begin; j < end;) {
      if (j == 0 || j + kPieces >= positions) {
        edge(j == 0 ? 0 : positions - kPieces, j);
        j += kPieces;
      }
      for (; j + kPieces <= end && j + kPieces < positions; j += kPieces) {
        step(Place<T>{j, 0, Ends<T>{}, Mask<T>{}}, std::false_type{}, std::false_type{});
      }
    }
  }
}

// Calls run(begin, end, ahead) for the positions that look ahead on their own line and for those that look ahead
// to the next one.
template <int kPieces, class Run>
__attribute__((always_inline)) inline void for_both_reaches(int64_t positions, int64_t channels, Run run) {
  const int64_t reach = positions_ahead(channels), ahead = reach < positions ? reach : positions;
  const int64_t middle = positions > ahead ? (positions - ahead) / kPieces * kPieces : 0;
  // A loop, so that `run` is compiled once.
  for (int64_t begin = 0; begin < positions;) {
    const bool next = begin == middle;
    run(begin, next ? positions : middle, next ? ahead - positions : ahead, next);
    begin = next ? positions : middle;
  }
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

// Runs that a vector is made of, 0 if this block cannot be read and written in place.
template <class T, class In>
int pieces_of(const LineScanShape& shape, const Extent& extent) {
  if (shape.affinity_channels != shape.channels) return 0;
  if (extent.channels >= kLanes<T>) return 1;
  if (kHasPieces<In, 2> && extent.channels * 2 == kLanes<T> && extent.positions >= 2) return 2;
  if (kHasPieces<In, 4> && extent.channels * 4 == kLanes<T> && extent.positions >= 4) return 4;
  return 0;
}

template <class T, class In>
int pieces_of(const LineScanForward& call, const Block& block) {
  const bool y_fits = call.sum || absent_or_channels_last(call.y);
  const bool fits = call.x.c == 1 && call.a.c == 1 && absent_or_channels_last(call.lam) &&
                    absent_or_channels_last(call.u) && absent_or_channels_last(call.state) && y_fits;
  return fits ? pieces_of<T, In>(call.shape, extent_of(call.shape, block)) : 0;
}

template <class T, class In>
int pieces_of(const LineScanBackward& call, const Block& block) {
  const bool fits = call.x.c == 1 && call.a.c == 1 && absent_or_channels_last(call.lam) &&
                    absent_or_channels_last(call.u) && absent_or_channels_last(call.state) &&
                    absent_or_channels_last(call.dy) && (call.da.data == nullptr || call.da.c == 1) &&
                    absent_or_channels_last(call.dlam) && absent_or_channels_last(call.du);
  return fits ? pieces_of<T, In>(call.shape, extent_of(call.shape, block)) : 0;
}

// Calls f with the number of pieces as a constant, where such vectors exist.
template <class In, class F>
void with_pieces(int pieces, F f) {
  if (pieces == 1) return f(std::integral_constant<int, 1>{});
  if constexpr (kHasPieces<In, 2>) {
    if (pieces == 2) return f(std::integral_constant<int, 2>{});
  }
  if constexpr (kHasPieces<In, 4>) {
    if (pieces == 4) return f(std::integral_constant<int, 4>{});
  }
}

}  // namespace
}  // namespace cgspn::cpu
