// Splits the work into tasks, the same for any number of threads, and runs them with the best kernels.
#include "cgspn/cpu.h"

#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <string_view>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "cpu/kernels.h"

namespace cgspn::cpu {
namespace {

const Kernels& choose() {
  const char* wanted = std::getenv("CGSPN_CPU_ISA");
  const std::string_view isa = wanted == nullptr ? "" : wanted;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && isa != "avx2" && isa != "baseline") return avx512_kernels();
  if (avx2 && isa != "baseline") return avx2_kernels();
#endif
  return baseline_kernels();
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

// Runs f(0) ... f(count - 1), each thread taking the next one that nobody has.
template <class F>
void parallel(const Threads& threads, int64_t count, const F& f) {
  if (count <= 1 || threads.count <= 1) {
    for (int64_t i = 0; i < count; ++i) f(i);
    return;
  }
  struct Queue {
    const F& f;
    int64_t count;
    std::atomic<int64_t> next{0};
  } queue{f, count};
  threads.run(
      count < threads.count ? count : threads.count,
      [](int64_t, void* context) {
        auto& queue = *static_cast<Queue*>(context);
        for (int64_t i; (i = queue.next.fetch_add(1)) < queue.count;) queue.f(i);
      },
      &queue);
}

int64_t compute_size(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }

// Asks for huge pages behind fresh memory: large tensors are mapped anew for every call, and touching them page
// by small page takes longer than the scans.
void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kPage = 4096, kHugePage = uintptr_t{1} << 21;
  if (data == nullptr || static_cast<uintptr_t>(bytes) < 2 * kHugePage) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) & ~(kPage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) & ~(kPage - 1);
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

int64_t element_size(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

// Uninitialised memory for partial sums.
class Buffer {
 public:
  explicit Buffer(int64_t bytes)
      : memory_(bytes == 0 ? nullptr : std::aligned_alloc(64, static_cast<size_t>((bytes + 63 + 64) / 64 * 64))) {
    if (bytes != 0 && memory_ == nullptr) throw std::bad_alloc();
    prefer_huge_pages(memory_, bytes);
  }
  Buffer(Buffer&& other) noexcept : memory_(other.memory_) { other.memory_ = nullptr; }
  Buffer& operator=(Buffer&&) = delete;
  ~Buffer() { std::free(memory_); }
  char* at(int64_t offset) const { return memory_ == nullptr ? nullptr : static_cast<char*>(memory_) + offset; }

 private:
  void* memory_;
};

// Blocks of channels. Where channels are neighbours in memory a block is wide, because every block walks over
// all pages of its tensors, unless its lines would leave the cache or threads would be idle; else it is one
// channel, so that the positions of a line are neighbours.
struct Blocking {
  int64_t size, count;

  Blocking(const LineScanShape& shape, int64_t channel_stride, int num_threads, bool backward = false) {
    constexpr int64_t kLineElements = 16384, kNarrow = 16, kWide = 64;
    const int64_t channels = shape.channels;
    if (channels > 1 && channel_stride != 1 && channel_stride != 0) {
      size = 1;
    } else {
      const int64_t longest = shape.height > shape.width ? shape.height : shape.width;
      size = kLineElements / longest / kNarrow * kNarrow;
      size = size < kNarrow ? kNarrow : size > kWide ? kWide : size;
      while (size > kNarrow && 2 * shape.batch * ((channels + size - 1) / size) < num_threads) size /= 2;
      if (channels == kNarrow + kNarrow / 4 && !backward) {
        // The few left over fill vectors of several positions, but would leave most of one position's empty. The
        // backward pass has more to write, where fetching cache lines twice outweighs this.
        size = kNarrow;
      } else if (channels <= size + kNarrow / 2) {
        size = channels;
      }
    }
    count = (channels + size - 1) / size;
  }

  Block block(const LineScanShape& shape, int64_t unit, bool vertical) const {
    const int64_t channel = unit % count * size;
    const int64_t left = shape.channels - channel;
    return {unit / count, channel, left < size ? left : size, vertical};
  }
};

struct Axes {
  bool vertical = false, horizontal = false;

  explicit Axes(const LineScanShape& shape) {
    for (int d = 0; d < shape.num_directions; ++d) (is_vertical(shape.directions[d]) ? vertical : horizontal) = true;
  }
  int count() const { return vertical + horizontal; }
};

// Runs scan(block, partial, unit) for every unit and axis, and writes the sums of each unit's partials to `to`.
// With fewer units than threads can share evenly, the axes of a unit are tasks of their own.
template <class Scan>
void scan_and_combine(const LineScanShape& shape, const Blocking& blocking, const ImageView& to, const Threads& threads, const Scan& scan) {
  const Axes axes(shape);
  const int64_t units = shape.batch * blocking.count;
  const bool sums = to.data != nullptr;
  const auto stride = [&](bool vertical) { return partial_stride((vertical ? shape.width : shape.height) * blocking.size); };
  const auto bytes = [&](bool vertical) {
    const bool present = sums && (vertical ? axes.vertical : axes.horizontal);
    return present ? (vertical ? shape.height : shape.width) * stride(vertical) * compute_size(shape.dtype) : 0;
  };
  const auto partial = [&](const Buffer& buffer, bool vertical, int64_t index) {
    return Partial{buffer.at(index * bytes(vertical)), stride(vertical)};
  };
  if (units >= 4 * threads.count || axes.count() == 1) {
    parallel(threads, units, [&](int64_t unit) {
      const Buffer vertical(bytes(true)), horizontal(bytes(false));
      const Partial rows = partial(vertical, true, 0), columns = partial(horizontal, false, 0);
      if (axes.vertical) scan(blocking.block(shape, unit, true), rows, unit);
      if (axes.horizontal) scan(blocking.block(shape, unit, false), columns, unit);
      if (sums) kernels().combine(shape, to, blocking.block(shape, unit, true), rows, columns, 0, shape.height);
    });
    return;
  }
  const Buffer vertical(units * bytes(true)), horizontal(units * bytes(false));
  parallel(threads, 2 * units, [&](int64_t task) {
    const int64_t unit = task / 2;
    const bool is_row = task % 2 == 0;
    scan(blocking.block(shape, unit, is_row), partial(is_row ? vertical : horizontal, is_row, unit), unit);
  });
  if (!sums) return;
  const int64_t parts = shape.height < threads.count ? shape.height : threads.count;
  parallel(threads, units * parts, [&](int64_t task) {
    const int64_t unit = task / parts, part = task % parts;
    kernels().combine(
        shape, to, blocking.block(shape, unit, true), partial(vertical, true, unit), partial(horizontal, false, unit),
        shape.height * part / parts, shape.height * (part + 1) / parts);
  });
}

}  // namespace

const char* instruction_set() { return kernels().name; }

void line_scan_forward(const LineScanForward& call, const Threads& threads) {
  const Blocking blocking(call.shape, call.shape.affinity_channels > 1 ? call.a.c : call.x.c, threads.count);
  const int64_t image = call.shape.batch * call.shape.channels * call.shape.height * call.shape.width * element_size(call.shape.dtype);
  prefer_huge_pages(call.y.data, call.sum ? image : image * call.shape.num_directions);
  prefer_huge_pages(call.state.data, image * call.shape.num_directions);
  const ImageView to = call.sum ? ImageView{call.y.data, call.y.b, call.y.c, call.y.h, call.y.w} : ImageView{};
  scan_and_combine(call.shape, blocking, to, threads, [&](const Block& block, Partial partial, int64_t) {
    kernels().forward(call, block, partial);
  });
}

void line_scan_backward(const LineScanBackward& call, const Threads& threads) {
  const LineScanShape& shape = call.shape;
  // The sums of a shared affinity's gradient depend on the blocks, so those must not depend on the threads.
  const Blocking blocking(shape, shape.affinity_channels > 1 ? call.a.c : call.x.c, shape.affinity_channels > 1 ? threads.count : 1, true);
  const bool shared = call.da.data != nullptr && shape.affinity_channels == 1 && shape.channels > 1;
  const int64_t pixels = shape.batch * shape.height * shape.width * element_size(shape.dtype);
  const int64_t gate = pixels * shape.channels * shape.num_directions;
  prefer_huge_pages(call.dx.data, pixels * shape.channels);
  prefer_huge_pages(call.da.data, pixels * 3 * shape.affinity_channels * shape.num_directions);
  prefer_huge_pages(call.dlam.data, gate);
  prefer_huge_pages(call.du.data, gate);
  const int64_t distance = shared ? shared_size(shape) : 0, size = compute_size(shape.dtype);
  const Buffer gradients(shape.batch * blocking.count * distance * size);
  scan_and_combine(shape, blocking, call.dx, threads, [&](const Block& block, Partial dx, int64_t unit) {
    kernels().backward(call, block, dx, {gradients.at(unit * distance * size)});
  });
  if (!shared) return;
  parallel(threads, shape.batch * shape.num_directions, [&](int64_t task) {
    const int64_t batch = task / shape.num_directions;
    kernels().finish_shared(
        call, batch, static_cast<int>(task % shape.num_directions), gradients.at(batch * blocking.count * distance * size),
        blocking.count, distance);
  });
}

void row_stochastic_forward(const RowStochasticForward& call, const Threads& threads) {
  const LineScanShape& shape = call.shape;
  const Blocking blocking(shape, call.a.c, threads.count);
  parallel(threads, shape.batch * blocking.count * shape.num_directions, [&](int64_t task) {
    const int d = static_cast<int>(task % shape.num_directions);
    kernels().normalize(call, blocking.block(shape, task / shape.num_directions, is_vertical(shape.directions[d])), d);
  });
}

void row_stochastic_backward(const RowStochasticBackward& call, const Threads& threads) {
  const LineScanShape& shape = call.shape;
  const Blocking blocking(shape, call.a.c, threads.count);
  parallel(threads, shape.batch * blocking.count * shape.num_directions, [&](int64_t task) {
    const int d = static_cast<int>(task % shape.num_directions);
    kernels().normalize_backward(call, blocking.block(shape, task / shape.num_directions, is_vertical(shape.directions[d])), d);
  });
}

}  // namespace cgspn::cpu
