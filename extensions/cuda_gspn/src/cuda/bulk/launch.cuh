// What the bulk-copy kernels share around their launch: layout checks, tensor maps, parameters, the choice of a variant.
#pragma once

#include <algorithm>

#include "cuda/bulk/copies.cuh"
#include "cuda/bulk/plan.cuh"
#include "cuda/channels_last_plan.cuh"
#include "cuda/vector.cuh"

namespace cgspn::cuda {

// Whether a tensor map can describe the view: strides of axes longer than 1 are positive multiples of 16 bytes.
template <typename View>
bool tiled(const View& v, const LineScanShape& s, int bytes) {
  const auto fits = [&](int64_t stride, int64_t size) {
    return size == 1 || (stride > 0 && stride * bytes < int64_t{1} << 40);
  };
  return v.data == nullptr ||
         (vectorised(v, bytes) && fits(v.b, s.batch) && fits(v.h, s.height) && fits(v.w, s.width));
}

// The same of an affinity; one that all channels share has the logits of a position side by side, D times 3.
inline bool tiled_affinity(const AffinityView& v, const LineScanShape& s, int bytes) {
  if (!shares_affinity(s)) return tiled(v, s, bytes);
  const ImageView rows = {v.data, v.b, 1, v.h, v.w};
  return v.k == 1 && (s.num_directions == 1 || v.d == 3) && tiled(rows, s, bytes);
}

// Makes tensor maps of (channel, position, line, image), with the neighbours as second axis for an affinity.
struct TileMaps {
  const LineScanShape& shape;
  bool vertical;
  int lines, length, positions, vectors, bytes;

  template <typename View>
  bool encode(CUtensorMap* map, const View& v, const void* data, int border = 0) const {
    const cuuint64_t sizes[4] = {cuuint64_t(shape.channels), cuuint64_t(length), cuuint64_t(lines),
                                 cuuint64_t(shape.batch)};
    const cuuint64_t strides[3] = {cuuint64_t((vertical ? v.w : v.h) * bytes),
                                   cuuint64_t((vertical ? v.h : v.w) * bytes), cuuint64_t(v.b * bytes)};
    const cuuint32_t box[4] = {cuuint32_t(vectors * 16 / bytes), cuuint32_t(positions + border), 1, 1};
    return encode_tensor_map(map, data, bytes, 4, sizes, strides, box);
  }

  bool encode(CUtensorMap* map, const AffinityView& v, const void* data) const {
    const cuuint64_t sizes[5] = {cuuint64_t(shape.channels), 3, cuuint64_t(length), cuuint64_t(lines),
                                 cuuint64_t(shape.batch)};
    const cuuint64_t strides[4] = {cuuint64_t(v.k * bytes), cuuint64_t((vertical ? v.w : v.h) * bytes),
                                   cuuint64_t((vertical ? v.h : v.w) * bytes), cuuint64_t(v.b * bytes)};
    const cuuint32_t box[5] = {cuuint32_t(vectors * 16 / bytes), 3, cuuint32_t(positions), 1, 1};
    return encode_tensor_map(map, data, bytes, 5, sizes, strides, box);
  }

  // The logits of all directions of a position, which its channels share.
  bool encode_shared(CUtensorMap* map, const AffinityView& v) const {
    const cuuint64_t sizes[4] = {cuuint64_t(3 * shape.num_directions), cuuint64_t(length), cuuint64_t(lines),
                                 cuuint64_t(shape.batch)};
    const cuuint64_t strides[3] = {cuuint64_t((vertical ? v.w : v.h) * bytes),
                                   cuuint64_t((vertical ? v.h : v.w) * bytes), cuuint64_t(v.b * bytes)};
    const cuuint32_t box[4] = {cuuint32_t(shared_logit_bytes(shape) / bytes), cuuint32_t(positions), 1, 1};
    return encode_tensor_map(map, v.data, bytes, 4, sizes, strides, box);
  }
};

template <typename View>
bool dense_channels_last(const View& v, const LineScanShape& s) {
  return v.w == s.channels && v.h == s.channels * s.width && v.b == v.h * s.height;
}

// Whether the dtype and the channels are the kernels'.
inline bool bulk_channels(const LineScanShape& s) {
  const int bytes = s.dtype == DType::kFloat32 ? 4 : 2;
  return s.dtype != DType::kFloat64 && s.channels * bytes % 16 == 0;
}

// Direction i of a tensor; null where it is absent.
template <typename View>
char* direction_data(const View& v, int i, int bytes) {
  return v.data == nullptr ? nullptr : static_cast<char*>(v.data) + i * v.d * bytes;
}

// Fills in what follows from the layout, and zeroes the counters at the start of the workspace.
template <typename Params>
cudaError_t prepare_params(Params& p, const BulkLayout& l, const LineScanShape& s, void* workspace,
                           cudaStream_t stream) {
  p.chunk = static_cast<int>(std::min<int64_t>(s.chunk, 1 << 30));
  p.counters = static_cast<unsigned*>(workspace);
  p.groups = l.groups;
  p.vectors = l.vectors;
  p.slices = l.slices;
  p.parts = l.parts;
  p.passes_per_part = s.num_directions / l.parts / l.sides;
  p.sides = l.sides;
  p.split = l.split;
  p.positions = l.positions;
  p.stages = l.stages;
  return l.sides == 2 ? cudaMemsetAsync(p.counters, 0, l.counter_bytes(s), stream) : cudaSuccess;
}

// Fills in how the lines of a direction lie; returns the maker of its tensor maps.
template <typename Pass>
TileMaps prepare_pass(Pass& pass, const BulkLayout& l, const LineScanShape& s, Direction d) {
  pass.vertical = is_vertical(d);
  pass.reversed = is_reversed(d);
  pass.lines = static_cast<int>(num_lines(s, d));
  pass.length = static_cast<int>(line_length(s, d));
  pass.positions = (pass.length + l.split - 1) / l.split;
  return {s,         pass.vertical, pass.lines, pass.length, pass.positions,
          l.vectors, s.dtype == DType::kFloat32 ? 4 : 2};
}

// Launches variant<channels a thread, normalises, in clusters, channels share the affinity>().
template <typename T, typename Params, typename Variant>
cudaError_t launch_bulk(const Params& p, const BulkLayout& l, const LineScanShape& s, cudaStream_t stream,
                        const Variant& variant) {
  const auto launch = [&](auto* kernel) {
    return launch_clusters(kernel, p, l.blocks(s), l.threads + 32, l.shared, l.split, stream);
  };
  const auto with_channels = [&]<int N, bool kShared>() {
    if (l.split > 1) {
      return s.normalize ? launch(variant.template operator()<N, true, true, kShared>())
                         : launch(variant.template operator()<N, false, true, kShared>());
    }
    return s.normalize ? launch(variant.template operator()<N, true, false, kShared>())
                       : launch(variant.template operator()<N, false, false, kShared>());
  };
  if (shares_affinity(s)) return with_channels.template operator()<kLanes<T>, true>();
  return l.lanes == 2 ? with_channels.template operator()<2, false>()
                      : with_channels.template operator()<kLanes<T>, false>();
}

template <typename Run>
cudaError_t dispatch_bulk(DType dtype, const Run& run) {
  switch (dtype) {
    case DType::kFloat16:
      return run.template operator()<__half>();
    case DType::kBFloat16:
      return run.template operator()<__nv_bfloat16>();
    case DType::kFloat32:
      return run.template operator()<float>();
    default:
      return cudaErrorInvalidValue;
  }
}

// Ones in place of absent gates, in every stage of the ring; -1 is a gate that is there.
template <typename T>
__device__ __forceinline__ void fill_absent_gates(unsigned char* shared, const BulkShared& at, int stages, int vectors,
                                                  int lam, int u) {
  if (lam < 0 && u < 0) return;
  const uint4 one = *reinterpret_cast<const uint4*>(ones<T>());
  for (int s = 0; s < stages; ++s) {
    unsigned char* const stage = shared + s * at.stage_bytes;
    for (int i = threadIdx.x; i < vectors; i += blockDim.x) {
      if (lam >= 0) reinterpret_cast<uint4*>(stage + lam * at.tile)[i] = one;
      if (u >= 0) reinterpret_cast<uint4*>(stage + u * at.tile)[i] = one;
    }
  }
}

}  // namespace cgspn::cuda
