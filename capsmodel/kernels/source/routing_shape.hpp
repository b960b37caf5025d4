// Sizes of a routing, where things lie in its arrays, and how its work is divided.
//
// Shape letters and arrays: see routing.cpp.

#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>

#include "lanes.hpp"

namespace routing {

using Size = std::int64_t;

// Enough for 64 threads.
constexpr Size TASKS = 128;
constexpr Size SMALLEST_CHUNK = 8;
// Bytes that the tasks' sums may take where fewer tasks do.
constexpr Size MOST_PARTIAL_BYTES = Size(64) << 20;
// Multiplications below which starting a thread costs more than it gains.
constexpr Size WORK_OF_A_THREAD = 1 << 18;

struct Shape {
  Size batch, inputs, classes, capsule_dim, class_dim;
  Size passes;
  bool leaky;
  bool samples_last;  // Capsules and their gradients are [I][P][B] in memory, else [B][I][P].

  Size groups() const { return (batch + LANES - 1) / LANES; }
  Size rows() const { return classes * class_dim; }
  Size samples() const { return groups() * LANES; }
  // Whether capsules are rows of samples as they come.
  bool are_rows() const { return samples_last && batch == samples(); }
  Size row_array() const { return groups() * rows() * LANES; }
  Size factor_array() const { return inputs * groups() * classes * LANES; }
  Size capsule_array() const { return inputs * capsule_dim * samples(); }
  // The coupling coefficient of the first pass.
  float equal_share() const { return 1.0f / static_cast<float>(classes + leaky); }

  Size capsule_at(Size input, Size group) const {
    return input * capsule_dim * samples() + group * LANES;
  }
  Size weight_at(Size input, Size j) const {
    return (input * classes + j) * capsule_dim * class_dim;
  }
  Size rows_at(Size group, Size j) const { return (group * rows() + j * class_dim) * LANES; }
  Size factors_at(Size input, Size j, Size group) const {
    return ((input * classes + j) * groups() + group) * LANES;
  }
};

// How a pass over all input capsules is divided; depends on shapes alone.
struct Division {
  Size inputs, groups, chunk, chunks;

  explicit Division(const Shape& shape) : inputs(shape.inputs), groups(shape.groups()) {
    const Size bytes_of_a_chunk = shape.row_array() * static_cast<Size>(sizeof(float));
    Size wanted = (TASKS + groups - 1) / groups;
    wanted = std::min(wanted, MOST_PARTIAL_BYTES / bytes_of_a_chunk);
    wanted = std::max<Size>(1, std::min(wanted, inputs / SMALLEST_CHUNK));
    chunk = (inputs + wanted - 1) / wanted;
    chunks = (inputs + chunk - 1) / chunk;
  }

  Size tasks() const { return chunks * groups; }
  Size begin(Size number) const { return number * chunk; }
  Size end(Size number) const { return std::min(inputs, (number + 1) * chunk); }
};

// Aligned memory that says when there is none.
class Floats {
 public:
  Floats() = default;
  explicit Floats(Size count) {
    const std::size_t bytes = static_cast<std::size_t>(std::max<Size>(count, 1)) * sizeof(float);
    memory_.reset(static_cast<float*>(::operator new(bytes, ALIGNMENT, std::nothrow)));
    if (!memory_) throw std::bad_alloc();
  }
  float* get() const { return memory_.get(); }

 private:
  static constexpr std::align_val_t ALIGNMENT{64};
  struct Free {
    void operator()(float* memory) const { ::operator delete(memory, ALIGNMENT); }
  };
  std::unique_ptr<float, Free> memory_;
};

inline int useful_threads(const Shape& shape, int threads) {
  const Size work = shape.batch * shape.inputs * shape.rows() * shape.capsule_dim;
  return static_cast<int>(std::clamp<Size>(work / WORK_OF_A_THREAD, 1, std::max(threads, 1)));
}

// Calls `block(width, start)` for blocks of Widest, then of half as many and so on until `count` is
// covered; the width is a constant of its type.
template <int Widest, class Block>
inline void in_blocks(Size count, Block block, Size start = 0) {
  for (; start + Widest <= count; start += Widest) {
    block(std::integral_constant<int, Widest>{}, start);
  }
  if constexpr (Widest > 1) in_blocks<Widest / 2>(count, block, start);
}

}  // namespace routing
