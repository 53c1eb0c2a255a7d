// Scans of tensors whose strides the bulk-copy kernels cannot read (NCHW, sliced, expanded, an affinity shared by all
// channels), by way of channels-last copies of what needs it: pack, scan, unpack, some images at a time, so that the
// copies of at most a quarter of a large batch are alive.
// Traffic on top of the scan's: a read and a write of every copied tensor.
#include "cuda/bulk/packed.cuh"

#include <algorithm>

#include "cuda/bulk/backward.cuh"
#include "cuda/bulk/forward.cuh"
#include "cuda/bulk/plan.cuh"
#include "cuda/bulk/recompute.cuh"
#include "cuda/dispatch.cuh"

namespace cgspn::cuda {
namespace {

// Strides in elements of (image, direction, neighbour, channel, row, column); absent axes are 0.
struct Strided {
  char* data = nullptr;
  int64_t b = 0, d = 0, k = 0, c = 0, h = 0, w = 0;
};

Strided strided(const ImageView& v) { return {static_cast<char*>(v.data), v.b, 0, 0, v.c, v.h, v.w}; }
Strided strided(const DirectionView& v) { return {static_cast<char*>(v.data), v.b, v.d, 0, v.c, v.h, v.w}; }
Strided strided(const AffinityView& v) { return {static_cast<char*>(v.data), v.b, v.d, v.k, v.c, v.h, v.w}; }

struct Copy {
  Strided strided;
  char* dense;  // (image, row, column, direction, neighbour, channel)
  int directions, neighbours, channels, width, pixels;
};

constexpr int kTile = 64;

// One tile of channels and pixels of one plane; `channel_fast`: the strided side is contiguous along the channels.
template <typename T, bool kPack>
__global__ void __launch_bounds__(256) copy_tile_kernel(const Copy p, bool channel_fast) {
  __shared__ T tile[kTile][kTile + 2];
  const int planes = p.directions * p.neighbours;
  const int64_t image = blockIdx.z / planes;
  const int plane = blockIdx.z % planes;
  const int first_channel = blockIdx.y * kTile, first_pixel = blockIdx.x * kTile;
  T* const strided = reinterpret_cast<T*>(p.strided.data) + image * p.strided.b + plane / p.neighbours * p.strided.d +
                     plane % p.neighbours * p.strided.k;
  T* const dense =
      reinterpret_cast<T*>(p.dense) + (image * p.pixels * planes + plane) * p.channels;
  const int fast = threadIdx.x % kTile, slow = threadIdx.x / kTile;
  const auto strided_at = [&](int channel, int pixel) -> T* {
    const int row = pixel / p.width;
    return strided + channel * p.strided.c + row * p.strided.h + (pixel - row * p.width) * p.strided.w;
  };
  const auto each = [&](bool along_channels, const auto& visit) {
#pragma unroll 4
    for (int i = slow; i < kTile; i += 4) {
      const int c = along_channels ? fast : i, q = along_channels ? i : fast;
      if (first_channel + c < p.channels && first_pixel + q < p.pixels) visit(c, q);
    }
  };
  const auto dense_at = [&](int channel, int pixel) -> T* {
    return dense + static_cast<int64_t>(pixel) * planes * p.channels + channel;
  };
  if constexpr (kPack) {
    each(channel_fast, [&](int c, int q) { tile[q][c] = *strided_at(first_channel + c, first_pixel + q); });
    __syncthreads();
    each(true, [&](int c, int q) { *dense_at(first_channel + c, first_pixel + q) = tile[q][c]; });
  } else {
    each(true, [&](int c, int q) { tile[q][c] = *dense_at(first_channel + c, first_pixel + q); });
    __syncthreads();
    each(channel_fast, [&](int c, int q) { *strided_at(first_channel + c, first_pixel + q) = tile[q][c]; });
  }
}

int64_t element_bytes(const LineScanShape& s) { return s.dtype == DType::kFloat32 ? 4 : 2; }

// Where `view` may lie in the workspace, and the copies that this needs.
class Packer {
 public:
  Packer(const LineScanShape& shape, int64_t images, char* base) : shape_(shape), images_(images), base_(base) {}

  // The view itself where the bulk-copy kernels can read it, else that of its copy.
  template <typename View>
  View place(const View& view) {
    if (tiled(view, shape_, static_cast<int>(element_bytes(shape_)))) return view;
    View dense = view;
    const Copy copy = copy_of(view);
    const int64_t row = static_cast<int64_t>(copy.directions) * copy.neighbours * shape_.channels;
    dense.data = base_ == nullptr ? reinterpret_cast<void*>(256) : base_ + bytes_;
    dense.c = 1;
    dense.w = row;
    dense.h = row * shape_.width;
    dense.b = dense.h * shape_.height;
    if constexpr (requires { view.k; }) {
      dense.k = shape_.channels;
      dense.d = 3 * shape_.channels;
    } else if constexpr (requires { view.d; }) {
      dense.d = view.d == 0 ? 0 : shape_.channels;
    }
    bytes_ += (static_cast<size_t>(images_ * dense.b * element_bytes(shape_)) + 255) / 256 * 256;
    return dense;
  }

  template <typename View>
  Copy copy_of(const View& view) const {
    Copy copy;
    copy.strided = strided(view);
    copy.dense = nullptr;
    copy.neighbours = 1;
    copy.directions = 1;
    if constexpr (requires { view.k; }) {
      copy.neighbours = 3;
      copy.directions = shape_.num_directions;
    } else if constexpr (requires { view.d; }) {
      copy.directions = view.d == 0 ? 1 : shape_.num_directions;
    }
    copy.channels = static_cast<int>(shape_.channels);
    copy.width = static_cast<int>(shape_.width);
    copy.pixels = static_cast<int>(shape_.height * shape_.width);
    return copy;
  }

  size_t bytes() const { return bytes_; }
  char* end() const { return base_ + bytes_; }

 private:
  const LineScanShape& shape_;
  int64_t images_;
  char* base_;
  size_t bytes_ = 0;
};

template <bool kPack, typename View>
cudaError_t copy_tensor(const LineScanShape& s, const View& view, const View& dense, cudaStream_t stream) {
  if (view.data == nullptr || view.data == dense.data) return cudaSuccess;
  Copy copy = Packer(s, s.batch, nullptr).copy_of(view);
  copy.dense = static_cast<char*>(dense.data);
  const dim3 grid((copy.pixels + kTile - 1) / kTile, (copy.channels + kTile - 1) / kTile,
                  static_cast<unsigned>(s.batch * copy.directions * copy.neighbours));
  const bool channel_fast = copy.strided.c <= copy.strided.w;
  return dispatch_dtype(s.dtype, [&](auto tag) {
    copy_tile_kernel<typename decltype(tag)::type, kPack><<<grid, 256, 0, stream>>>(copy, channel_fast);
    return cudaGetLastError();
  });
}

int64_t slice_images(const LineScanShape& s) { return s.batch >= 16 ? (s.batch + 3) / 4 : s.batch; }

template <typename View>
View from_image(View view, int64_t image, int64_t bytes) {
  if (view.data != nullptr) view.data = static_cast<char*>(view.data) + image * view.b * bytes;
  return view;
}

bool fits_grid(const LineScanShape& s) {
  return s.height * s.width < int64_t{1} << 31 && slice_images(s) * 3 * s.num_directions <= 65535 &&
         (s.channels + kTile - 1) / kTile <= 65535;
}

LineScanForward slice_of(const LineScanForward& call, int64_t first, int64_t images) {
  LineScanForward slice = call;
  const int64_t bytes = element_bytes(call.shape);
  slice.shape.batch = images;
  slice.x = from_image(call.x, first, bytes);
  slice.a = from_image(call.a, first, bytes);
  slice.lam = from_image(call.lam, first, bytes);
  slice.u = from_image(call.u, first, bytes);
  slice.y = from_image(call.y, first, bytes);
  slice.state = from_image(call.state, first, bytes);
  return slice;
}

LineScanBackward slice_of(const LineScanBackward& call, int64_t first, int64_t images) {
  LineScanBackward slice = call;
  const int64_t bytes = element_bytes(call.shape);
  slice.shape.batch = images;
  slice.x = from_image(call.x, first, bytes);
  slice.a = from_image(call.a, first, bytes);
  slice.lam = from_image(call.lam, first, bytes);
  slice.u = from_image(call.u, first, bytes);
  slice.dy = from_image(call.dy, first, bytes);
  slice.state = from_image(call.state, first, bytes);
  slice.dx = from_image(call.dx, first, bytes);
  slice.da = from_image(call.da, first, bytes);
  slice.dlam = from_image(call.dlam, first, bytes);
  slice.du = from_image(call.du, first, bytes);
  return slice;
}

LineScanBackward pack(const LineScanBackward& slice, Packer& packer) {
  LineScanBackward packed = slice;
  packed.x = packer.place(slice.x);
  packed.a = packer.place(slice.a);
  packed.lam = packer.place(slice.lam);
  packed.u = packer.place(slice.u);
  packed.dy = packer.place(slice.dy);
  packed.state = packer.place(slice.state);
  packed.dx = packer.place(slice.dx);
  packed.da = packer.place(slice.da);
  packed.dlam = packer.place(slice.dlam);
  packed.du = packer.place(slice.du);
  return packed;
}

bool scan_applies(const LineScanBackward& packed) {
  return packed.state.data != nullptr ? bulk_backward_applies(packed) : bulk_recompute_applies(packed);
}

size_t scan_workspace(const LineScanBackward& packed) {
  return packed.state.data != nullptr ? bulk_backward_workspace(packed) : bulk_recompute_workspace(packed);
}

// The slice with its copies in the workspace.
LineScanForward pack(const LineScanForward& slice, Packer& packer) {
  LineScanForward packed = slice;
  packed.shape.affinity_channels = slice.shape.channels;
  packed.x = packer.place(slice.x);
  packed.a = packer.place(slice.a);
  packed.lam = packer.place(slice.lam);
  packed.u = packer.place(slice.u);
  packed.y = packer.place(slice.y);
  packed.state = packer.place(slice.state);
  return packed;
}

}  // namespace

bool packed_forward_applies(const LineScanForward& call) {
  const LineScanShape& s = call.shape;
  if (s.dtype == DType::kFloat64 || call.y.data == nullptr || s.channels * element_bytes(s) % 16 != 0) return false;
  if (!fits_grid(s)) return false;
  for (int64_t images : {slice_images(s), s.batch % slice_images(s)}) {
    if (images == 0) continue;
    const LineScanForward slice = slice_of(call, 0, images);
    Packer packer(slice.shape, images, nullptr);
    if (!bulk_forward_applies(pack(slice, packer))) return false;
  }
  return true;
}

size_t packed_forward_workspace(const LineScanForward& call) {
  size_t bytes = 0;
  for (int64_t images : {slice_images(call.shape), call.shape.batch % slice_images(call.shape)}) {
    if (images == 0) continue;
    const LineScanForward slice = slice_of(call, 0, images);
    Packer packer(slice.shape, images, nullptr);
    const LineScanForward packed = pack(slice, packer);
    bytes = std::max(bytes, packer.bytes() + bulk_forward_workspace(packed));
  }
  return bytes;
}

bool packed_backward_applies(const LineScanBackward& call) {
  const LineScanShape& s = call.shape;
  if (s.dtype == DType::kFloat64 || s.affinity_channels != s.channels) return false;
  if (s.channels * element_bytes(s) % 16 != 0 || !fits_grid(s)) return false;
  for (int64_t images : {slice_images(s), s.batch % slice_images(s)}) {
    if (images == 0) continue;
    const LineScanBackward slice = slice_of(call, 0, images);
    Packer packer(slice.shape, images, nullptr);
    if (!scan_applies(pack(slice, packer))) return false;
  }
  return true;
}

size_t packed_backward_workspace(const LineScanBackward& call) {
  size_t bytes = 0;
  for (int64_t images : {slice_images(call.shape), call.shape.batch % slice_images(call.shape)}) {
    if (images == 0) continue;
    const LineScanBackward slice = slice_of(call, 0, images);
    Packer packer(slice.shape, images, nullptr);
    const LineScanBackward packed = pack(slice, packer);
    bytes = std::max(bytes, packer.bytes() + scan_workspace(packed));
  }
  return bytes;
}

cudaError_t packed_backward(const LineScanBackward& call, void* workspace, cudaStream_t stream) {
  const int64_t step = slice_images(call.shape);
  for (int64_t first = 0; first < call.shape.batch; first += step) {
    const LineScanBackward slice = slice_of(call, first, std::min(step, call.shape.batch - first));
    const LineScanShape& s = slice.shape;
    Packer packer(s, s.batch, static_cast<char*>(workspace));
    const LineScanBackward packed = pack(slice, packer);
    cudaError_t error = copy_tensor<true>(s, slice.x, packed.x, stream);
    if (error == cudaSuccess) error = copy_tensor<true>(s, slice.a, packed.a, stream);
    if (error == cudaSuccess) error = copy_tensor<true>(s, slice.lam, packed.lam, stream);
    if (error == cudaSuccess) error = copy_tensor<true>(s, slice.u, packed.u, stream);
    if (error == cudaSuccess) error = copy_tensor<true>(s, slice.dy, packed.dy, stream);
    if (error == cudaSuccess) error = copy_tensor<true>(s, slice.state, packed.state, stream);
    if (error == cudaSuccess) {
      error = packed.state.data != nullptr ? bulk_backward(packed, packer.end(), stream)
                                           : bulk_recompute(packed, packer.end(), stream);
    }
    if (error == cudaSuccess) error = copy_tensor<false>(s, slice.dx, packed.dx, stream);
    if (error == cudaSuccess) error = copy_tensor<false>(s, slice.da, packed.da, stream);
    if (error == cudaSuccess) error = copy_tensor<false>(s, slice.dlam, packed.dlam, stream);
    if (error == cudaSuccess) error = copy_tensor<false>(s, slice.du, packed.du, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t packed_forward(const LineScanForward& call, void* workspace, cudaStream_t stream) {
  const int64_t step = slice_images(call.shape);
  for (int64_t first = 0; first < call.shape.batch; first += step) {
    const LineScanForward slice = slice_of(call, first, std::min(step, call.shape.batch - first));
    const LineScanShape& s = slice.shape;
    Packer packer(s, s.batch, static_cast<char*>(workspace));
    const LineScanForward packed = pack(slice, packer);
    cudaError_t error = copy_tensor<true>(s, slice.x, packed.x, stream);
    if (error == cudaSuccess) error = copy_tensor<true>(s, slice.a, packed.a, stream);
    if (error == cudaSuccess) error = copy_tensor<true>(s, slice.lam, packed.lam, stream);
    if (error == cudaSuccess) error = copy_tensor<true>(s, slice.u, packed.u, stream);
    if (error == cudaSuccess) error = bulk_forward(packed, packer.end(), stream);
    if (error == cudaSuccess) error = copy_tensor<false>(s, slice.y, packed.y, stream);
    if (error == cudaSuccess) error = copy_tensor<false>(s, slice.state, packed.state, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace cgspn::cuda
