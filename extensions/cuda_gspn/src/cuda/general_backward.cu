// General backward kernel. Grid and block as in the general forward kernel, lines walked from last to first. With g the
// gradient of the state, position j of a line sends w(j, k) g(j) to position j + k of the line before; these messages
// of two lines lie in shared memory, or in global scratch where a line is too long. One barrier a line, two more a tile
// where one affinity serves all channels and its gradient is summed over the block's channels in order.
// Traffic per element and direction: reads x, 3 logits, lam, u, dy, h; writes 3 da, dlam, du and the running dx.
#include "general_backward.cuh"

#include "dispatch.cuh"
#include "general_forward.cuh"
#include "general_kernel.cuh"
#include "numerics.cuh"

namespace cgspn::cuda {
namespace {

template <typename T>
struct Params {
  LineView<const T> x, lam, u, dy, state;
  AffinityLines<const T> a;
  LineView<T> dx, dlam, du;
  AffinityLines<T> da;
  Accumulator<T>* dx_partial;  // laid out as dx
  Accumulator<T>* da_partial;  // (channel block, B, 3, line, position); null: da is written directly
  bool read_partial, write_partial;
  bool shared_affinity;
  bool reversed;
  int64_t batch, lines, length, channels, chunk;
  BlockShape block;
  Accumulator<T>* scratch;  // null: shared memory
};

template <typename T>
struct Loaded {
  T a[3], lam, u, x, dy, h, before[3];
};

template <typename T, bool kNormalize>
__global__ void __launch_bounds__(256) general_backward_kernel(const Params<T> p) {
  using Acc = Accumulator<T>;
  constexpr int kAhead = sizeof(T) > 4 ? 1 : 2;
  extern __shared__ __align__(16) unsigned char shared[];

  const int64_t image = blockIdx.x / p.block.channel_blocks;
  const int64_t channel_block = blockIdx.x % p.block.channel_blocks;
  const ThreadPlace place = thread_place(p.block);
  const int64_t channel = channel_block * p.block.channels + place.channel;
  const bool active = channel < p.channels;
  const int64_t line_size = p.length * p.block.channels;
  Acc* const messages = p.scratch != nullptr ? p.scratch + blockIdx.x * (p.block.state_bytes / sizeof(Acc))
                                             : reinterpret_cast<Acc*>(shared);
  Acc* const channel_sums = reinterpret_cast<Acc*>(shared + (p.scratch != nullptr ? 0 : p.block.state_bytes));
  const int64_t step_stride = p.block.channel_fast ? p.block.channels : 1;
  const int64_t message_base = p.block.channel_fast ? place.channel : place.channel * p.length;

  const T* const x = p.x.data + image * p.x.b + channel * p.x.c;
  const T* const a = p.a.data + image * p.a.b + channel * p.a.c;
  const T* const lam = p.lam.data == nullptr ? nullptr : p.lam.data + image * p.lam.b + channel * p.lam.c;
  const T* const u = p.u.data == nullptr ? nullptr : p.u.data + image * p.u.b + channel * p.u.c;
  const T* const dy = p.dy.data + image * p.dy.b + channel * p.dy.c;
  const T* const state = p.state.data + image * p.state.b + channel * p.state.c;

  struct Cursor {
    int64_t step, in_chunk;
    int tile = 0;
  };
  const auto retreat = [&](Cursor& c) {
    if (++c.tile == p.block.tiles) {
      c.tile = 0;
      --c.step;
      if (--c.in_chunk < 0) c.in_chunk = p.chunk - 1;
    }
  };
  const auto load = [&](const Cursor& c, Loaded<T>& in) {
    const int64_t j = static_cast<int64_t>(c.tile) * p.block.positions + place.position;
    if (!active || c.step < 0 || j >= p.length) return;
    const int64_t line = p.reversed ? p.lines - 1 - c.step : c.step;
    in.x = x[line * p.x.line + j * p.x.pos];
    in.dy = dy[line * p.dy.line + j * p.dy.pos];
    if (lam != nullptr) in.lam = lam[line * p.lam.line + j * p.lam.pos];
    if (u != nullptr) in.u = u[line * p.u.line + j * p.u.pos];
    if (p.du.data != nullptr) in.h = state[line * p.state.line + j * p.state.pos];
    if (c.in_chunk != 0) {
      const bool has_left = j > 0, has_right = j + 1 < p.length;
      const T* const row = a + line * p.a.line + j * p.a.pos;
      if (has_left) in.a[0] = row[0];
      in.a[1] = row[p.a.k];
      if (has_right) in.a[2] = row[2 * p.a.k];
      if (p.da.data != nullptr) {
        const T* const before = state + (p.reversed ? line + 1 : line - 1) * p.state.line + j * p.state.pos;
        if (has_left) in.before[0] = before[-p.state.pos];
        in.before[1] = before[0];
        if (has_right) in.before[2] = before[p.state.pos];
      }
    }
  };
  const auto process = [&](const Cursor& c, const Loaded<T>& in) {
    const int64_t j = static_cast<int64_t>(c.tile) * p.block.positions + place.position;
    const bool inside = active && j < p.length;
    const int64_t line = p.reversed ? p.lines - 1 - c.step : c.step;
    const bool has_left = j > 0, has_right = j + 1 < p.length;
    Acc da[3] = {Acc(0), Acc(0), Acc(0)};
    if (inside) {
      Acc g = widen(in.dy);
      if (p.du.data != nullptr) {
        p.du.data[image * p.du.b + channel * p.du.c + line * p.du.line + j * p.du.pos] = narrow<T>(g * widen(in.h));
      }
      if (u != nullptr) g *= widen(in.u);
      if (c.step + 1 < p.lines && c.in_chunk + 1 != p.chunk) {
        const Acc* const received = messages + ((c.step + 1) & 1) * 3 * line_size + message_base + j * step_stride;
        g += received[line_size];
        if (has_left) g += received[2 * line_size - step_stride];
        if (has_right) g += received[step_stride];
      }
      if (p.dlam.data != nullptr) {
        p.dlam.data[image * p.dlam.b + channel * p.dlam.c + line * p.dlam.line + j * p.dlam.pos] =
            narrow<T>(g * widen(in.x));
      }
      if (p.dx.data != nullptr) {
        const int64_t at = image * p.dx.b + channel * p.dx.c + line * p.dx.line + j * p.dx.pos;
        Acc dx = lam != nullptr ? g * widen(in.lam) : g;
        if (p.read_partial) dx += p.dx_partial[at];
        if (p.write_partial) {
          p.dx_partial[at] = dx;
        } else {
          p.dx.data[at] = narrow<T>(dx);
        }
      }
      if (c.in_chunk != 0) {
        Acc w[3], logits[3], decays[3];
#pragma unroll
        for (int k = 0; k < 3; ++k) {
          const bool exists = k == 1 || (k == 0 ? has_left : has_right);
          logits[k] = exists ? widen(in.a[k]) : Acc(0);
        }
        if constexpr (kNormalize) {
#pragma unroll
          for (int k = 0; k < 3; ++k) decays[k] = decay<T>(logits[k]);
          normalise<T>(decays, has_left, has_right, w);
        } else {
#pragma unroll
          for (int k = 0; k < 3; ++k) w[k] = logits[k];
        }
        Acc* const sent = messages + (c.step & 1) * 3 * line_size + message_base + j * step_stride;
#pragma unroll
        for (int k = 0; k < 3; ++k) sent[k * line_size] = w[k] * g;
        if (p.da.data != nullptr) {
          const Acc dw[3] = {has_left ? g * widen(in.before[0]) : Acc(0), g * widen(in.before[1]),
                             has_right ? g * widen(in.before[2]) : Acc(0)};
          if constexpr (kNormalize) {
            normalise_backward<T>(logits, decays, w, dw, has_left, has_right, da);
          } else {
#pragma unroll
            for (int k = 0; k < 3; ++k) da[k] = dw[k];
          }
        }
      }
      if (p.da.data != nullptr && !p.shared_affinity) {
        T* const row = p.da.data + image * p.da.b + channel * p.da.c + line * p.da.line + j * p.da.pos;
#pragma unroll
        for (int k = 0; k < 3; ++k) row[k * p.da.k] = narrow<T>(da[k]);
      }
    }
    if (p.da.data != nullptr && p.shared_affinity) {
      const int threads = p.block.threads();
#pragma unroll
      for (int k = 0; k < 3; ++k) channel_sums[k * threads + threadIdx.x] = da[k];
      __syncthreads();
      const int channel_step = p.block.channel_fast ? 1 : p.block.positions;
      const int position_step = p.block.channel_fast ? p.block.channels : 1;
      for (int t = threadIdx.x; t < 3 * p.block.positions; t += threads) {
        const int k = t / p.block.positions, q = t % p.block.positions;
        const int64_t at = static_cast<int64_t>(c.tile) * p.block.positions + q;
        if (at >= p.length) continue;
        Acc sum = 0;
        for (int ch = 0; ch < p.block.channels; ++ch) {
          sum += channel_sums[k * threads + q * position_step + ch * channel_step];
        }
        if (p.da_partial != nullptr) {
          p.da_partial[(((channel_block * p.batch + image) * 3 + k) * p.lines + line) * p.length + at] = sum;
        } else {
          p.da.data[image * p.da.b + k * p.da.k + line * p.da.line + at * p.da.pos] = narrow<T>(sum);
        }
      }
      __syncthreads();
    }
  };

  const int64_t last_in_chunk = p.chunk > 0 ? (p.lines - 1) % p.chunk : p.lines - 1;
  Cursor next{p.lines - 1, last_in_chunk}, now{p.lines - 1, last_in_chunk};
  Loaded<T> queue[kAhead] = {};
#pragma unroll
  for (int k = 0; k < kAhead; ++k) {
    load(next, queue[k]);
    retreat(next);
  }
  while (now.step >= 0) {
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (now.step >= 0) {
        const Loaded<T> in = queue[k];
        load(next, queue[k]);
        retreat(next);
        process(now, in);
        retreat(now);
        if (now.tile == 0) __syncthreads();
      }
    }
  }
}

// Adds the channel blocks' shares of a shared affinity's gradient, in order.
template <typename T>
__global__ void __launch_bounds__(256) sum_channel_blocks(const Params<T> p) {
  using Acc = Accumulator<T>;
  const int64_t count = p.batch * 3 * p.lines * p.length;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < count; i += gridDim.x * int64_t(blockDim.x)) {
    Acc sum = 0;
    for (int64_t n = 0; n < p.block.channel_blocks; ++n) sum += p.da_partial[n * count + i];
    const int64_t j = i % p.length, line = i / p.length % p.lines;
    const int64_t k = i / (p.length * p.lines) % 3, image = i / (p.length * p.lines * 3);
    p.da.data[image * p.da.b + k * p.da.k + line * p.da.line + j * p.da.pos] = narrow<T>(sum);
  }
}

size_t element_bytes(DType t) {
  return t == DType::kFloat64 ? 8 : t == DType::kFloat32 ? 4 : 2;
}
size_t accumulator_bytes(DType t) { return t == DType::kFloat64 ? 8 : 4; }
size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

bool sums_over_channels(const LineScanBackward& call) {
  return call.da.data != nullptr && call.shape.affinity_channels == 1 && call.shape.channels > 1;
}

BlockShape backward_block(const LineScanBackward& call, Direction d) {
  const int64_t position_stride = is_vertical(d) ? call.x.w : call.x.h;
  const size_t acc = accumulator_bytes(call.shape.dtype);
  const size_t reserved = sums_over_channels(call) ? 3 * 256 * acc : 0;
  return acc == 8 ? block_shape<double>(call.shape, d, call.x.c, position_stride, 6, reserved, kSharedLimit)
                  : block_shape<float>(call.shape, d, call.x.c, position_stride, 6, reserved, kSharedLimit);
}

// Offsets of the parts of the workspace; one direction runs at a time and reuses them.
struct Workspace {
  size_t messages = 0, dx = 0, da = 0, state = 0, forward = 0, total = 0;
};

ImageView recomputed_view(const LineScanBackward& call, void* data) {
  const LineScanShape& s = call.shape;
  if (s.channels > 1 && call.x.c <= call.x.w) {
    return {data, s.height * s.width * s.channels, 1, s.width * s.channels, s.channels};
  }
  return {data, s.channels * s.height * s.width, s.height * s.width, s.width, 1};
}

// The forward call that recomputes the states of direction `i`.
LineScanForward recompute_call(const LineScanBackward& call, int i, const ImageView& state) {
  LineScanForward forward;
  forward.shape = call.shape;
  forward.shape.num_directions = 1;
  forward.shape.directions[0] = call.shape.directions[i];
  const size_t bytes = element_bytes(call.shape.dtype);
  const auto slot = [&](auto view) {
    if (view.data != nullptr) view.data = static_cast<char*>(view.data) + i * view.d * static_cast<int64_t>(bytes);
    return view;
  };
  forward.x = call.x;
  forward.a = slot(call.a);
  forward.lam = slot(call.lam);
  forward.state = {state.data, state.b, 0, state.c, state.h, state.w};
  return forward;
}

Workspace workspace_of(const LineScanBackward& call) {
  const LineScanShape& s = call.shape;
  const size_t acc = accumulator_bytes(s.dtype);
  const size_t pixels = static_cast<size_t>(s.batch) * s.height * s.width;
  size_t messages = 0, da = 0;
  for (int i = 0; i < s.num_directions; ++i) {
    const BlockShape block = backward_block(call, s.directions[i]);
    if (!block.state_in_shared) {
      messages = std::max(messages, block.state_bytes * block.channel_blocks * static_cast<size_t>(s.batch));
    }
    if (sums_over_channels(call) && block.channel_blocks > 1) {
      da = std::max(da, static_cast<size_t>(block.channel_blocks) * 3 * pixels * acc);
    }
  }
  const bool half = element_bytes(s.dtype) == 2;
  const size_t dx = half && call.dx.data != nullptr && s.num_directions > 1
                        ? static_cast<size_t>(addressed_extent(s, call.dx)) * acc
                        : 0;
  Workspace w;
  w.dx = w.messages + aligned(messages);
  w.da = w.dx + aligned(dx);
  w.state = w.da + aligned(da);
  w.forward = w.state;
  w.total = w.state;
  if (call.state.data == nullptr) {
    w.forward += aligned(pixels * s.channels * element_bytes(s.dtype));
    w.total = w.forward;
    for (int i = 0; i < s.num_directions; ++i) {
      const LineScanForward forward = recompute_call(call, i, recomputed_view(call, nullptr));
      w.total = std::max(w.total, w.forward + general_forward_workspace(forward));
    }
  }
  return w;
}

template <typename T, bool kNormalize>
cudaError_t launch(const Params<T>& p, size_t channel_sum_bytes, cudaStream_t stream) {
  const auto kernel = general_backward_kernel<T, kNormalize>;
  const size_t shared = (p.scratch != nullptr ? 0 : p.block.state_bytes) + channel_sum_bytes;
  if (shared > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return error;
  }
  const unsigned blocks = static_cast<unsigned>(p.batch * p.block.channel_blocks);
  kernel<<<blocks, p.block.threads(), shared, stream>>>(p);
  if (p.da_partial != nullptr) {
    const int64_t count = p.batch * 3 * p.lines * p.length;
    sum_channel_blocks<T><<<static_cast<unsigned>(std::min<int64_t>((count + 255) / 256, 65536)), 256, 0, stream>>>(p);
  }
  return cudaGetLastError();
}

template <typename T>
cudaError_t run(const LineScanBackward& call, void* workspace, cudaStream_t stream) {
  using Acc = Accumulator<T>;
  const LineScanShape& s = call.shape;
  const Workspace parts = workspace_of(call);
  char* const base = static_cast<char*>(workspace);
  const bool recompute = call.state.data == nullptr;
  const ImageView scratch_state = recomputed_view(call, base + parts.state);
  for (int i = 0; i < s.num_directions; ++i) {
    const Direction d = s.directions[i];
    if (recompute) {
      const LineScanForward forward = recompute_call(call, i, scratch_state);
      const cudaError_t error = general_forward(forward, base + parts.forward, stream);
      if (error != cudaSuccess) return error;
    }
    Params<T> p;
    p.x = line_view<const T>(call.x, d);
    p.a = affinity_lines<const T>(call.a, d, i);
    p.lam = line_view<const T>(call.lam, d, i);
    p.u = line_view<const T>(call.u, d, i);
    p.dy = line_view<const T>(call.dy, d, i);
    p.state = recompute ? line_view<const T>(scratch_state, d) : line_view<const T>(call.state, d, i);
    p.dx = line_view<T>(call.dx, d);
    p.da = affinity_lines<T>(call.da, d, i);
    p.dlam = line_view<T>(call.dlam, d, i);
    p.du = line_view<T>(call.du, d, i);
    p.block = backward_block(call, d);
    p.shared_affinity = sums_over_channels(call);
    p.dx_partial = sizeof(T) == 2 ? reinterpret_cast<Acc*>(base + parts.dx) : static_cast<Acc*>(call.dx.data);
    p.da_partial = p.shared_affinity && p.block.channel_blocks > 1 ? reinterpret_cast<Acc*>(base + parts.da) : nullptr;
    p.read_partial = i > 0;
    p.write_partial = i + 1 < s.num_directions;
    p.reversed = is_reversed(d);
    p.batch = s.batch;
    p.lines = num_lines(s, d);
    p.length = line_length(s, d);
    p.channels = s.channels;
    p.chunk = s.chunk;
    p.scratch = p.block.state_in_shared ? nullptr : reinterpret_cast<Acc*>(base + parts.messages);
    const size_t channel_sum_bytes = p.shared_affinity ? 3 * p.block.threads() * sizeof(Acc) : 0;
    const cudaError_t error = s.normalize ? launch<T, true>(p, channel_sum_bytes, stream)
                                          : launch<T, false>(p, channel_sum_bytes, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

size_t general_backward_workspace(const LineScanBackward& call) { return workspace_of(call).total; }

cudaError_t general_backward(const LineScanBackward& call, void* workspace, cudaStream_t stream) {
  return dispatch_dtype(call.shape.dtype, [&](auto tag) {
    return run<typename decltype(tag)::type>(call, workspace, stream);
  });
}

}  // namespace cgspn::cuda
