# Finds torch's headers, a C++ compiler and nvcc; writes into cpu_status and cuda_status why one is missing.
include(CheckLanguage)
find_package(Python 3.11 COMPONENTS Interpreter REQUIRED)

# The outer interpreter's site-packages, also inside pip's isolated build environment. find_package(Torch)
# is not used: it needs more than headers and overrides the CUDA architectures.
set(torch_dir "${CGSPN_TORCH_DIR}")
if(NOT torch_dir)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c
            "import sysconfig; print(sysconfig.get_path('purelib'), sysconfig.get_path('platlib'), sep=';')"
    OUTPUT_VARIABLE site_folders OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  foreach(folder IN LISTS site_folders)
    if(EXISTS "${folder}/torch/include/torch/csrc/stable/library.h")
      set(torch_dir "${folder}/torch")
    endif()
  endforeach()
endif()

check_language(CXX)
if(NOT CMAKE_CXX_COMPILER)
  set(cpu_status "no C++ compiler was found when the package was built")
elseif(NOT torch_dir)
  set(cpu_status "torch was not installed when the package was built (install torch first, then cgspn again)")
elseif(NOT EXISTS "${torch_dir}/include/torch/csrc/stable/library.h")
  set(cpu_status "torch in ${torch_dir} has no stable ABI headers (2.11 or newer is needed)")
endif()

set(torch_has_cuda FALSE)
if(EXISTS "${torch_dir}/version.py")
  file(STRINGS "${torch_dir}/version.py" torch_cuda REGEX "^cuda.*= *'")
  if(torch_cuda)
    set(torch_has_cuda TRUE)
  endif()
endif()

if(NOT cpu_status STREQUAL "built")
  set(cuda_status "${cpu_status}")
elseif(CGSPN_BUILD_CUDA STREQUAL "OFF")
  set(cuda_status "CGSPN_BUILD_CUDA was OFF when the package was built")
elseif(CGSPN_BUILD_CUDA STREQUAL "AUTO" AND NOT torch_has_cuda)
  set(cuda_status "torch was a CPU build when the package was built (CGSPN_BUILD_CUDA=ON forces the CUDA kernels)")
else()
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(cuda_status "no nvcc was found when the package was built")
  endif()
endif()

if(CGSPN_BUILD_CUDA STREQUAL "ON" AND NOT cuda_status STREQUAL "built")
  message(FATAL_ERROR "CGSPN_BUILD_CUDA is ON, but: ${cuda_status}.")
endif()
