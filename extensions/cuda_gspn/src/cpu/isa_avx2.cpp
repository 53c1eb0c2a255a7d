#include "cpu/isa.h"

const cgspn::cpu::Kernels& cgspn::cpu::avx2_kernels() {
  static constexpr Kernels kernels = kernels_named("avx2");
  return kernels;
}
