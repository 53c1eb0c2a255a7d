// Forward kernel for tensors whose (image, channel) planes are dense: NCHW, or one channel.
//
// A block owns one plane and one direction (or, "resident", all directions one after the other); its threads hold the
// positions of a line, P neighbours each, states in registers. Neighbours' states come by shuffles, at the borders of
// warps through double-buffered shared memory, with one barrier a line.
//
// Operands come through a ring of strips of some lines, filled by cp.async. For vertical directions a strip is a run of
// memory for each operand, copied in 16-byte pieces from where it is aligned. For horizontal ones a strip is some
// columns of every row, copied in 4-byte words and laid out [row][word][operand] with an odd pitch, so that the threads
// of a warp read different banks. A thread reads only its own rows of it, so its outputs take the place of gates that
// it has read and leave in row pieces when the strip is done. A row may begin in the middle of a word (`kOdd`): then a
// piece has one more word and the parity of each row and operand is taken into account where a value is read.
//
// Sum over directions: resident blocks add in shared memory and write y once; otherwise each direction goes to scratch
// and a second kernel adds them in order.
#include "planar_forward.cuh"

#include <initializer_list>
#include <utility>

#include "async.cuh"
#include "numerics.cuh"
#include "planar_plan.cuh"
#include "sum_parts.cuh"

namespace cgspn::cuda {
namespace {

enum Operand { kLogits = 0, kLam = 3, kU, kX, kOld };

struct PlaneStrides {
  int64_t b = 0, c = 0, h = 0;
};

struct Pass {
  const char* operands[kPlanarOperands];
  char *y, *state;
  bool vertical, reversed, accumulate;
};

// Strides in bytes. Passes are numbered [part][pass of the part].
struct Params {
  Pass passes[kMaxDirections];
  PlaneStrides x, a, lam, u, y, state;
  int channels, height, width, chunk, parts, passes_per_part;
  const char *x_end, *a_end, *lam_end, *u_end, *y_end;  // behind the last byte that may be read
  int vertical_lines, horizontal_lines, word_shift, buffers, buffer_bytes, piece, pieces, column_bytes, y_pitch, borders;
  int y_at;
  bool same_skew;  // rows of all operands begin at the same place of a 16-byte piece
};

// 4 bytes, through L1.
__device__ __forceinline__ void copy_word_async(uint32_t shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared), "l"(global) : "memory");
}

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

template <typename T>
__device__ __forceinline__ T load_element(uint32_t at) {
  if constexpr (sizeof(T) == 4) {
    return __uint_as_float(load_shared(at));
  } else {
    const uint16_t v = static_cast<uint16_t>(load_shared_half(at));
    return *reinterpret_cast<const T*>(&v);
  }
}

__device__ __forceinline__ void store_shared(uint32_t at, float v) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(at), "f"(v) : "memory");
}

template <typename T>
__device__ __forceinline__ void store_element(uint32_t at, float v) {
  if constexpr (sizeof(T) == 4) {
    store_shared(at, v);
  } else {
    const T out = narrow<T>(v);
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(at), "h"(*reinterpret_cast<const uint16_t*>(&out)) : "memory");
  }
}

// A piece of 16 or 4 bytes; behind `end`, where memory may not be the caller's, value by value.
template <typename T>
__device__ __forceinline__ void copy_piece(uint32_t shared, const char* from, int bytes, const char* end) {
  if (from + bytes > end) {
#pragma unroll 1
    for (; from < end; from += sizeof(T), shared += sizeof(T)) {
      store_element<T>(shared, widen(*reinterpret_cast<const T*>(from)));
    }
  } else if (bytes == 16) {
    copy_async(shared, from);
  } else {
    copy_word_async(shared, from);
  }
}

// One plane in one direction, by all threads of the block. `kResident`: y is kept in shared memory.
template <typename T, int P, bool kNormalize, bool kOdd, bool kResident, bool kVertical>
struct Scan {
  static constexpr int kBytes = sizeof(T);
  [[maybe_unused]] static constexpr int kPerWord = 4 / kBytes;
  static constexpr int kColumns = kPlanarOperands + (kResident ? 0 : 1);  // operands of a vertical strip
  // Words of y a thread fetches when a strip begins, to add to when it is done; further ones it fetches then.
  static constexpr int kOldWords = 4;
  // Two neighbouring positions of a vertical line are read as one word.
  static constexpr bool kPositionPairs = kVertical && kBytes == 2 && P > 1 && !kOdd;

  const Params& p;
  const char* operands[kPlanarOperands + 1];
  char *y, *state;
  uint32_t shared;
  int width, height, strip_lines;
  bool reversed, accumulate;

  __device__ __forceinline__ const char* end_of(int operand) const {
    return operand < 3 ? p.a_end : operand == kLam ? p.lam_end : operand == kU ? p.u_end : operand == kX ? p.x_end : p.y_end;
  }
  // Row `j` of a horizontal strip; the rows of a thread lie apart, those of neighbouring threads side by side. The last
  // row serves threads beyond the line's end. Four rows are followed by 16 bytes, so that threads whose rows begin at
  // the same place of a 16-byte piece read different banks.
  __device__ __forceinline__ int row_at(int j) const {
    const int per_thread = (height + P - 1) / P;
    const int slot = P == 1 ? j : j < height ? j % P * per_thread + j / P : P * per_thread;
    return slot * kPlanarOperands * row_piece() + slot / 4 * 16;
  }
  // Of one operand and row in a horizontal strip.
  __device__ __forceinline__ int row_piece() const { return p.piece * p.pieces; }
  // Bytes from where the copy of a row of a horizontal strip begins, where it is aligned, to its first value.
  __device__ __forceinline__ int skew(int operand, int j) const {
    return (low_bits(operands[operand], 15) + j * width * kBytes) & (p.piece - 1);
  }
  // The value of line `e` of a horizontal strip.
  __device__ __forceinline__ int value_at(int operand, int j, int e) const {
    return row_at(j) + operand * row_piece() + skew(operand, j) + e * kBytes;
  }

  // Whether copies may reach 16 bytes beyond the plane.
  __device__ __forceinline__ bool inside() const {
    const int64_t reach = static_cast<int64_t>(height) * width * kBytes + 16;
    bool result = true;
#pragma unroll
    for (int k = 0; k < kPlanarOperands + 1; ++k) result &= operands[k] == nullptr || operands[k] + reach <= end_of(k);
    return result;
  }

  // `plain`: nothing behind the tensors is within reach and, for horizontal strips, the rows of all operands begin at
  // the same place of a 16-byte piece.
  __device__ __forceinline__ void load(int strip, int buffer, bool plain) const {
    const uint32_t to = shared + buffer * p.buffer_bytes;
    const int first = strip * strip_lines;
    if constexpr (kVertical) {
      const int bytes = min(strip_lines, height - first) * width * kBytes;
#pragma unroll
      for (int k = 0; k < kColumns; ++k) {
        if (operands[k] == nullptr) continue;
        const char* from = operands[k] + static_cast<int64_t>(first) * width * kBytes;
        const int skip = low_bits(from, 15);
        from -= skip;
        const uint32_t to_column = to + k * p.column_bytes;
        if (plain) {
#pragma unroll 2
          for (int at = threadIdx.x * 16; at < skip + bytes; at += blockDim.x * 16) copy_async(to_column + at, from + at);
        } else {
#pragma unroll 1
          for (int at = threadIdx.x * 16; at < skip + bytes; at += blockDim.x * 16) {
            copy_piece<T>(to_column + at, from + at, 16, end_of(k));
          }
        }
      }
    } else {
      const int bytes = min(strip_lines, width - first) * kBytes;
      const int rows = blockDim.x / p.pieces, piece = threadIdx.x % p.pieces * p.piece;
      int j = threadIdx.x / p.pieces;
      if (j >= rows) return;
      if (plain) {
#pragma unroll 1
        for (; j < height; j += rows) {
          const int before = skew(kX, j), offset = (j * width + first) * kBytes - before + piece;
          if (piece >= before + bytes) continue;
          uint32_t to_row = to + row_at(j) + piece;
#pragma unroll
          for (int k = 0; k < kPlanarOperands; ++k, to_row += row_piece()) {
            if (operands[k] != nullptr) copy_async(to_row, operands[k] + offset);
          }
        }
        return;
      }
#pragma unroll 1
      for (; j < height; j += rows) {
        const uint32_t to_row = to + row_at(j) + piece;
#pragma unroll
        for (int k = 0; k < kPlanarOperands; ++k) {
          const int before = skew(k, j);
          if (operands[k] == nullptr || piece >= before + bytes) continue;
          copy_piece<T>(to_row + k * row_piece(), operands[k] + (j * width + first) * kBytes - before + piece, p.piece,
                        end_of(k));
        }
      }
    }
  }

  // Ones in place of an absent gate, in all buffers.
  __device__ __forceinline__ void fill(int operand) const {
    const float one = __uint_as_float(*reinterpret_cast<const uint32_t*>(ones<T>()));
    const int words = (kVertical ? p.column_bytes : row_piece()) / 4, rows = kVertical ? 1 : height;
    for (int b = 0; b < p.buffers; ++b) {
      const uint32_t to = shared + b * p.buffer_bytes + operand * words * 4;
      for (int i = threadIdx.x; i < rows * words; i += blockDim.x) {
        store_shared(to + (kVertical ? 0 : row_at(i / words)) + i % words * 4, one);
      }
    }
  }

  // Calls f(count so far, row, column, place in the strip) for what this thread writes of a horizontal strip: words, or
  // single values where rows may begin in the middle of one.
  template <typename F>
  __device__ __forceinline__ void for_outputs(int strip, int operand, F&& f) const {
    const int first = strip * strip_lines, count = min(strip_lines, width - first);
    const int shift = p.word_shift + kOdd, e = (threadIdx.x & ((1 << shift) - 1)) * (kOdd ? 1 : kPerWord);
    if (e >= count) return;
    for (int j = threadIdx.x >> shift, i = 0; j < height; j += blockDim.x >> shift, ++i) {
      f(i, j, first + e, value_at(operand, j, e));
    }
  }

  // What y holds where the first outputs of a strip will be added.
  __device__ __forceinline__ void read_old(int strip, uint32_t (&old)[kOldWords]) const {
    for_outputs(strip, kX, [&](int i, int j, int column, int) {
#pragma unroll
      for (int n = 0; n < kOldWords; ++n) {
        if (i == n) old[n] = read_y(j, column);
      }
    });
  }
  __device__ __forceinline__ uint32_t read_y(int j, int column) const {
    const char* const at = y + j * p.y.h + column * kBytes;
    return kOdd ? *reinterpret_cast<const uint16_t*>(at) : *reinterpret_cast<const uint32_t*>(at);
  }

  // A finished horizontal strip's outputs, which lie where `operand` was.
  __device__ __forceinline__ void write_out(int strip, int buffer, int operand, char* out, int64_t row_stride, bool add,
                                            const uint32_t (&old)[kOldWords]) const {
    for_outputs(strip, operand, [&](int i, int j, int column, int place) {
      const uint32_t at = shared + buffer * p.buffer_bytes + place;
      char* const to = out + j * row_stride + column * kBytes;
      uint32_t v = kOdd ? load_shared_half(at) : load_shared(at);
      if (add) {
        uint32_t before = i < kOldWords ? old[0] : read_y(j, column);
#pragma unroll
        for (int n = 1; n < kOldWords; ++n) before = i == n ? old[n] : before;
        float a[2], b[2];
        unpack_word(v, a, T());
        unpack_word(before, b, T());
#pragma unroll
        for (int c = 0; c < kPerWord; ++c) a[c] += b[c];
        v = pack_word(a, T());
      }
      if constexpr (kOdd) {
        *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(v);
      } else {
        *reinterpret_cast<uint32_t*>(to) = v;
      }
    });
  }

  // `y_plane`: where y is kept in shared memory.
  __device__ __forceinline__ void run(uint32_t y_plane) const {
    const int lines = kVertical ? height : width, length = kVertical ? width : height;
    const int strips = (lines + strip_lines - 1) / strip_lines;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const int first = threadIdx.x * P;
    // [line parity][warp]: states at the left, then at the right ends of warps; 0 beyond the block.
    const uint32_t borders = shared + p.borders;
    const int border_line = 2 * (warps + 1);
    for (int i = threadIdx.x; i < 2 * border_line; i += blockDim.x) store_shared(borders + 4 * i, 0.0f);
    if (operands[kLam] == nullptr) fill(kLam);
    if (operands[kU] == nullptr) fill(kU);
    // Threads beyond the line's end read zeros here (in vertical strips, the line's last value), whose states stay finite
    // and reach nobody.
    if constexpr (!kVertical) {
      const int words = kPlanarOperands * row_piece() / 4;
      for (int i = threadIdx.x; i < words * p.buffers; i += blockDim.x) {
        store_shared(shared + i / words * p.buffer_bytes + row_at(height) + i % words * 4, 0.0f);
      }
    }
    const bool at_end = lane == 0 || lane == 31;
    uint32_t border_read = borders + 4 * (border_line + (lane == 0 ? warps + 1 + warp : warp + 1));
    uint32_t border_write = borders + 4 * (lane == 0 ? warp : warps + 1 + warp + 1);
    const uint32_t swap_read = border_read ^ (border_read - 4 * border_line);
    const uint32_t swap_write = border_write ^ (border_write + 4 * border_line);

    // Bits of a logit whose neighbour lies outside the line are cleared, so that nothing spreads from there.
    const bool has_left = first > 0;
    const float left_mask = has_left ? 1.0f : 0.0f;
    const uint32_t left_bits = has_left ? 0xffffffffu : kPositionPairs ? 0xffff0000u : 0u;
    float right_mask[P];
    uint32_t right_bits[P];
    // Words of this thread's values: in vertical strips by position, in horizontal ones by row and operand, with the
    // shift that brings the first of two values down.
    constexpr int kPlaces = kVertical ? 1 : kPlanarOperands;
    uint32_t own[P][kPlaces], shifts[kOdd ? P : 1][kPlaces];
#pragma unroll
    for (int i = 0; i < P; ++i) {
      const int j = first + i;
      right_mask[i] = j + 1 < length ? 1.0f : 0.0f;
      right_bits[i] = j + 1 < length ? 0xffffffffu : 0u;
      if constexpr (kVertical) {
        own[i][0] = shared + min(j, length - 1 - (kPositionPairs && i % 2 == 0)) * kBytes;
      } else {
#pragma unroll
        for (int k = 0; k < kPlaces; ++k) {
          own[i][k] = shared + value_at(k, min(j, length), 0);
          if constexpr (kOdd) {
            shifts[i][k] = own[i][k] % 4 * 8;
            own[i][k] -= own[i][k] % 4;
          }
        }
      }
    }

    uint32_t columns[kColumns];
    const auto begin_strip = [&](int strip, int buffer) {
#pragma unroll
      for (int k = 0; k < kColumns; ++k) {
        if constexpr (kVertical) {
          const int64_t from = static_cast<int64_t>(strip) * strip_lines * width * kBytes;
          columns[k] = buffer * p.buffer_bytes + k * p.column_bytes +
                       (operands[k] == nullptr ? 0 : low_bits(operands[k] + from, 15));
        } else {
          columns[k] = buffer * p.buffer_bytes;
        }
      }
    };

    // Of two lines: weights, what enters, output gate.
    float w[3][2][P], input[2][P], gate[2][P], old[2][P] = {}, h[P] = {};
    const int row_bytes = width * kBytes;
    // Lines 2 m and 2 m + 1 of the strip.
    const auto prepare = [&](int m) {
      const auto read = [&](int k, float(&v)[2][P]) {
        const auto refine = [&](uint32_t word, int i) {
          if (k == 0 && i == 0) word &= left_bits;
          if (k == 2) {
            word &= kPositionPairs ? (right_bits[i] & 0xffffu) | (right_bits[i + (P > 1)] & 0xffff0000u) : right_bits[i];
          }
          return kNormalize && k < 3 ? clamp_word<T>(word) : word;
        };
        if constexpr (kPositionPairs) {
#pragma unroll
          for (int l = 0; l < 2; ++l) {
#pragma unroll
            for (int i = 0; i < P; i += 2) {
              unpack_word(refine(load_shared(own[i][0] + columns[k] + (2 * m + l) * row_bytes), i), &v[l][i], T());
            }
          }
        } else {
#pragma unroll
          for (int i = 0; i < P; ++i) {
            float pair[2];
            if constexpr (kVertical) {
              const uint32_t at = own[i][0] + columns[k] + 2 * m * row_bytes;
              if constexpr (kBytes == 4) {
                unpack_word(refine(load_shared(at), i), pair, T());
                unpack_word(refine(load_shared(at + row_bytes), i), pair + 1, T());
              } else {
                unpack_word(refine(load_shared_half(at) | load_shared_half(at + row_bytes) << 16, i), pair, T());
              }
            } else {
              const uint32_t at = own[i][kVertical ? 0 : k] + columns[k] + 2 * m * kBytes;
              if constexpr (kBytes == 4) {
                unpack_word(refine(load_shared(at), i), pair, T());
                unpack_word(refine(load_shared(at + 4), i), pair + 1, T());
              } else if constexpr (kOdd) {
                const uint32_t both =
                    __funnelshift_r(load_shared(at), load_shared(at + 4), shifts[i][kVertical ? 0 : k]);
                unpack_word(refine(both, i), pair, T());
              } else {
                unpack_word(refine(load_shared(at), i), pair, T());
              }
            }
            v[0][i] = pair[0];
            v[1][i] = pair[1];
          }
        }
      };
      float lam[2][P];
      read(kX, input);
      read(kLam, lam);
      read(kU, gate);
      if constexpr (kVertical && !kResident) {
        if (accumulate) read(kOld, old);
      }
#pragma unroll
      for (int k = 0; k < 3; ++k) read(k, w[k]);
#pragma unroll
      for (int l = 0; l < 2; ++l) {
#pragma unroll
        for (int i = 0; i < P; ++i) {
          input[l][i] *= lam[l][i];
          if constexpr (kNormalize) {
            const float masked = i == 0 ? left_mask : 1.0f;
            const float e0 = fmaf(decay_clamped<T>(w[0][l][i]), masked, 1.0f);
            const float e1 = 1.0f + decay_clamped<T>(w[1][l][i]);
            const float e2 = fmaf(decay_clamped<T>(w[2][l][i]), right_mask[i], 1.0f);
            masked_weights<T>(e0, e1, e2, masked, right_mask[i], w[0][l][i], w[1][l][i], w[2][l][i]);
          }
        }
      }
    };

    int in_chunk = 0;
    const int first_line = reversed ? lines - 1 : 0;
    // Where this thread's outputs of the present line go.
    uint32_t y_own = y_plane + (kVertical ? first_line * p.y_pitch + first : first * p.y_pitch + first_line) * kBytes;
    const int y_step = (reversed ? -1 : 1) * (kVertical ? p.y_pitch : 1) * kBytes;
    char* y_line = kVertical && !kResident && y != nullptr ? y + first_line * p.y.h + first * kBytes : nullptr;
    char* state_line = kVertical && state != nullptr ? state + first_line * p.state.h + first * kBytes : nullptr;
    // Line 2 m + l of the strip.
    const auto step = [&](auto of_two, int m) {
      constexpr int l = decltype(of_two)::value;
      float next[P];
#pragma unroll
      for (int i = 0; i < P; ++i) next[i] = input[l][i];
      if (in_chunk != 0) {
        const float border = __uint_as_float(load_shared(border_read));
        float left = __shfl_up_sync(0xffffffffu, h[P - 1], 1), right = __shfl_down_sync(0xffffffffu, h[0], 1);
        if (lane == 0) left = border;
        if (lane == 31) right = border;
#pragma unroll
        for (int i = 0; i < P; ++i) {
          next[i] = fmaf(w[1][l][i], h[i], next[i]);
          next[i] = fmaf(w[0][l][i], i == 0 ? left : h[i == 0 ? 0 : i - 1], next[i]);
          next[i] = fmaf(w[2][l][i], i == P - 1 ? right : h[i == P - 1 ? 0 : i + 1], next[i]);
        }
      }
      if (++in_chunk == p.chunk) in_chunk = 0;
#pragma unroll
      for (int i = 0; i < P; ++i) h[i] = kNormalize || !kVertical || first + i < length ? next[i] : 0.0f;
      if (at_end) store_shared(border_write, lane == 0 ? h[0] : h[P - 1]);
      border_read ^= swap_read;
      border_write ^= swap_write;

#pragma unroll
      for (int i = 0; i < P; ++i) {
        if (first + i >= length) continue;
        const float out = fmaf(gate[l][i], h[i], kVertical && !kResident ? old[l][i] : 0.0f);
        const auto staged = [&](int operand) {
          const int place = kVertical ? 0 : operand;
          return own[i][place] + columns[operand] + (2 * m + l) * kBytes + (kOdd ? shifts[i % (kOdd ? P : 1)][place] / 8 : 0);
        };
        if constexpr (kResident) {
          const uint32_t at = y_own + i * (kVertical ? 1 : p.y_pitch) * kBytes;
          store_element<T>(at, accumulate ? widen(load_element<T>(at)) + out : out);
        } else if (y != nullptr) {
          if constexpr (kVertical) {
            reinterpret_cast<T*>(y_line)[i] = narrow<T>(out);
          } else {
            store_element<T>(staged(kX), out);
          }
        }
        if (state != nullptr) {
          if constexpr (kVertical) {
            reinterpret_cast<T*>(state_line)[i] = narrow<T>(h[i]);
          } else {
            store_element<T>(staged(1), h[i]);
          }
        }
      }
      if constexpr (kResident) y_own += y_step;
      if constexpr (kVertical && !kResident) y_line += reversed ? -p.y.h : p.y.h;
      if constexpr (kVertical) state_line += reversed ? -p.state.h : p.state.h;
    };

    const auto strip_of = [&](int i) { return reversed ? strips - 1 - i : i; };
    const bool stages_y = !kVertical && !kResident && y != nullptr, stages_state = !kVertical && state != nullptr;
    uint32_t old_words[kOldWords] = {};
    const auto flush = [&](int n, int buffer) {
      if (stages_y) write_out(strip_of(n), buffer, kX, y, p.y.h, accumulate, old_words);
      if (stages_state) write_out(strip_of(n), buffer, 1, state, p.state.h, false, old_words);
    };
    const bool plain = inside() && (kVertical || p.same_skew);
    for (int i = 0; i + 1 < p.buffers; ++i) {
      if (i < strips) load(strip_of(i), i, plain);
      commit_copies();
    }
    int here = 0;
    for (int n = 0; n < strips; ++n) {
      if (p.buffers == 3) {
        wait_copies<1>();
      } else {
        wait_copies<0>();
      }
      __syncthreads();
      const int before = here == 0 ? p.buffers - 1 : here - 1;
      if ((stages_y || stages_state) && n > 0) {
        flush(n - 1, before);
        __syncthreads();
      }
      if (n + p.buffers - 1 < strips) load(strip_of(n + p.buffers - 1), before, plain);
      commit_copies();
      if (p.buffers == 1) {
        wait_copies<0>();
        __syncthreads();
      }

      const int strip = strip_of(n), count = min(strip_lines, lines - strip * strip_lines), pairs = (count + 1) / 2;
      begin_strip(strip, here);
      if (stages_y && accumulate) read_old(strip, old_words);
      prepare(reversed ? pairs - 1 : 0);
      for (int q = 0; q < pairs; ++q) {
        const int m = reversed ? pairs - 1 - q : q;
        const bool both = 2 * m + 1 < count;
        if (!reversed) {
          step(std::integral_constant<int, 0>(), m);
          if (both) {
            __syncthreads();
            step(std::integral_constant<int, 1>(), m);
          }
        } else {
          if (both) {
            step(std::integral_constant<int, 1>(), m);
            __syncthreads();
          }
          step(std::integral_constant<int, 0>(), m);
        }
        if (q + 1 < pairs) {
          prepare(reversed ? m - 1 : m + 1);
          __syncthreads();
        }
      }
      here = here + 1 == p.buffers ? 0 : here + 1;
    }
    __syncthreads();
    if (stages_y || stages_state) {
      flush(strips - 1, here == 0 ? p.buffers - 1 : here - 1);
      __syncthreads();
    }
  }
};

template <typename T, int P, bool kNormalize, bool kOdd, bool kResident>
__global__ void __launch_bounds__(planar_threads(P), 1) planar_forward_kernel(const __grid_constant__ Params p) {
  extern __shared__ __align__(16) unsigned char shared[];
  uint32_t shared_at = shared_address(shared);
  asm volatile("" : "+r"(shared_at));  // kept in a register, not computed again at every use
  const int part = blockIdx.x % p.parts, plane = blockIdx.x / p.parts;
  const int64_t image = plane / p.channels, channel = plane % p.channels;
  const auto at = [&](auto* data, const PlaneStrides& s) {
    return data == nullptr ? nullptr : data + image * s.b + channel * s.c;
  };
  for (int n = 0; n < p.passes_per_part; ++n) {
    const Pass& pass = p.passes[part * p.passes_per_part + n];
    char* const y = at(pass.y, p.y);
    const auto run = [&](auto vertical) {
      constexpr bool kVertical = decltype(vertical)::value;
      const Scan<T, P, kNormalize, kOdd, kResident, kVertical> scan{
          p,
          {at(pass.operands[0], p.a), at(pass.operands[1], p.a), at(pass.operands[2], p.a),
           at(pass.operands[kLam], p.lam), at(pass.operands[kU], p.u), at(pass.operands[kX], p.x),
           pass.accumulate ? y : nullptr},
          y,
          at(pass.state, p.state),
          shared_at,
          p.width,
          p.height,
          kVertical ? p.vertical_lines : p.horizontal_lines,
          pass.reversed,
          pass.accumulate};
      scan.run(shared_at + p.y_at);
    };
    if (pass.vertical) {
      run(std::true_type());
    } else {
      run(std::false_type());
    }
  }
  if constexpr (kResident) {
    char* const y = at(p.passes[0].y, p.y);
    const T* const y_plane = reinterpret_cast<const T*>(shared + p.y_at);
    for (int row = threadIdx.x / 32; row < p.height; row += blockDim.x / 32) {
      T* const to = reinterpret_cast<T*>(y + row * p.y.h);
      for (int column = threadIdx.x % 32; column < p.width; column += 32) {
        to[column] = y_plane[row * p.y_pitch + column];
      }
    }
  }
}

// Adds dense planes `part_bytes` apart into y, one value a thread.
template <typename T>
__global__ void __launch_bounds__(256)
    sum_planes_kernel(const char* parts, int64_t part_bytes, int num_parts, char* y, PlaneStrides s, int channels,
                      int height, int width, int64_t count) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i >= count) return;
  float sum = 0.0f;
  for (int n = 0; n < num_parts; ++n) sum += widen(reinterpret_cast<const T*>(parts + n * part_bytes)[i]);
  const int64_t row = i / width, plane = row / height;
  char* const to = y + plane / channels * s.b + plane % channels * s.c + row % height * s.h;
  reinterpret_cast<T*>(to)[i % width] = narrow<T>(sum);
}

template <typename View>
PlaneStrides plane_strides(const View& v, int64_t bytes) {
  return {v.b * bytes, v.c * bytes, v.h * bytes};
}

// Rows of unit stride; `dense`: one directly behind the other.
template <typename View>
bool planes(const View& v, const LineScanShape& s, bool dense) {
  return v.data == nullptr ||
         ((v.w == 1 || s.width == 1) && (!dense || s.height == 1 || v.h == s.width));
}

// The largest power of two, at most 16, that divides the addresses of all rows of these tensors.
int row_alignment(const LineScanForward& call, bool inputs) {
  const LineScanShape& s = call.shape;
  const int64_t bytes = s.dtype == DType::kFloat32 ? 4 : 2;
  int64_t bits = 16;
  const auto include = [&](const void* data, std::initializer_list<std::pair<int64_t, int64_t>> strides) {
    if (data == nullptr) return;
    bits |= static_cast<int64_t>(reinterpret_cast<uintptr_t>(data));
    for (const auto& [size, stride] : strides) bits |= size > 1 ? stride * bytes : 0;
  };
  const int64_t d = s.num_directions;
  if (inputs) {
    bits |= s.width * bytes;
    include(call.x.data, {{s.batch, call.x.b}, {s.channels, call.x.c}});
    include(call.a.data, {{s.batch, call.a.b}, {d, call.a.d}, {3, call.a.k}, {s.channels, call.a.c}});
    include(call.lam.data, {{s.batch, call.lam.b}, {d, call.lam.d}, {s.channels, call.lam.c}});
    include(call.u.data, {{s.batch, call.u.b}, {d, call.u.d}, {s.channels, call.u.c}});
  } else {
    const int64_t y_d = call.sum ? 1 : d;
    include(call.y.data, {{s.batch, call.y.b}, {y_d, call.y.d}, {s.channels, call.y.c}, {s.height, call.y.h}});
    include(call.state.data,
            {{s.batch, call.state.b}, {d, call.state.d}, {s.channels, call.state.c}, {s.height, call.state.h}});
  }
  return static_cast<int>(bits & -bits);
}

// Whether the same row of any operand of any direction begins at the same place of a 16-byte piece.
bool same_skew(const LineScanForward& call) {
  const LineScanShape& s = call.shape;
  const int64_t bytes = s.dtype == DType::kFloat32 ? 4 : 2;
  int64_t bits = 0;
  const auto include = [&](const auto& v) {
    if (v.data == nullptr) return;
    bits |= static_cast<int64_t>(reinterpret_cast<uintptr_t>(v.data) - reinterpret_cast<uintptr_t>(call.x.data));
    bits |= s.batch > 1 ? (v.b - call.x.b) * bytes : 0;
    bits |= s.channels > 1 ? (v.c - call.x.c) * bytes : 0;
    bits |= s.num_directions > 1 ? v.d * bytes : 0;
  };
  include(call.a);
  include(call.lam);
  include(call.u);
  return (bits | call.a.k * bytes) % 16 == 0;
}

// Behind the last value of a tensor whose rows are dense.
template <typename View>
const char* end_of(const View& v, const LineScanShape& s, int64_t offset) {
  if (v.data == nullptr) return nullptr;
  const int64_t values = offset + (s.batch - 1) * v.b + (s.channels - 1) * v.c + s.height * s.width;
  return static_cast<const char*>(v.data) + values * (s.dtype == DType::kFloat32 ? 4 : 2);
}

PlanarLayout layout_of(const LineScanForward& call) {
  const bool summed = call.sum && call.y.data != nullptr && call.shape.num_directions > 1;
  return plan_planar(call.shape, summed, planes(call.y, call.shape, true), row_alignment(call, true),
                     row_alignment(call, false));
}

bool uses_scratch(const LineScanForward& call, const PlanarLayout& l) {
  return call.sum && call.y.data != nullptr && l.home == PlanarHome::kParts && call.shape.num_directions > 1;
}

size_t part_bytes(const LineScanShape& s) {
  const size_t bytes = static_cast<size_t>(s.batch) * s.channels * s.height * s.width;
  return (bytes * (s.dtype == DType::kFloat32 ? 4 : 2) + 15) / 16 * 16;
}

template <typename T, int P, bool kResident>
cudaError_t launch(const Params& p, const PlanarLayout& l, const LineScanShape& s, cudaStream_t stream) {
  const auto start = [&](auto kernel) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(l.shared));
    if (error != cudaSuccess) return error;
    const unsigned blocks = static_cast<unsigned>(s.batch * s.channels * p.parts);
    kernel<<<blocks, l.threads, l.shared, stream>>>(p);
    return cudaGetLastError();
  };
  if constexpr (sizeof(T) == 2) {
    if (l.odd) {
      return s.normalize ? start(planar_forward_kernel<T, P, true, true, kResident>)
                         : start(planar_forward_kernel<T, P, false, true, kResident>);
    }
  }
  return s.normalize ? start(planar_forward_kernel<T, P, true, false, kResident>)
                     : start(planar_forward_kernel<T, P, false, false, kResident>);
}

template <typename T>
cudaError_t launch(const Params& p, const PlanarLayout& l, const LineScanShape& s, cudaStream_t stream) {
  if (l.home == PlanarHome::kShared) {
    return l.positions == 1 ? launch<T, 1, true>(p, l, s, stream) : launch<T, 2, true>(p, l, s, stream);
  }
  if (l.positions == 1) return launch<T, 1, false>(p, l, s, stream);
  return l.positions == 2 ? launch<T, 2, false>(p, l, s, stream) : launch<T, 4, false>(p, l, s, stream);
}

template <typename T>
cudaError_t run(const LineScanForward& call, void* workspace, cudaStream_t stream) {
  constexpr int64_t kBytes = sizeof(T);
  const LineScanShape& s = call.shape;
  const PlanarLayout l = layout_of(call);
  const bool scratch = uses_scratch(call, l);
  const int64_t part = static_cast<int64_t>(part_bytes(s));
  Params p = {};
  p.x = plane_strides(call.x, kBytes);
  p.a = plane_strides(call.a, kBytes);
  p.lam = plane_strides(call.lam, kBytes);
  p.u = plane_strides(call.u, kBytes);
  p.y = scratch ? PlaneStrides{s.channels * s.height * s.width * kBytes, s.height * s.width * kBytes, s.width * kBytes}
                : plane_strides(call.y, kBytes);
  p.state = plane_strides(call.state, kBytes);
  p.channels = static_cast<int>(s.channels);
  p.height = static_cast<int>(s.height);
  p.width = static_cast<int>(s.width);
  p.chunk = static_cast<int>(std::min<int64_t>(s.chunk, 1 << 30));
  p.parts = l.parts(s);
  p.passes_per_part = s.num_directions / p.parts;
  while (4 << p.word_shift < l.horizontal_lines * kBytes) ++p.word_shift;
  const int64_t last = s.num_directions - 1;
  p.x_end = end_of(call.x, s, 0);
  p.a_end = end_of(call.a, s, last * call.a.d + 2 * call.a.k);
  p.lam_end = end_of(call.lam, s, last * call.lam.d);
  p.u_end = end_of(call.u, s, last * call.u.d);
  p.y_end = end_of(call.y, s, 0);
  p.vertical_lines = l.vertical_lines;
  p.horizontal_lines = l.horizontal_lines;
  p.buffers = l.buffers;
  p.buffer_bytes = static_cast<int>(l.buffer_bytes);
  p.piece = l.piece;
  p.same_skew = l.piece == 16 && same_skew(call);
  p.pieces = l.pieces;
  p.column_bytes = l.column_bytes;
  p.y_pitch = l.y_pitch;
  p.borders = static_cast<int>(l.borders);
  p.y_at = static_cast<int>(l.y);
  const auto slot = [&](const auto& view, int i) {
    return view.data == nullptr ? nullptr : static_cast<char*>(view.data) + i * view.d * kBytes;
  };
  for (int i = 0; i < s.num_directions; ++i) {
    Pass& pass = p.passes[i];
    const Direction d = s.directions[i];
    for (int k = 0; k < 3; ++k) pass.operands[k] = slot(call.a, i) + k * call.a.k * kBytes;
    pass.operands[kLam] = slot(call.lam, i);
    pass.operands[kU] = slot(call.u, i);
    pass.operands[kX] = static_cast<const char*>(call.x.data);
    pass.y = scratch ? static_cast<char*>(workspace) + i * part
                     : call.sum ? static_cast<char*>(call.y.data) : slot(call.y, i);
    pass.state = slot(call.state, i);
    pass.vertical = is_vertical(d);
    pass.reversed = is_reversed(d);
    pass.accumulate = call.sum && i % p.passes_per_part > 0;
  }
  const cudaError_t error = launch<T>(p, l, s, stream);
  if (error != cudaSuccess || !scratch) return error;
  const int64_t plane = s.height * s.width, count = s.batch * s.channels * plane;
  const bool dense = (s.height == 1 || call.y.h == s.width) && (s.channels == 1 || call.y.c == plane) &&
                     (s.batch == 1 || call.y.b == s.channels * plane) &&
                     reinterpret_cast<uintptr_t>(call.y.data) % 16 == 0 && count * kBytes % 16 == 0;
  if (dense) return sum_parts<T>(workspace, call.y.data, s.num_directions, part, stream);
  sum_planes_kernel<T><<<static_cast<unsigned>((count + 255) / 256), 256, 0, stream>>>(
      static_cast<const char*>(workspace), part, s.num_directions, static_cast<char*>(call.y.data),
      plane_strides(call.y, kBytes), p.channels, p.height, p.width, count);
  return cudaGetLastError();
}

}  // namespace

bool planar_forward_applies(const LineScanForward& call) {
  const LineScanShape& s = call.shape;
  if (s.dtype == DType::kFloat64) return false;
  if (s.height > 1 << 20 || s.width > 1 << 20 || s.batch * s.channels * s.num_directions >= int64_t{1} << 31) {
    return false;
  }
  if (s.height * s.width > 1 << 28) return false;
  return planes(call.x, s, true) && planes(call.a, s, true) && planes(call.lam, s, true) && planes(call.u, s, true) &&
         planes(call.y, s, false) && planes(call.state, s, false) && layout_of(call).valid;
}

size_t planar_forward_workspace(const LineScanForward& call) {
  return uses_scratch(call, layout_of(call)) ? part_bytes(call.shape) * call.shape.num_directions : 0;
}

cudaError_t planar_forward(const LineScanForward& call, void* workspace, cudaStream_t stream) {
  switch (call.shape.dtype) {
    case DType::kFloat16:
      return run<__half>(call, workspace, stream);
    case DType::kBFloat16:
      return run<__nv_bfloat16>(call, workspace, stream);
    case DType::kFloat32:
      return run<float>(call, workspace, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace cgspn::cuda
