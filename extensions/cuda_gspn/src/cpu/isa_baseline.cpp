#include "cpu/isa.h"

const cgspn::cpu::Kernels& cgspn::cpu::baseline_kernels() {
  static constexpr Kernels kernels = kernels_named("baseline");
  return kernels;
}
