// How a call on dense planes is cut into blocks.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "channels_last_plan.cuh"

namespace cgspn::cuda {

constexpr int kPlanarOperands = 6;
// By positions a thread; fewer threads leave more registers to each.
constexpr int planar_threads(int positions) { return positions == 1 ? 768 : positions == 2 ? 512 : 1024; }

// Where the directions are summed: nowhere or by a second kernel, one block a direction; or one block scans all
// directions of its plane and adds in y, or in shared memory.
enum class PlanarHome { kParts, kOutput, kShared };

struct PlanarLayout {
  bool valid = false;
  PlanarHome home = PlanarHome::kParts;
  bool odd = false;   // some row begins in the middle of a 4-byte word
  int positions = 1;  // of a line, a thread
  int threads = 0, buffers = 0;
  int vertical_lines = 0, horizontal_lines = 0;  // of a strip
  // A row of an operand in a horizontal strip is copied in `pieces` of `piece` bytes, from where it is aligned.
  int piece = 0, pieces = 0;
  int column_bytes = 0;     // of an operand in a vertical strip
  int y_pitch = 0;          // elements
  size_t buffer_bytes = 0, borders = 0, y = 0, shared = 0;  // `borders`, `y`: where they begin
  double cost = 0;

  int parts(const LineScanShape& s) const { return home == PlanarHome::kParts ? s.num_directions : 1; }
};

inline PlanarLayout make_planar_layout(const LineScanShape& s, int in_alignment, int out_alignment, PlanarHome home,
                                       int positions, int strip_lines, int buffers) {
  const int bytes = s.dtype == DType::kFloat32 ? 4 : 2;
  const int height = static_cast<int>(s.height), width = static_cast<int>(s.width);
  const auto aligned = [](size_t n) { return (n + 15) / 16 * 16; };
  PlanarLayout l;
  l.home = home;
  l.odd = std::min(in_alignment, out_alignment) < 4;
  l.positions = positions;
  l.buffers = buffers;
  const int length = longest_line(s);
  l.threads = ((length + positions - 1) / positions + 31) / 32 * 32;
  if (l.threads > planar_threads(positions) || (home == PlanarHome::kShared && positions > 2)) return l;
  l.horizontal_lines = strip_lines;
  l.piece = strip_lines * bytes >= 16 ? 16 : 4;
  l.pieces = strip_lines * bytes / l.piece + (in_alignment < l.piece);
  bool horizontal = false, vertical = false;
  for (int i = 0; i < s.num_directions; ++i) (is_vertical(s.directions[i]) ? vertical : horizontal) = true;
  if (horizontal) {
    const size_t rows = static_cast<size_t>((height + positions - 1) / positions) * positions + 1;
    l.buffer_bytes = aligned(rows * kPlanarOperands * l.piece * l.pieces + rows / 4 * 16);
  }
  // As many lines as fit beside the rows of horizontal strips.
  const int operands = kPlanarOperands + (home == PlanarHome::kOutput);
  l.vertical_lines = strip_lines;
  if (vertical) {
    const auto column = [&](int lines) { return aligned(static_cast<size_t>(lines) * width * bytes) + 16; };
    while (horizontal && l.vertical_lines > 2 && operands * column(l.vertical_lines) > l.buffer_bytes) {
      l.vertical_lines -= 2;
    }
    l.column_bytes = static_cast<int>(column(l.vertical_lines));
    l.buffer_bytes = std::max<size_t>(l.buffer_bytes, static_cast<size_t>(operands) * l.column_bytes);
  }
  l.y_pitch = bytes == 4 ? width | 1 : 2 * ((width + 1) / 2 | 1);
  l.borders = buffers * l.buffer_bytes;
  l.y = l.borders + aligned(4 * (l.threads / 32 + 1) * sizeof(float));
  l.shared =
      l.y + (home == PlanarHome::kShared ? aligned(static_cast<size_t>(height) * l.y_pitch * bytes) : 0);
  l.valid = l.shared <= device_limits().shared;
  return l;
}

// Dependent lines against bytes; fills in `cost` in microseconds.
inline void estimate(PlanarLayout& l, const LineScanShape& s) {
  const double multiprocessors = device_limits().resident[1][1];
  const double bytes = s.dtype == DType::kFloat32 ? 4 : 2;
  const int by_shared = static_cast<int>((device_limits().shared + 1024) / (l.shared + 1024));
  const int by_threads = std::min(2048 / l.threads, 65536 / (l.threads * (l.positions == 2 ? 112 : l.positions == 1 ? 80 : 64)));
  const int resident_blocks = std::max(1, std::min(by_shared, by_threads));
  const double blocks = static_cast<double>(s.batch) * s.channels * l.parts(s);
  const double waves = std::ceil(blocks / (multiprocessors * resident_blocks));
  double lines = 0;
  for (int i = 0; i < s.num_directions; ++i) lines += num_lines(s, s.directions[i]);
  lines /= l.parts(s);
  const double live = std::min<double>(resident_blocks, std::ceil(blocks / multiprocessors));
  const double issue = live * l.threads * l.positions * 65.0 / 128 / 1.3e3;
  const double line_us = std::max(0.17 + 0.25 / l.horizontal_lines, issue);
  const double tensor = static_cast<double>(s.batch) * s.channels * s.height * s.width * bytes;
  const double sums = l.home == PlanarHome::kShared    ? 2
                      : l.home == PlanarHome::kOutput ? 3.0 * s.num_directions - 1
                      : s.num_directions > 1          ? 4.0 * s.num_directions + 1
                                                      : 2;
  const double segment = l.horizontal_lines * bytes >= 32 ? 1.0 : 1.2;
  const double scan = waves * lines * line_us, move = (5.0 * s.num_directions + sums) * tensor * segment / 2.7e6;
  l.cost = std::max(scan, move) + 0.2 * std::min(scan, move) + (l.parts(s) > 1 ? 3 : 0);
}

inline PlanarLayout plan_planar(const LineScanShape& s, bool summed, bool dense_y, int in_alignment,
                                int out_alignment) {
  const int bytes = s.dtype == DType::kFloat32 ? 4 : 2;
  PlanarLayout best;
  const char* const forced = std::getenv("CGSPN_PLANAR");
  if (forced != nullptr) {
    int home = 0, positions = 1, lines = 8, buffers = 2;
    std::sscanf(forced, "%d,%d,%d,%d", &home, &positions, &lines, &buffers);
    if (home == 1 && !dense_y) return best;
    return make_planar_layout(s, in_alignment, out_alignment, static_cast<PlanarHome>(home), positions, lines, buffers);
  }
  const int length = longest_line(s);
  for (const PlanarHome home : {PlanarHome::kParts, PlanarHome::kOutput, PlanarHome::kShared}) {
    if (home != PlanarHome::kParts && !summed) continue;
    if (home == PlanarHome::kOutput && !dense_y) continue;
    for (const int positions : {1, 2, 4}) {
      if (positions > 1 && (length <= 256 * positions / 2 || (home == PlanarHome::kShared && positions > 2))) continue;
      for (int lines = 32 / bytes; lines >= 2; lines /= 2) {
        PlanarLayout l = make_planar_layout(s, in_alignment, out_alignment, home, positions, lines, 2);
        if (!l.valid) continue;
        estimate(l, s);
        if (!best.valid || l.cost < best.cost) best = l;
      }
    }
  }
  return best;
}

}  // namespace cgspn::cuda
