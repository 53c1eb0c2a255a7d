# Kernels for C++ programs without torch: cgspn::cpu, and cgspn::cuda where nvcc was there when they were built.
include(CMakeFindDependencyMacro)
file(STRINGS "${CMAKE_CURRENT_LIST_DIR}/cgspn_targets.cmake" cgspn_has_cuda REGEX "add_library\\(cgspn::cuda")
if(cgspn_has_cuda)
  find_dependency(CUDAToolkit)
endif()
include("${CMAKE_CURRENT_LIST_DIR}/cgspn_targets.cmake")
