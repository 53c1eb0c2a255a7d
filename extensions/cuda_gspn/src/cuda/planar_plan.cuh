// How a call on dense planes is cut into blocks.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "channels_last_plan.cuh"

namespace cgspn::cuda {

constexpr int kPlanarOperands = 6;
// By positions a thread; fewer threads leave more registers to each.
constexpr int planar_threads(int positions) { return positions == 2 ? 512 : 1024; }

struct PlanarLayout {
  bool valid = false;
  bool resident = false;  // one block scans all directions of its plane and keeps y in shared memory
  bool odd = false;       // some row begins in the middle of a 4-byte word
  int positions = 1;      // of a line, a thread
  int threads = 0, strip_lines = 0, buffers = 0;
  int strip_words = 0;      // of a row's piece in a horizontal strip
  int row_words = 0;        // of all operands of that piece, odd, so that neighbouring rows lie in other banks
  int column_bytes = 0;     // of an operand in a vertical strip
  int y_pitch = 0;          // elements
  size_t buffer_bytes = 0, borders = 0, y = 0, shared = 0;  // `borders`, `y`: where they begin
  double cost = 0;

  int parts(const LineScanShape& s) const { return resident ? 1 : s.num_directions; }
};

inline PlanarLayout make_planar_layout(const LineScanShape& s, bool odd, bool resident, int positions,
                                       int strip_lines, int buffers) {
  const int bytes = s.dtype == DType::kFloat32 ? 4 : 2;
  const int height = static_cast<int>(s.height), width = static_cast<int>(s.width);
  const auto aligned = [](size_t n) { return (n + 15) / 16 * 16; };
  PlanarLayout l;
  l.resident = resident;
  l.odd = odd;
  l.positions = positions;
  l.strip_lines = strip_lines;
  l.buffers = buffers;
  const int length = longest_line(s);
  l.threads = ((length + positions - 1) / positions + 31) / 32 * 32;
  if (l.threads > planar_threads(positions)) return l;
  l.strip_words = strip_lines * bytes / 4;
  l.row_words = (l.strip_words + odd) * kPlanarOperands + 1;
  l.column_bytes = static_cast<int>(aligned(static_cast<size_t>(strip_lines) * width * bytes) + 16);
  for (int i = 0; i < s.num_directions; ++i) {
    const size_t rows = static_cast<size_t>((height + positions - 1) / positions) * positions + 1;
    const size_t strip = is_vertical(s.directions[i]) ? static_cast<size_t>(kPlanarOperands) * l.column_bytes
                                                      : rows * l.row_words * 4;
    l.buffer_bytes = std::max(l.buffer_bytes, aligned(strip));
  }
  l.y_pitch = bytes == 4 ? width | 1 : 2 * ((width + 1) / 2 | 1);
  l.borders = buffers * l.buffer_bytes;
  l.y = l.borders + aligned(4 * (l.threads / 32 + 1) * sizeof(float));
  l.shared = l.y + (resident ? aligned(static_cast<size_t>(height) * l.y_pitch * bytes) : 0);
  l.valid = l.shared <= device_limits().shared;
  return l;
}

// Dependent lines against bytes; fills in `cost` in microseconds.
inline void estimate(PlanarLayout& l, const LineScanShape& s) {
  const double multiprocessors = device_limits().resident[1][1];
  const double bytes = s.dtype == DType::kFloat32 ? 4 : 2;
  const int by_shared = static_cast<int>((device_limits().shared + 1024) / (l.shared + 1024));
  const int by_threads = std::min(2048 / l.threads, 65536 / (l.threads * (l.positions == 2 ? 80 : 64)));
  const int resident_blocks = std::max(1, std::min(by_shared, by_threads));
  const double blocks = static_cast<double>(s.batch) * s.channels * l.parts(s);
  const double waves = std::ceil(blocks / (multiprocessors * resident_blocks));
  double lines = 0;
  for (int i = 0; i < s.num_directions; ++i) lines += num_lines(s, s.directions[i]);
  lines /= l.parts(s);
  const double live = std::min<double>(resident_blocks, std::ceil(blocks / multiprocessors));
  const double issue = live * l.threads * l.positions * 65.0 / 128 / 1.3e3;
  const double line_us = std::max(0.17 + 0.25 / l.strip_lines, issue);
  const double tensor = static_cast<double>(s.batch) * s.channels * s.height * s.width * bytes;
  const double tensors = 5.0 * s.num_directions + (l.resident ? 2 : s.num_directions > 1 ? 3.0 * s.num_directions + 1 : 2);
  const double segment = l.strip_lines * bytes >= 32 ? 1.0 : 1.2;
  const double scan = waves * lines * line_us, move = tensors * tensor * segment / 2.7e6;
  l.cost = std::max(scan, move) + 0.2 * std::min(scan, move) + (l.parts(s) > 1 ? 3 : 0);
}

inline PlanarLayout plan_planar(const LineScanShape& s, bool summed, bool odd) {
  const int bytes = s.dtype == DType::kFloat32 ? 4 : 2;
  PlanarLayout best;
  const char* const forced = std::getenv("CGSPN_PLANAR");
  if (forced != nullptr) {
    int resident = 0, positions = 1, lines = 8, buffers = 2;
    std::sscanf(forced, "%d,%d,%d,%d", &resident, &positions, &lines, &buffers);
    return make_planar_layout(s, odd, resident != 0, positions, lines, buffers);
  }
  const int length = longest_line(s);
  for (int resident = 0; resident < 2; ++resident) {
    if (resident && !(summed && s.num_directions > 1)) continue;
    for (const int positions : {1, 2, 4}) {
      if (positions > 1 && length <= 512 * (positions / 2)) continue;
      for (int lines = 32 / bytes; lines >= 2; lines /= 2) {
        PlanarLayout l = make_planar_layout(s, odd, resident, positions, lines, 2);
        if (!l.valid) continue;
        estimate(l, s);
        if (!best.valid || l.cost < best.cost) best = l;
      }
    }
  }
  return best;
}

}  // namespace cgspn::cuda
