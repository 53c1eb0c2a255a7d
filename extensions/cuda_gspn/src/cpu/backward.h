// Backward scans of one block along one axis.
#pragma once

#include "cpu/backward_rows.h"
#include "cpu/forward.h"

namespace cgspn::cpu {
namespace {

// The state of one block, computed again where the forward pass did not keep it.
template <class T, class In>
class RecomputedState {
 public:
  RecomputedState(const LineScanBackward& call, const Block& block) {
    const LineScanShape& shape = call.shape;
    const int64_t c = block.channels, image = shape.height * shape.width * c;
    memory_ = static_cast<In*>(std::malloc(static_cast<size_t>(image * shape.num_directions) * sizeof(In)));
    if (memory_ == nullptr) throw std::bad_alloc();
    // Addressed like a whole tensor, from the batch and channel of this block on.
    view = {memory_ - block.channel, 0, image, 1, shape.width * c, c};
    LineScanForward forward;
    forward.shape = shape;
    forward.x = call.x;
    forward.a = call.a;
    forward.lam = call.lam;
    forward.sum = false;
    forward.state = view;
    forward_as<T, In>(forward, block, {});
  }
  RecomputedState(const RecomputedState&) = delete;
  RecomputedState& operator=(const RecomputedState&) = delete;
  ~RecomputedState() { std::free(memory_); }

  DirectionView view;

 private:
  In* memory_;
};

template <class T, class In>
void backward_with_state(const LineScanBackward& call, const Block& block, Partial dx, SharedGradient shared) {
  if (const int pieces = pieces_of<T, In>(call, block)) {
    return with_pieces<In>(pieces, [&](auto n) { backward_rows<T, In, n()>(call, block, dx); });
  }
  const LineScanShape& shape = call.shape;
  const Extent extent = extent_of(shape, block);
  const int64_t together = lines_together(block, extent, call.a.w), size = extent.size();
  const bool shared_affinity = shape.affinity_channels == 1 && shape.channels > 1;
  const bool need_da = call.da.data != nullptr, need_state = need_da || call.du.data != nullptr;
  AffinityReader<T, In> affinity(shape, block, together);
  GateReader<T, In> lam(call.lam, shape, block, together), u(call.u, shape, block, together), dy(call.dy, shape, block, together);
  Source<T, In> x(together, extent);
  const Lines<T> h(need_state ? together + 1 : 0, size, extent.channels);
  const auto output = [&](bool needed) { return Lines<T>(needed ? together : 0, size, 0); };
  const Lines<T> da[3] = {output(need_da), output(need_da), output(need_da)};
  const Lines<T> dlam = output(call.dlam.data != nullptr), du = output(call.du.data != nullptr);
  // What a line hands to the line before it, and what it was handed.
  const Lines<T> carries(6, size, extent.channels);
  Interleaved<T, const In> interleaved;
  Interleaved<T, In> results;
  bool add = false;
  for (int d = 0; d < shape.num_directions; ++d) {
    const Direction direction = shape.directions[d];
    if (is_vertical(direction) != block.vertical) continue;
    bool carried = false;
    int turn = 0;
    for (int64_t end = extent.lines; end > 0;) {
      const int64_t first = end > together ? end - together : 0, count = end - first;
      if (call.dlam.data != nullptr) x.read(plane<In>(call.x, shape, block, d), first, count, interleaved);
      affinity.read(call.a, shape, block, d, first, count, interleaved);
      lam.read(call.lam, shape, block, d, first, count, interleaved);
      u.read(call.u, shape, block, d, first, count, interleaved);
      dy.read(call.dy, shape, block, d, first, count, interleaved);
      if (need_state) {
        // Slot 0 takes the line before the first.
        const int64_t before = first > 0 ? 1 : 0;
        read_lines(h[1 - before], h.stride(), plane<In>(call.state, shape, block, d).from_line(first - before), count + before, extent);
      }
      interleaved.run(count, extent.positions);
      for (int64_t t = count - 1; t >= 0; --t) {
        const int64_t i = first + t;
        BackwardLine<T> line{};
        line.size = size;
        line.channels = extent.channels;
        line.dy = dy.line(t);
        line.x = x.line(t);
        line.lam = lam.line(t);
        line.u = u.line(t);
        if (need_state) {
          line.h = h[t + 1];
          line.h_before = h[t];
        }
        line.first = starts_segment(i, shape.chunk);
        for (int k = 0; k < 3; ++k) {
          line.a[k] = affinity.line(k, t);
          line.carried[k] = carried ? carries[3 * turn + k] : nullptr;
          line.carry[k] = carries[3 * (1 - turn) + k];
          if (need_da) line.da[k] = da[k][t];
        }
        if (call.dlam.data != nullptr) line.dlam = dlam[t];
        if (call.du.data != nullptr) line.du = du[t];
        if (call.dx.data != nullptr) line.dx = static_cast<T*>(dx.data) + image_line(direction, i, extent.lines) * dx.stride;
        line.add = add;
        affinity.logits() ? backward_line<T, true>(line) : backward_line<T, false>(line);
        carried = !line.first;
        turn = 1 - turn;
        if (need_da && shared_affinity) {
          T* sums = static_cast<T*>(shared.data) + (d * extent.lines + i) * 3 * extent.positions;
          for (int k = 0; k < 3; ++k) sum_channels(sums + k * extent.positions, line.da[k], extent);
        }
      }
      const auto write = [&](const Plane<In>& to, const Lines<T>& lines) {
        if (to.data == nullptr) return;
        const Plane<In> line = to.from_line(first);
        if (is_interleaved(line, count, extent)) return results.add(lines[0], lines.stride(), line);
        write_lines(line, lines[0], lines.stride(), count, extent);
      };
      for (int k = 0; k < 3 && !shared_affinity; ++k) write(plane<In>(call.da, shape, block, d, k), da[k]);
      write(plane<In>(call.dlam, shape, block, d), dlam);
      write(plane<In>(call.du, shape, block, d), du);
      results.run(count, extent.positions);
      end = first;
    }
    add = true;
  }
}

template <class T, class In>
void backward_as(const LineScanBackward& call, const Block& block, Partial dx, SharedGradient shared) {
  if (call.state.data != nullptr || (call.da.data == nullptr && call.du.data == nullptr)) {
    return backward_with_state<T, In>(call, block, dx, shared);
  }
  const RecomputedState<T, In> state(call, block);
  LineScanBackward with_state = call;
  with_state.state = state.view;
  backward_with_state<T, In>(with_state, block, dx, shared);
}

// da of one direction from the gradients of the shared weights, block sums added in order.
template <class T, class In>
void finish_shared_as(const LineScanBackward& call, int64_t batch, int direction, const void* shared, int64_t count, int64_t distance) {
  const LineScanShape& shape = call.shape;
  const Block block{batch, 0, 1, is_vertical(shape.directions[direction])};
  const Extent extent = extent_of(shape, block);
  const Lines<T> sums(3, extent.positions, 0), logits(3, extent.positions, 0);
  T* const dw[3] = {sums[0], sums[1], sums[2]};
  T* const a[3] = {logits[0], logits[1], logits[2]};
  for (int64_t i = 0; i < extent.lines; ++i) {
    for (int k = 0; k < 3; ++k) {
      const T* part = static_cast<const T*>(shared) + ((direction * extent.lines + i) * 3 + k) * extent.positions;
      std::memcpy(dw[k], part, static_cast<size_t>(extent.positions) * sizeof(T));
      for (int64_t block_index = 1; block_index < count; ++block_index) {
        for (int64_t j = 0; j < extent.positions; ++j) dw[k][j] += part[block_index * distance + j];
      }
    }
    // The sums of a segment's first line are 0 and stay so, whatever its logits are.
    if (shape.normalize && !starts_segment(i, shape.chunk)) {
      for (int k = 0; k < 3; ++k) read_line(a[k], plane<In>(call.a, shape, block, direction, k).from_line(i), extent);
      normalize_line_backward<T>(extent.positions, 1, a, dw, dw);
    }
    for (int k = 0; k < 3; ++k) write_line(plane<In>(call.da, shape, block, direction, k).from_line(i), dw[k], extent);
  }
}

}  // namespace
}  // namespace cgspn::cpu
