// How a call on dense planes is cut into blocks.
#pragma once

#include <algorithm>

#include "channels_last_plan.cuh"

namespace cgspn::cuda {

constexpr int kPlanarOperands = 6;
// By positions a thread; fewer threads leave more registers to each.
constexpr int planar_threads(int positions) { return positions == 1 ? 768 : positions == 2 ? 512 : 1024; }

struct PlanarLayout {
  bool valid = false;
  bool resident = false;  // one block scans all directions of its plane and keeps y in shared memory
  bool odd = false;       // some row begins in the middle of a 4-byte word
  int positions = 1;      // of a line, a thread
  int threads = 0;
  // Lines of a strip, strips in the ring and bytes of each; a single horizontal strip is loaded while nothing else is done.
  int vertical_lines = 0, vertical_buffers = 2, vertical_bytes = 0;
  int horizontal_lines = 0, horizontal_buffers = 0, horizontal_bytes = 0;
  // A row of an operand in a horizontal strip is copied in `pieces` of `piece` bytes, from where it is aligned.
  int piece = 0, pieces = 0;
  int column_bytes = 0;     // of an operand in a vertical strip
  int y_pitch = 0;          // elements
  size_t borders = 0, y = 0, shared = 0;  // `borders`, `y`: where they begin

  int parts(const LineScanShape& s) const { return resident ? 1 : s.num_directions; }
};

inline PlanarLayout make_planar_layout(const LineScanShape& s, int in_alignment, int out_alignment, bool resident,
                                       int positions, int strip_lines, int buffers) {
  const int bytes = s.dtype == DType::kFloat32 ? 4 : 2;
  const int height = static_cast<int>(s.height), width = static_cast<int>(s.width);
  const auto aligned = [](size_t n) { return (n + 15) / 16 * 16; };
  PlanarLayout l;
  l.resident = resident;
  l.odd = std::min(in_alignment, out_alignment) < 4;
  l.positions = positions;
  l.horizontal_buffers = buffers;
  const int length = longest_line(s);
  l.threads = ((length + positions - 1) / positions + 31) / 32 * 32;
  if (l.threads > planar_threads(positions)) return l;
  l.horizontal_lines = strip_lines;
  l.piece = strip_lines * bytes >= 16 ? 16 : 4;
  l.pieces = strip_lines * bytes / l.piece + (in_alignment < l.piece);
  bool horizontal = false, vertical = false;
  for (int i = 0; i < s.num_directions; ++i) (is_vertical(s.directions[i]) ? vertical : horizontal) = true;
  // Without horizontal directions strips are as long as lets several blocks share a multiprocessor.
  size_t ring = positions > 1 ? device_limits().shared - 8192 : device_limits().shared / 4;
  if (horizontal) {
    const size_t rows = static_cast<size_t>((height + positions - 1) / positions) * positions + 1;
    l.horizontal_bytes = static_cast<int>(aligned(rows * kPlanarOperands * l.piece * l.pieces + rows / 4 * 16));
    ring = static_cast<size_t>(buffers) * l.horizontal_bytes;
  }
  // As many lines as fit beside the rows of horizontal strips.
  l.vertical_lines = strip_lines;
  if (vertical) {
    const auto column = [&](int lines) { return aligned(static_cast<size_t>(lines) * width * bytes) + 16; };
    const auto strips = [&] { return l.vertical_buffers * kPlanarOperands * column(l.vertical_lines); };
    while (l.vertical_lines > 2 && strips() > ring) l.vertical_lines -= 2;
    l.column_bytes = static_cast<int>(column(l.vertical_lines));
    l.vertical_bytes = kPlanarOperands * l.column_bytes;
    ring = horizontal ? std::max(ring, strips()) : strips();
  }
  l.y_pitch = bytes == 4 ? width | 1 : 2 * ((width + 1) / 2 | 1);
  l.borders = ring;
  l.y = l.borders + aligned(4 * (l.threads / 32 + 1) * sizeof(float));
  l.shared = l.y + (resident ? aligned(static_cast<size_t>(height) * l.y_pitch * bytes) : 0);
  l.valid = l.shared <= device_limits().shared;
  return l;
}

// Blocks that share a multiprocessor, by their shared memory and threads.
inline int planar_blocks(const PlanarLayout& l) {
  return std::min(static_cast<int>((device_limits().shared + 1024) / (l.shared + 1024)), 768 / l.threads);
}

// By measurement (NOTES.md): strips of 32 bytes, two of them where they fit; y in shared memory where enough planes do
// at once and there are planes for all multiprocessors.
inline PlanarLayout plan_planar(const LineScanShape& s, bool summed, int in_alignment, int out_alignment) {
  const int bytes = s.dtype == DType::kFloat32 ? 4 : 2, length = longest_line(s);
  const int multiprocessors = device_limits().resident[1][1];
  if (summed && s.batch * s.channels >= 3 * multiprocessors) {
    const PlanarLayout l = make_planar_layout(s, in_alignment, out_alignment, true, 1, 32 / bytes, 2);
    if (l.valid && planar_blocks(l) >= (bytes == 4 ? 1 : 3)) return l;
  }
  const int positions = length <= planar_threads(1) / 2 ? 1 : length <= 2 * planar_threads(2) ? 2 : 4;
  PlanarLayout l;
  for (int lines = 32 / bytes; lines >= 2 && !l.valid; lines /= 2) {
    for (int buffers = 2; buffers >= 1 && !l.valid; --buffers) {
      l = make_planar_layout(s, in_alignment, out_alignment, false, positions, lines, buffers);
    }
  }
  return l;
}

}  // namespace cgspn::cuda
