// Line-scan propagation and row-stochastic normalisation on raw pointers; no torch needed.
//
// Tensors are pointers with strides in elements; any stride is accepted, 0 included for inputs.
// A null data pointer means that the tensor is absent (lam, u: all ones) or not asked for (outputs).
// No size is 0 here: callers return early for empty tensors.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cgspn {

enum class DType : int { kFloat16 = 0, kBFloat16 = 1, kFloat32 = 2, kFloat64 = 3 };
enum class Direction : int { kTopBottom = 0, kBottomTop = 1, kLeftRight = 2, kRightLeft = 3 };

constexpr int kMaxDirections = 4;

// Strides of (B, C, H, W).
struct ImageView {
  void* data = nullptr;
  int64_t b = 0, c = 0, h = 0, w = 0;
};

// Strides of (B, D, C, H, W): gates, states and unsummed outputs.
struct DirectionView {
  void* data = nullptr;
  int64_t b = 0, d = 0, c = 0, h = 0, w = 0;
};

// Strides of (B, D, 3, Ca, H, W): affinity logits or weights; c is 0 where Ca = 1 serves all channels.
struct AffinityView {
  void* data = nullptr;
  int64_t b = 0, d = 0, k = 0, c = 0, h = 0, w = 0;
};

struct LineScanShape {
  DType dtype = DType::kFloat32;
  int64_t batch = 0, channels = 0, affinity_channels = 0, height = 0, width = 0;
  int num_directions = 0;
  Direction directions[kMaxDirections] = {};
  int64_t chunk = 0;       // lines per segment; 0 scans the whole extent
  bool normalize = true;   // false: `a` holds the weights themselves
};

struct LineScanForward {
  LineScanShape shape;
  ImageView x;
  AffinityView a;
  DirectionView lam, u;
  DirectionView y;      // d = 0 and `sum` set: directions are added into one (B, C, H, W)
  bool sum = true;
  DirectionView state;  // h in the input dtype, or absent
};

struct LineScanBackward {
  LineScanShape shape;
  ImageView x;
  AffinityView a;
  DirectionView lam, u;
  DirectionView dy;     // d = 0 where the directions were summed
  DirectionView state;  // h of the forward pass; absent: recomputed
  ImageView dx;
  AffinityView da;
  DirectionView dlam, du;
};

// `shape.channels` equals `shape.affinity_channels`; `chunk` and `normalize` are not read.
struct RowStochasticForward {
  LineScanShape shape;
  AffinityView a, w;
};

struct RowStochasticBackward {
  LineScanShape shape;
  AffinityView dw, a, da;
};

}  // namespace cgspn
