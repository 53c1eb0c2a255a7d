// General forward kernel. Grid: (image, group of channels); one launch per direction, in order, so that the sum over
// directions has a fixed order. A block scans its lines one after the other with one barrier a line; the state of two
// lines lies in shared memory, or in global scratch where a line is too long. Loads run kAhead tiles ahead of use.
// Traffic per element and direction: x, 3 logits, lam, u, and a read and a write of the accumulated output.
#include "general_forward.cuh"

#include "dispatch.cuh"
#include "general_kernel.cuh"
#include "numerics.cuh"

namespace cgspn::cuda {
namespace {

template <typename T>
struct Params {
  LineView<const T> x, lam, u;
  AffinityLines<const T> a;
  LineView<T> y, state;
  Accumulator<T>* partial;  // laid out as y
  bool read_partial, write_partial;
  bool reversed;
  int64_t lines, length, channels, chunk;
  BlockShape block;
  Accumulator<T>* scratch;  // null: shared memory
};

template <typename T>
struct Loaded {
  T a[3], lam, u, x;
};

template <typename T, bool kNormalize>
__global__ void __launch_bounds__(256) general_forward_kernel(const Params<T> p) {
  using Acc = Accumulator<T>;
  constexpr int kAhead = sizeof(T) > 4 ? 2 : 4;
  extern __shared__ __align__(16) unsigned char shared[];

  const int64_t image = blockIdx.x / p.block.channel_blocks;
  const ThreadPlace place = thread_place(p.block);
  const int64_t channel = static_cast<int64_t>(blockIdx.x % p.block.channel_blocks) * p.block.channels + place.channel;
  const bool active = channel < p.channels;
  const int64_t line_size = p.length * p.block.channels;
  Acc* const state = p.scratch != nullptr ? p.scratch + blockIdx.x * (p.block.state_bytes / sizeof(Acc))
                                          : reinterpret_cast<Acc*>(shared);
  const int64_t state_step = p.block.channel_fast ? p.block.channels : 1;
  const int64_t state_base = p.block.channel_fast ? place.channel : place.channel * p.length;

  const T* const x = p.x.data + image * p.x.b + channel * p.x.c;
  const T* const a = p.a.data + image * p.a.b + channel * p.a.c;
  const T* const lam = p.lam.data == nullptr ? nullptr : p.lam.data + image * p.lam.b + channel * p.lam.c;
  const T* const u = p.u.data == nullptr ? nullptr : p.u.data + image * p.u.b + channel * p.u.c;
  const int64_t y_base = image * p.y.b + channel * p.y.c;
  const int64_t h_base = image * p.state.b + channel * p.state.c;

  struct Cursor {
    int64_t step = 0, in_chunk = 0;
    int tile = 0;
  };
  const auto advance = [&](Cursor& c) {
    if (++c.tile == p.block.tiles) {
      c.tile = 0;
      ++c.step;
      if (++c.in_chunk == p.chunk) c.in_chunk = 0;
    }
  };
  const auto load = [&](const Cursor& c, Loaded<T>& in) {
    const int64_t j = static_cast<int64_t>(c.tile) * p.block.positions + place.position;
    if (!active || c.step >= p.lines || j >= p.length) return;
    const int64_t line = p.reversed ? p.lines - 1 - c.step : c.step;
    in.x = x[line * p.x.line + j * p.x.pos];
    if (lam != nullptr) in.lam = lam[line * p.lam.line + j * p.lam.pos];
    if (u != nullptr) in.u = u[line * p.u.line + j * p.u.pos];
    if (c.in_chunk != 0) {
      const T* const row = a + line * p.a.line + j * p.a.pos;
      if (j > 0) in.a[0] = row[0];
      in.a[1] = row[p.a.k];
      if (j + 1 < p.length) in.a[2] = row[2 * p.a.k];
    }
  };
  const auto process = [&](const Cursor& c, const Loaded<T>& in) {
    const int64_t j = static_cast<int64_t>(c.tile) * p.block.positions + place.position;
    if (!active || j >= p.length) return;
    const int64_t line = p.reversed ? p.lines - 1 - c.step : c.step;
    Acc h = widen(in.x);
    if (lam != nullptr) h *= widen(in.lam);
    if (c.in_chunk != 0) {
      const bool has_left = j > 0, has_right = j + 1 < p.length;
      Acc w[3];
      if constexpr (kNormalize) {
        Acc decays[3];
        decays[0] = has_left ? decay<T>(widen(in.a[0])) : Acc(0);
        decays[1] = decay<T>(widen(in.a[1]));
        decays[2] = has_right ? decay<T>(widen(in.a[2])) : Acc(0);
        normalise<T>(decays, has_left, has_right, w);
      } else {
#pragma unroll
        for (int k = 0; k < 3; ++k) w[k] = widen(in.a[k]);
      }
      const Acc* const previous = state + ((c.step + 1) & 1) * line_size + state_base + j * state_step;
      h += w[1] * previous[0];
      if (has_left) h += w[0] * previous[-state_step];
      if (has_right) h += w[2] * previous[state_step];
    }
    state[(c.step & 1) * line_size + state_base + j * state_step] = h;
    if (p.state.data != nullptr) p.state.data[h_base + line * p.state.line + j * p.state.pos] = narrow<T>(h);
    if (p.y.data != nullptr) {
      const int64_t at = y_base + line * p.y.line + j * p.y.pos;
      Acc y = u != nullptr ? widen(in.u) * h : h;
      if (p.read_partial) y += p.partial[at];
      if (p.write_partial) {
        p.partial[at] = y;
      } else {
        p.y.data[at] = narrow<T>(y);
      }
    }
  };

  Loaded<T> queue[kAhead] = {};
  Cursor next;
#pragma unroll
  for (int k = 0; k < kAhead; ++k) {
    load(next, queue[k]);
    advance(next);
  }
  Cursor now;
  while (now.step < p.lines) {
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (now.step < p.lines) {
        const Loaded<T> in = queue[k];
        load(next, queue[k]);
        advance(next);
        process(now, in);
        advance(now);
        if (now.tile == 0) __syncthreads();
      }
    }
  }
}

BlockShape forward_block(const LineScanForward& call, Direction d, size_t acc_bytes) {
  const bool vertical = is_vertical(d);
  const int64_t position_stride = vertical ? call.x.w : call.x.h;
  return acc_bytes == 8
             ? block_shape<double>(call.shape, d, call.x.c, position_stride, 2, 0, kSharedLimit)
             : block_shape<float>(call.shape, d, call.x.c, position_stride, 2, 0, kSharedLimit);
}

size_t accumulator_bytes(DType t) { return t == DType::kFloat64 ? 8 : 4; }

size_t state_workspace(const LineScanForward& call) {
  size_t bytes = 0;
  for (int i = 0; i < call.shape.num_directions; ++i) {
    const BlockShape block = forward_block(call, call.shape.directions[i], accumulator_bytes(call.shape.dtype));
    if (!block.state_in_shared) {
      bytes = std::max(bytes, block.state_bytes * block.channel_blocks * static_cast<size_t>(call.shape.batch));
    }
  }
  return bytes;
}

bool needs_partial(const LineScanForward& call) {
  const bool half = call.shape.dtype == DType::kFloat16 || call.shape.dtype == DType::kBFloat16;
  return half && call.sum && call.y.data != nullptr && call.shape.num_directions > 1;
}

template <typename T, bool kNormalize>
cudaError_t launch(const Params<T>& p, int64_t batch, cudaStream_t stream) {
  const auto kernel = general_forward_kernel<T, kNormalize>;
  const size_t shared = p.scratch != nullptr ? 0 : p.block.state_bytes;
  if (shared > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return error;
  }
  const unsigned blocks = static_cast<unsigned>(batch * p.block.channel_blocks);
  kernel<<<blocks, p.block.threads(), shared, stream>>>(p);
  return cudaGetLastError();
}

template <typename T>
cudaError_t run(const LineScanForward& call, void* workspace, cudaStream_t stream) {
  using Acc = Accumulator<T>;
  const LineScanShape& s = call.shape;
  Acc* const scratch = static_cast<Acc*>(workspace);
  Acc* partial = static_cast<Acc*>(call.y.data);
  if (needs_partial(call)) partial = scratch + state_workspace(call) / sizeof(Acc);
  for (int i = 0; i < s.num_directions; ++i) {
    const Direction d = s.directions[i];
    Params<T> p;
    p.x = line_view<const T>(call.x, d);
    p.a = affinity_lines<const T>(call.a, d, i);
    p.lam = line_view<const T>(call.lam, d, i);
    p.u = line_view<const T>(call.u, d, i);
    p.y = line_view<T>(call.y, d, call.sum ? 0 : i);
    p.state = line_view<T>(call.state, d, i);
    p.partial = partial;
    p.read_partial = call.sum && i > 0;
    p.write_partial = call.sum && i + 1 < s.num_directions;
    p.reversed = is_reversed(d);
    p.lines = num_lines(s, d);
    p.length = line_length(s, d);
    p.channels = s.channels;
    p.chunk = s.chunk;
    p.block = forward_block(call, d, sizeof(Acc));
    p.scratch = p.block.state_in_shared ? nullptr : scratch;
    const cudaError_t error =
        s.normalize ? launch<T, true>(p, s.batch, stream) : launch<T, false>(p, s.batch, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

size_t general_forward_workspace(const LineScanForward& call) {
  size_t bytes = state_workspace(call);
  if (needs_partial(call)) {
    const ImageView y{nullptr, call.y.b, call.y.c, call.y.h, call.y.w};
    bytes += static_cast<size_t>(addressed_extent(call.shape, y)) * sizeof(float);
  }
  return bytes;
}

cudaError_t general_forward(const LineScanForward& call, void* workspace, cudaStream_t stream) {
  return dispatch_dtype(call.shape.dtype, [&](auto tag) {
    return run<typename decltype(tag)::type>(call, workspace, stream);
  });
}

}  // namespace cgspn::cuda
