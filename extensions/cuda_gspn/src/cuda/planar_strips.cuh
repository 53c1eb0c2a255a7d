// Strips of a plane's operands in shared memory: where their values lie, how they come and how outputs leave.
//
// A vertical strip is some rows, for each operand a run of memory copied in 16-byte pieces from where it is aligned. A
// horizontal strip is some columns of every row: [row][operand][pieces], each row and operand copied from where it is
// aligned. Outputs of a horizontal strip take the place of operands that have been read (y of x, the state of the middle
// logit) and leave in pieces of rows.
#pragma once

#include "async.cuh"
#include "numerics.cuh"
#include "planar_plan.cuh"
#include "vector.cuh"

namespace cgspn::cuda {

enum PlanarOperand { kLeftLogit, kMiddleLogit, kRightLogit, kLam, kU, kX };

// In bytes.
struct PlaneStrides {
  int64_t b = 0, c = 0, h = 0;
};

struct PlanarPass {
  const char* operands[kPlanarOperands];
  char *y, *state;
  bool vertical, reversed, accumulate;
};

// Passes are numbered [part][pass of the part].
struct PlanarParams {
  PlanarPass passes[kMaxDirections];
  PlaneStrides x, a, lam, u, y, state;
  const char *x_end, *a_end, *lam_end, *u_end;  // behind the last byte that may be read
  int channels, height, width, chunk, parts, passes_per_part;
  int vertical_lines, vertical_buffers, vertical_bytes, column_bytes;
  int horizontal_lines, horizontal_buffers, horizontal_bytes, word_shift, piece, pieces;
  int y_pitch, borders, y_at;
  bool normalize;
  bool same_skew;  // the same row of all operands begins at the same place of a 16-byte piece
};

__device__ __forceinline__ int low_bits(const char* p, int mask) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(p)) & mask;
}

__device__ __forceinline__ uint32_t load_shared(uint32_t at) {
  uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
  return v;
}

__device__ __forceinline__ uint32_t load_shared_half(uint32_t at) {
  uint16_t v;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(at) : "memory");
  return v;
}

__device__ __forceinline__ void store_shared(uint32_t at, uint32_t v) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(v) : "memory");
}

template <typename T>
__device__ __forceinline__ float load_value(uint32_t at) {
  float v[2];
  unpack_word(sizeof(T) == 4 ? load_shared(at) : load_shared_half(at), v, T());
  return v[0];
}

template <typename T>
__device__ __forceinline__ void store_value(uint32_t at, float v) {
  if constexpr (sizeof(T) == 4) {
    store_shared(at, __float_as_uint(v));
  } else {
    const T out = narrow<T>(v);
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(at), "h"(*reinterpret_cast<const uint16_t*>(&out)) : "memory");
  }
}

// A piece of 16 bytes, or of 4 through L1; behind `end`, where memory may not be the caller's, value by value.
template <typename T>
__device__ __forceinline__ void copy_piece(uint32_t shared, const char* from, int bytes, const char* end) {
  if (from + bytes > end) {
#pragma unroll 1
    for (; from < end; from += sizeof(T), shared += sizeof(T)) {
      store_value<T>(shared, widen(*reinterpret_cast<const T*>(from)));
    }
  } else if (bytes == 16) {
    copy_async(shared, from);
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared), "l"(from) : "memory");
  }
}

// Of one plane and direction. `P`: positions a thread; `kOdd`: rows may begin in the middle of a word.
template <typename T, int P, bool kOdd, bool kVertical>
struct PlanarStrips {
  static constexpr int kBytes = sizeof(T);
  static constexpr int kPerWord = 4 / kBytes;

  const PlanarParams& p;
  const char* operands[kPlanarOperands];
  char *y, *state;
  uint32_t shared;
  int width, height, strip_lines, buffers, buffer_bytes;
  bool reversed, accumulate;

  __device__ __forceinline__ const char* end_of(int operand) const {
    return operand < kLam ? p.a_end : operand == kLam ? p.lam_end : operand == kU ? p.u_end : p.x_end;
  }

  // Of one operand and row in a horizontal strip.
  __device__ __forceinline__ int row_piece() const { return p.piece * p.pieces; }
  // Row `j` of a horizontal strip; the rows of a thread lie apart, those of neighbouring threads side by side. The last
  // row serves threads beyond the line's end. Four rows are followed by 16 bytes, so that rows that begin at the same
  // place of a 16-byte piece lie in different banks.
  __device__ __forceinline__ int row_at(int j) const {
    const int per_thread = (height + P - 1) / P;
    const int slot = P == 1 ? j : j < height ? j % P * per_thread + j / P : P * per_thread;
    return slot * kPlanarOperands * row_piece() + slot / 4 * 16;
  }
  // Bytes from where the copy of a row begins to its first value.
  __device__ __forceinline__ int skew(int operand, int j) const {
    return (low_bits(operands[operand], 15) + j * width * kBytes) & (p.piece - 1);
  }
  // The value of line `e` of a horizontal strip.
  __device__ __forceinline__ int value_at(int operand, int j, int e) const {
    return row_at(j) + operand * row_piece() + skew(operand, j) + e * kBytes;
  }
  // The first value of an operand in a vertical strip.
  __device__ __forceinline__ int column_at(int operand, int strip) const {
    const int64_t from = static_cast<int64_t>(strip) * strip_lines * width * kBytes;
    return operand * p.column_bytes + (operands[operand] == nullptr ? 0 : low_bits(operands[operand] + from, 15));
  }

  // Whether copies may take 16 bytes beyond the plane.
  __device__ __forceinline__ bool inside() const {
    const int64_t reach = static_cast<int64_t>(height) * width * kBytes + 16;
    bool result = true;
#pragma unroll
    for (int k = 0; k < kPlanarOperands; ++k) result &= operands[k] == nullptr || operands[k] + reach <= end_of(k);
    return result;
  }

  // `plain`: copies may take bytes beyond the plane and the rows of all operands have the same skew.
  __device__ __forceinline__ void load(int strip, int buffer, bool plain) const {
    const uint32_t to = shared + buffer * buffer_bytes;
    const int first = strip * strip_lines;
    if constexpr (kVertical) {
      const int bytes = min(strip_lines, height - first) * width * kBytes;
#pragma unroll
      for (int k = 0; k < kPlanarOperands; ++k) {
        if (operands[k] == nullptr) continue;
        const char* from = operands[k] + static_cast<int64_t>(first) * width * kBytes;
        const int skip = low_bits(from, 15);
        const char* const end = plain ? from + bytes + 16 : end_of(k);
        from -= skip;
#pragma unroll 1
        for (int at = threadIdx.x * 16; at < skip + bytes; at += blockDim.x * 16) {
          copy_piece<T>(to + k * p.column_bytes + at, from + at, 16, end);
        }
      }
    } else {
      const int bytes = min(strip_lines, width - first) * kBytes;
      const int rows = blockDim.x / p.pieces, piece = threadIdx.x % p.pieces * p.piece;
      if (threadIdx.x >= rows * p.pieces) return;
      const auto each_row = [&](auto&& copy) {
#pragma unroll 1
        for (int j = threadIdx.x / p.pieces; j < height; j += rows) copy(j, to + row_at(j) + piece);
      };
      if (plain) {
        each_row([&](int j, uint32_t to_row) {
          const int before = skew(kX, j), offset = (j * width + first) * kBytes - before + piece;
          if (piece >= before + bytes) return;
#pragma unroll
          for (int k = 0; k < kPlanarOperands; ++k, to_row += row_piece()) {
            if (operands[k] != nullptr) copy_async(to_row, operands[k] + offset);
          }
        });
        return;
      }
#pragma unroll
      for (int k = 0; k < kPlanarOperands; ++k) {
        if (operands[k] == nullptr) continue;
        each_row([&](int j, uint32_t to_row) {
          const int before = skew(k, j);
          if (piece >= before + bytes) return;
          copy_piece<T>(to_row + k * row_piece(), operands[k] + (j * width + first) * kBytes - before + piece, p.piece,
                        end_of(k));
        });
      }
    }
  }

  // Ones in place of absent gates, and zeros in the row beyond the line's end, in all buffers.
  __device__ __forceinline__ void fill() const {
    const uint32_t one = *reinterpret_cast<const uint32_t*>(ones<T>());
    const int words = (kVertical ? p.column_bytes : row_piece()) / 4, rows = kVertical ? 1 : height;
    for (int b = 0; b < buffers; ++b) {
      const uint32_t to = shared + b * buffer_bytes;
#pragma unroll 1
      for (int k = kLam; k <= kU; ++k) {
        if ((k == kLam ? operands[kLam] : operands[kU]) != nullptr) continue;
        for (int i = threadIdx.x; i < rows * words; i += blockDim.x) {
          store_shared(to + (kVertical ? 0 : row_at(i / words)) + (k * words + i % words) * 4, one);
        }
      }
      if constexpr (!kVertical) {
        for (int i = threadIdx.x; i < kPlanarOperands * words; i += blockDim.x) {
          store_shared(to + row_at(height) + i * 4, 0);
        }
      }
    }
  }

  // Calls f(row, column, line of the strip) for what this thread writes of a horizontal strip: words, or single values
  // where rows may begin in the middle of one.
  template <typename F>
  __device__ __forceinline__ void for_outputs(int strip, F&& f) const {
    const int first = strip * strip_lines, count = min(strip_lines, width - first);
    const int shift = p.word_shift + kOdd, e = (threadIdx.x & ((1 << shift) - 1)) * (kOdd ? 1 : kPerWord);
    if (e >= count) return;
#pragma unroll 1
    for (int j = threadIdx.x >> shift; j < height; j += blockDim.x >> shift) f(j, first + e, e);
  }

  // A finished horizontal strip's y, or its states where `operand` is the middle logit.
  __device__ __forceinline__ void write_out(int strip, int buffer, int operand) const {
    char* const out = operand == kX ? y : state;
    const int64_t row_stride = operand == kX ? p.y.h : p.state.h;
    for_outputs(strip, [&](int j, int column, int e) {
      const uint32_t at = shared + buffer * buffer_bytes + value_at(operand, j, e);
      char* const to = out + j * row_stride + column * kBytes;
      if constexpr (kOdd) {
        *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(load_shared_half(at));
      } else {
        *reinterpret_cast<uint32_t*>(to) = load_shared(at);
      }
    });
  }
};

}  // namespace cgspn::cuda
