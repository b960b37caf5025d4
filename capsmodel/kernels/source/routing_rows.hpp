// Capsules, in either order in memory, as rows of samples; and their gradients the way back.
//
// Shape letters: see routing.cpp.

#pragma once

#include <algorithm>

#include "lanes.hpp"
#include "routing_shape.hpp"

namespace routing {

inline Size samples_of_group(const Shape& shape, Size group) {
  return std::min<Size>(LANES, shape.batch - group * LANES);
}

// LANES columns of `count` rows, `samples_apart` floats from each other, from as many numbers of
// each of `valid` samples, `numbers_apart` floats from each other; no sample is 0.
inline void samples_to_rows(const float* samples, Size numbers_apart, Size valid, Size count,
                            Size samples_apart, float* rows) {
  Size row = 0;
  for (; row + LANES <= count; row += LANES) {
    Lanes square[LANES] = {};
    for (Size lane = 0; lane < valid; lane++) {
      square[lane] = load(samples + lane * numbers_apart + row);
    }
    transpose(square);
#pragma GCC unroll 16
    for (int k = 0; k < LANES; k++) store(rows + (row + k) * samples_apart, square[k]);
  }
  for (; row < count; row++) {
    Lanes value = zeros();
    for (Size lane = 0; lane < valid; lane++) value[lane] = samples[lane * numbers_apart + row];
    store(rows + row * samples_apart, value);
  }
}

// The way back.
inline void rows_to_samples(const float* rows, Size samples_apart, Size valid, Size count,
                            Size numbers_apart, float* samples) {
  Size row = 0;
  for (; row + LANES <= count; row += LANES) {
    Lanes square[LANES];
#pragma GCC unroll 16
    for (int k = 0; k < LANES; k++) square[k] = load(rows + (row + k) * samples_apart);
    transpose(square);
    for (Size lane = 0; lane < valid; lane++) {
      store(samples + lane * numbers_apart + row, square[lane]);
    }
  }
  for (; row < count; row++) {
    for (Size lane = 0; lane < valid; lane++) {
      samples[lane * numbers_apart + row] = rows[row * samples_apart + lane];
    }
  }
}

// Rows of samples from capsules that are none.
inline void arrange_capsules(const float* capsules, const Shape& shape, int threads, float* rows) {
  constexpr Size ROWS_OF_A_TASK = 8 * LANES;
  const Size all_rows = shape.inputs * shape.capsule_dim;
  const Size blocks = (all_rows + ROWS_OF_A_TASK - 1) / ROWS_OF_A_TASK, groups = shape.groups();
#pragma omp parallel for num_threads(threads)
  for (Size task = 0; task < blocks * groups; task++) {
    const Size group = task % groups, begin = task / groups * ROWS_OF_A_TASK;
    const Size count = std::min(ROWS_OF_A_TASK, all_rows - begin);
    const Size valid = samples_of_group(shape, group);
    float* to = rows + begin * shape.samples() + group * LANES;
    if (!shape.samples_last) {
      const float* from = capsules + group * LANES * all_rows + begin;
      samples_to_rows(from, all_rows, valid, count, shape.samples(), to);
      continue;
    }
    const float* from = capsules + begin * shape.batch + group * LANES;
    for (Size row = 0; row < count; row++) {
      const Lanes value = load_some(from + row * shape.batch, static_cast<int>(valid));
      store(to + row * shape.samples(), value);
    }
  }
}

// Gradients of `count` capsules from `input` on, as rows, to where they belong among those of all.
inline void give_capsule_gradients(const float* rows, const Shape& shape, Size input, Size count,
                                   float* gradients) {
  const Size all_rows = shape.inputs * shape.capsule_dim;
  const Size begin = input * shape.capsule_dim, some_rows = count * shape.capsule_dim;
  for (Size group = 0; group < shape.groups(); group++, rows += LANES) {
    const Size valid = samples_of_group(shape, group);
    if (!shape.samples_last) {
      float* to = gradients + group * LANES * all_rows + begin;
      rows_to_samples(rows, shape.samples(), valid, some_rows, all_rows, to);
      continue;
    }
    float* to = gradients + begin * shape.batch + group * LANES;
    for (Size row = 0; row < some_rows; row++) {
      const Lanes value = load(rows + row * shape.samples());
      store_some(to + row * shape.batch, value, static_cast<int>(valid));
    }
  }
}

// Capsules as rows of samples; those that come so are not copied.
class CapsuleRows {
 public:
  CapsuleRows(const float* capsules, const Shape& shape, int threads)
      : own_(shape.are_rows() ? 0 : shape.capsule_array()),
        rows_(shape.are_rows() ? capsules : own_.get()) {
    if (!shape.are_rows()) arrange_capsules(capsules, shape, threads, own_.get());
  }
  const float* get() const { return rows_; }

 private:
  Floats own_;
  const float* rows_;
};

}  // namespace routing
