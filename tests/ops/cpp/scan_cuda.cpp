// Runs the CUDA kernels forward and backward and compares every output with the CPU kernels'.
// With --fresh, outputs are left as allocated, so that compute-sanitizer's initcheck sees what is read unwritten.
#include "problem.h"

#include "cgspn/line_scan_cuda.h"

namespace {

bool fresh = false;

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA error: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

// A device copy of host data, or room for as many elements, filled with NaN unless `fresh`.
template <class T>
class Device {
 public:
  explicit Device(const std::vector<T>& host, bool copy) : bytes_(host.size() * sizeof(T)) {
    check(cudaMalloc(&data_, bytes_));
    if (copy) check(cudaMemcpy(data_, host.data(), bytes_, cudaMemcpyHostToDevice));
    if (!copy && !fresh) check(cudaMemset(data_, 0xff, bytes_));
  }
  Device(const Device&) = delete;
  ~Device() { cudaFree(data_); }
  T* get() const { return static_cast<T*>(data_); }
  std::vector<T> host() const {
    std::vector<T> v(bytes_ / sizeof(T));
    check(cudaMemcpy(v.data(), data_, bytes_, cudaMemcpyDeviceToHost));
    return v;
  }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

template <class T>
bool check(const Sizes& sizes, const char* dtype, double tolerance) {
  Problem<T> p(sizes);
  p.run_on_cpu();
  const Device<T> x(p.x, true), parameters(p.parameters, true), dy(p.dy, true);
  const Device<T> y(p.y, false), state(p.state, false), dx(p.dx, false);
  const Device<T> gradients(p.gradients, sizes.padded);  // the padding stays 0
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const auto forward = p.forward(x.get(), parameters.get(), y.get(), state.get());
  const auto backward = p.backward(x.get(), parameters.get(), dy.get(), state.get(), dx.get(), gradients.get());
  const std::vector<char> forward_bytes(cgspn::cuda::line_scan_forward_workspace(forward) + 1);
  const std::vector<char> backward_bytes(cgspn::cuda::line_scan_backward_workspace(backward) + 1);
  const Device<char> forward_workspace(forward_bytes, false), backward_workspace(backward_bytes, false);
  check(cudaDeviceSynchronize());  // copies ran on another stream
  check(cgspn::cuda::line_scan_forward(forward, forward_workspace.get(), stream));
  check(cgspn::cuda::line_scan_backward(backward, backward_workspace.get(), stream));
  check(cudaStreamSynchronize(stream));
  check(cudaStreamDestroy(stream));
  const double errors[] = {distance(y.host(), p.y), distance(dx.host(), p.dx), distance(gradients.host(), p.gradients)};
  const bool right = errors[0] < tolerance && errors[1] < tolerance && errors[2] < tolerance;
  std::printf("%s %s %s y %.1e dx %.1e da, dlam, du %.1e\n", right ? "ok  " : "FAIL", dtype, sizes.name().c_str(), errors[0], errors[1], errors[2]);
  std::fflush(stdout);
  return right;
}

bool check_dtypes(const Sizes& sizes) {
  const bool bf16 = check<BFloat16>(sizes, "bfloat16", 3e-2), f32 = check<float>(sizes, "float32", 1e-4);
  return check<double>(sizes, "float64", 1e-12) && bf16 && f32;
}

}  // namespace

int main(int argc, char** argv) {
  fresh = argc > 1 && std::string(argv[1]) == "--fresh";
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no CUDA device\n");
    return 77;
  }
  bool right = true;
  for (const bool channels_last : {true, false}) {
    for (const bool shared : {false, true}) {
      right &= check_dtypes({.b = 2, .c = 8, .h = 6, .w = 7, .shared = shared, .channels_last = channels_last});
      right &= check_dtypes({.b = 1, .c = 5, .h = 9, .w = 4, .shared = shared, .channels_last = channels_last, .sum = false, .chunk = 4});
    }
    right &= check_dtypes({.b = 1, .c = 1, .h = 33, .w = 17, .directions = 2, .channels_last = channels_last});
  }
  right &= check_dtypes({.b = 2, .c = 64, .h = 12, .w = 19});
  right &= check_dtypes({.b = 2, .c = 64, .h = 12, .w = 19, .shared = true, .padded = true});
  right &= check_dtypes({.b = 1, .c = 16, .h = 300, .w = 6, .directions = 3, .shared = true, .chunk = 7, .padded = true});
  right &= check_dtypes({.b = 1, .c = 64, .h = 8, .w = 74, .directions = 3, .chunk = 3});
  right &= check_dtypes({.b = 1, .c = 16, .h = 5, .w = 9, .keep_state = false});
  right &= check_dtypes({.b = 1, .c = 16, .h = 5, .w = 9, .directions = 1, .sum = false, .normalize = false});
  right &= check_dtypes({.b = 1, .c = 8, .h = 2, .w = 3100, .directions = 2});  // a line over several blocks
  right &= check_dtypes({.b = 1, .c = 1152, .h = 3, .w = 5});
  right &= check_dtypes({.b = 2, .c = 200, .h = 5, .w = 7, .channels_last = false});
  right &= check_dtypes({.b = 1, .c = 2, .h = 40, .w = 900, .channels_last = false});
  std::printf("cuda kernels: %s\n", right ? "right" : "WRONG");
  return right ? 0 : 1;
}
