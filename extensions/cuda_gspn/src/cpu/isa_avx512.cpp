#include "cpu/isa.h"

const cgspn::cpu::Kernels& cgspn::cpu::avx512_kernels() {
  static constexpr Kernels kernels = kernels_named("avx512");
  return kernels;
}
