// Latent propagation on raw pointers: the scan's logits and gates are `weight x + bias`, made where they are used.
#pragma once

#include "cgspn/line_scan.h"

namespace cgspn {

// `shape.normalize` is not read. Rows of weight (rows, C) and bias (rows): [a (D, 3, Ca) | lam (D, C) | u (D, C)].
struct LatentForward {
  LineScanShape shape;
  ImageView x;
  const void* weight = nullptr;  // contiguous, dtype of x, as bias and y
  const void* bias = nullptr;
  DirectionView y;  // d = 0 and `sum` set: directions are added into one (B, C, H, W)
  bool sum = true;
  bool early = false;  // CUDA: may start before the kernel before it in the stream, which makes x and nothing else, has ended
};

}  // namespace cgspn
