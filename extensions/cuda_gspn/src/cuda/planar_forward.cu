// Forward kernel for tensors whose (image, channel) planes are dense: NCHW, or one channel.
//
// A block owns one plane and one direction, or all directions one after the other; its threads hold the positions of a
// line, P neighbours each, states in registers. Neighbours' states come by shuffles, at the borders of warps through
// double-buffered shared memory, with one barrier a line. Operands come through a ring of strips of some lines
// (planar_strips.cuh); two lines are read, and their weights made, at once.
//
// Sum over directions: a block that scans all of them adds in shared memory and writes y once; with a block a direction
// each goes to scratch and a second kernel adds them in order.
#include "planar_forward.cuh"

#include <initializer_list>
#include <utility>

#include "planar_scan.cuh"
#include "sum_parts.cuh"

namespace cgspn::cuda {
namespace {

template <typename T, int P, bool kOdd, bool kResident>
__global__ void __launch_bounds__(planar_threads(P), 1) planar_forward_kernel(const __grid_constant__ PlanarParams p) {
  extern __shared__ __align__(16) unsigned char shared[];
  uint32_t shared_at = shared_address(shared);
  asm volatile("" : "+r"(shared_at));  // kept in a register, not computed again at every use
  const int part = blockIdx.x % p.parts, plane = blockIdx.x / p.parts;
  const int64_t image = plane / p.channels, channel = plane % p.channels;
  const auto at = [&](auto* data, const PlaneStrides& s) {
    return data == nullptr ? nullptr : data + image * s.b + channel * s.c;
  };
  for (int n = 0; n < p.passes_per_part; ++n) {
    const PlanarPass& pass = p.passes[part * p.passes_per_part + n];
    char* const y = at(pass.y, p.y);
    const auto run = [&](auto vertical) {
      constexpr bool kVertical = decltype(vertical)::value;
      const PlanarScan<T, P, kOdd, kResident, kVertical> scan{{
          p,
          {at(pass.operands[kLeftLogit], p.a), at(pass.operands[kMiddleLogit], p.a),
           at(pass.operands[kRightLogit], p.a), at(pass.operands[kLam], p.lam), at(pass.operands[kU], p.u),
           at(pass.operands[kX], p.x)},
          y,
          at(pass.state, p.state),
          shared_at,
          p.width,
          p.height,
          kVertical ? p.vertical_lines : p.horizontal_lines,
          kVertical ? p.vertical_buffers : p.horizontal_buffers,
          kVertical ? p.vertical_bytes : p.horizontal_bytes,
          pass.reversed,
          pass.accumulate}};
      scan.run(shared_at + p.y_at);
    };
    if (pass.vertical) {
      run(std::true_type());
    } else {
      run(std::false_type());
    }
  }
  if constexpr (kResident) {
    char* const y = at(p.passes[0].y, p.y);
    const T* const y_plane = reinterpret_cast<const T*>(shared + p.y_at);
    for (int row = threadIdx.x / 32; row < p.height; row += blockDim.x / 32) {
      T* const to = reinterpret_cast<T*>(y + row * p.y.h);
      for (int column = threadIdx.x % 32; column < p.width; column += 32) {
        to[column] = y_plane[row * p.y_pitch + column];
      }
    }
  }
}

// Adds dense planes `part_bytes` apart into y, one value a thread.
template <typename T>
__global__ void __launch_bounds__(256)
    sum_planes_kernel(const char* parts, int64_t part_bytes, int num_parts, char* y, PlaneStrides s, int channels,
                      int height, int width, int64_t count) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i >= count) return;
  float sum = 0.0f;
  for (int n = 0; n < num_parts; ++n) sum += widen(reinterpret_cast<const T*>(parts + n * part_bytes)[i]);
  const int64_t row = i / width, plane = row / height;
  char* const to = y + plane / channels * s.b + plane % channels * s.c + row % height * s.h;
  reinterpret_cast<T*>(to)[i % width] = narrow<T>(sum);
}

template <typename View>
PlaneStrides plane_strides(const View& v, int64_t bytes) {
  return {v.b * bytes, v.c * bytes, v.h * bytes};
}

// Rows of unit stride; `dense`: one directly behind the other.
template <typename View>
bool planes(const View& v, const LineScanShape& s, bool dense) {
  return v.data == nullptr ||
         ((v.w == 1 || s.width == 1) && (!dense || s.height == 1 || v.h == s.width));
}

// The largest power of two, at most 16, that divides the addresses of all rows of these tensors.
int row_alignment(const LineScanForward& call, bool inputs) {
  const LineScanShape& s = call.shape;
  const int64_t bytes = s.dtype == DType::kFloat32 ? 4 : 2;
  int64_t bits = 16;
  const auto include = [&](const void* data, std::initializer_list<std::pair<int64_t, int64_t>> strides) {
    if (data == nullptr) return;
    bits |= static_cast<int64_t>(reinterpret_cast<uintptr_t>(data));
    for (const auto& [size, stride] : strides) bits |= size > 1 ? stride * bytes : 0;
  };
  const int64_t d = s.num_directions;
  if (inputs) {
    bits |= s.width * bytes;
    include(call.x.data, {{s.batch, call.x.b}, {s.channels, call.x.c}});
    include(call.a.data, {{s.batch, call.a.b}, {d, call.a.d}, {3, call.a.k}, {s.channels, call.a.c}});
    include(call.lam.data, {{s.batch, call.lam.b}, {d, call.lam.d}, {s.channels, call.lam.c}});
    include(call.u.data, {{s.batch, call.u.b}, {d, call.u.d}, {s.channels, call.u.c}});
  } else {
    const int64_t y_d = call.sum ? 1 : d;
    include(call.y.data, {{s.batch, call.y.b}, {y_d, call.y.d}, {s.channels, call.y.c}, {s.height, call.y.h}});
    include(call.state.data,
            {{s.batch, call.state.b}, {d, call.state.d}, {s.channels, call.state.c}, {s.height, call.state.h}});
  }
  return static_cast<int>(bits & -bits);
}

// Whether the same row of any operand of any direction begins at the same place of a 16-byte piece.
bool same_skew(const LineScanForward& call) {
  const LineScanShape& s = call.shape;
  const int64_t bytes = s.dtype == DType::kFloat32 ? 4 : 2;
  int64_t bits = 0;
  const auto include = [&](const auto& v) {
    if (v.data == nullptr) return;
    bits |= static_cast<int64_t>(reinterpret_cast<uintptr_t>(v.data) - reinterpret_cast<uintptr_t>(call.x.data));
    bits |= s.batch > 1 ? (v.b - call.x.b) * bytes : 0;
    bits |= s.channels > 1 ? (v.c - call.x.c) * bytes : 0;
    bits |= s.num_directions > 1 ? v.d * bytes : 0;
  };
  include(call.a);
  include(call.lam);
  include(call.u);
  return (bits | call.a.k * bytes) % 16 == 0;
}

// Behind the last value of a tensor whose rows are dense.
template <typename View>
const char* end_of(const View& v, const LineScanShape& s, int64_t offset) {
  if (v.data == nullptr) return nullptr;
  const int64_t values = offset + (s.batch - 1) * v.b + (s.channels - 1) * v.c + s.height * s.width;
  return static_cast<const char*>(v.data) + values * (s.dtype == DType::kFloat32 ? 4 : 2);
}

PlanarLayout layout_of(const LineScanForward& call) {
  const bool summed = call.sum && call.y.data != nullptr && call.shape.num_directions > 1;
  return plan_planar(call.shape, summed, row_alignment(call, true), row_alignment(call, false));
}

bool uses_scratch(const LineScanForward& call, const PlanarLayout& l) {
  return call.sum && call.y.data != nullptr && !l.resident && call.shape.num_directions > 1;
}

size_t part_bytes(const LineScanShape& s) {
  const size_t bytes = static_cast<size_t>(s.batch) * s.channels * s.height * s.width;
  return (bytes * (s.dtype == DType::kFloat32 ? 4 : 2) + 15) / 16 * 16;
}

template <typename T, int P, bool kResident>
cudaError_t launch(const PlanarParams& p, const PlanarLayout& l, const LineScanShape& s, cudaStream_t stream) {
  // Long lines always take the kernel that serves every row.
  auto kernel = planar_forward_kernel<T, P, (P == 4 && sizeof(T) == 2), kResident>;
  if constexpr (sizeof(T) == 2) {
    if (l.odd) kernel = planar_forward_kernel<T, P, true, kResident>;
  }
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(l.shared));
  if (error != cudaSuccess) return error;
  kernel<<<static_cast<unsigned>(s.batch * s.channels * p.parts), l.threads, l.shared, stream>>>(p);
  return cudaGetLastError();
}

template <typename T>
cudaError_t launch(const PlanarParams& p, const PlanarLayout& l, const LineScanShape& s, cudaStream_t stream) {
  if (l.resident) return launch<T, 1, true>(p, l, s, stream);
  if (l.positions == 1) return launch<T, 1, false>(p, l, s, stream);
  return l.positions == 2 ? launch<T, 2, false>(p, l, s, stream) : launch<T, 4, false>(p, l, s, stream);
}

template <typename T>
cudaError_t run(const LineScanForward& call, void* workspace, cudaStream_t stream) {
  constexpr int64_t kBytes = sizeof(T);
  const LineScanShape& s = call.shape;
  const PlanarLayout l = layout_of(call);
  const bool scratch = uses_scratch(call, l);
  const int64_t part = static_cast<int64_t>(part_bytes(s));
  PlanarParams p = {};
  p.x = plane_strides(call.x, kBytes);
  p.a = plane_strides(call.a, kBytes);
  p.lam = plane_strides(call.lam, kBytes);
  p.u = plane_strides(call.u, kBytes);
  p.y = scratch ? PlaneStrides{s.channels * s.height * s.width * kBytes, s.height * s.width * kBytes, s.width * kBytes}
                : plane_strides(call.y, kBytes);
  p.state = plane_strides(call.state, kBytes);
  p.normalize = s.normalize;
  p.channels = static_cast<int>(s.channels);
  p.height = static_cast<int>(s.height);
  p.width = static_cast<int>(s.width);
  p.chunk = static_cast<int>(std::min<int64_t>(s.chunk, 1 << 30));
  p.parts = l.parts(s);
  p.passes_per_part = s.num_directions / p.parts;
  while (4 << p.word_shift < l.horizontal_lines * kBytes) ++p.word_shift;
  const int64_t last = s.num_directions - 1;
  p.x_end = end_of(call.x, s, 0);
  p.a_end = end_of(call.a, s, last * call.a.d + 2 * call.a.k);
  p.lam_end = end_of(call.lam, s, last * call.lam.d);
  p.u_end = end_of(call.u, s, last * call.u.d);
  p.vertical_lines = l.vertical_lines;
  p.horizontal_lines = l.horizontal_lines;
  p.vertical_buffers = l.vertical_buffers;
  p.vertical_bytes = l.vertical_bytes;
  p.horizontal_buffers = l.horizontal_buffers;
  p.horizontal_bytes = l.horizontal_bytes;
  p.piece = l.piece;
  p.same_skew = l.piece == 16 && same_skew(call);
  p.pieces = l.pieces;
  p.column_bytes = l.column_bytes;
  p.y_pitch = l.y_pitch;
  p.borders = static_cast<int>(l.borders);
  p.y_at = static_cast<int>(l.y);
  const auto slot = [&](const auto& view, int i) {
    return view.data == nullptr ? nullptr : static_cast<char*>(view.data) + i * view.d * kBytes;
  };
  for (int i = 0; i < s.num_directions; ++i) {
    PlanarPass& pass = p.passes[i];
    const Direction d = s.directions[i];
    for (int k = 0; k < 3; ++k) pass.operands[k] = slot(call.a, i) + k * call.a.k * kBytes;
    pass.operands[kLam] = slot(call.lam, i);
    pass.operands[kU] = slot(call.u, i);
    pass.operands[kX] = static_cast<const char*>(call.x.data);
    pass.y = scratch ? static_cast<char*>(workspace) + i * part
                     : call.sum ? static_cast<char*>(call.y.data) : slot(call.y, i);
    pass.state = slot(call.state, i);
    pass.vertical = is_vertical(d);
    pass.reversed = is_reversed(d);
    pass.accumulate = i % p.passes_per_part > 0;
  }
  const cudaError_t error = launch<T>(p, l, s, stream);
  if (error != cudaSuccess || !scratch) return error;
  const int64_t plane = s.height * s.width, count = s.batch * s.channels * plane;
  const bool dense = (s.height == 1 || call.y.h == s.width) && (s.channels == 1 || call.y.c == plane) &&
                     (s.batch == 1 || call.y.b == s.channels * plane) &&
                     reinterpret_cast<uintptr_t>(call.y.data) % 16 == 0 && count * kBytes % 16 == 0;
  if (dense) return sum_parts<T>(workspace, call.y.data, s.num_directions, part, stream);
  sum_planes_kernel<T><<<static_cast<unsigned>((count + 255) / 256), 256, 0, stream>>>(
      static_cast<const char*>(workspace), part, s.num_directions, static_cast<char*>(call.y.data),
      plane_strides(call.y, kBytes), p.channels, p.height, p.width, count);
  return cudaGetLastError();
}

}  // namespace

bool planar_forward_applies(const LineScanForward& call) {
  const LineScanShape& s = call.shape;
  if (s.dtype == DType::kFloat64) return false;
  if (s.height > 1 << 20 || s.width > 1 << 20 || s.batch * s.channels * s.num_directions >= int64_t{1} << 31) {
    return false;
  }
  if (s.height * s.width > 1 << 28) return false;
  return planes(call.x, s, true) && planes(call.a, s, true) && planes(call.lam, s, true) && planes(call.u, s, true) &&
         planes(call.y, s, false) && planes(call.state, s, false) && layout_of(call).valid;
}

size_t planar_forward_workspace(const LineScanForward& call) {
  return uses_scratch(call, layout_of(call)) ? part_bytes(call.shape) * call.shape.num_directions : 0;
}

cudaError_t planar_forward(const LineScanForward& call, void* workspace, cudaStream_t stream) {
  switch (call.shape.dtype) {
    case DType::kFloat16:
      return run<__half>(call, workspace, stream);
    case DType::kBFloat16:
      return run<__nv_bfloat16>(call, workspace, stream);
    case DType::kFloat32:
      return run<float>(call, workspace, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace cgspn::cuda
