// CPU kernels: vectorised, multi-threaded, results independent of the number of threads.
#pragma once

#include "cgspn/line_scan.h"

namespace cgspn::cpu {

// How the caller runs `count` independent tasks, on at most `count_threads` threads.
struct Threads {
  int count;
  void (*run)(int64_t count, void (*task)(int64_t, void*), void* context);
};

// Name of the instruction set in use: "avx512", "avx2" or "baseline".
const char* instruction_set();

void line_scan_forward(const LineScanForward& call, const Threads& threads);
void line_scan_backward(const LineScanBackward& call, const Threads& threads);
void row_stochastic_forward(const RowStochasticForward& call, const Threads& threads);
void row_stochastic_backward(const RowStochasticBackward& call, const Threads& threads);

}  // namespace cgspn::cpu
