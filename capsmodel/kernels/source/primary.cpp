// Primary capsules from the maps of their convolution: squash, and the order of the capsules.
//
// Shape letters: B batch, T types, P dimensions of a capsule, N positions of the grid. Samples lie
// next to each other in maps [N][T][P][B] and in capsules [T][N][P][B], and lanes hold samples.

#include <algorithm>
#include <cstdint>

#include "lanes.hpp"
#include "squash.hpp"

namespace {

struct PrimaryShape {
  std::int64_t batch, types, dim, positions;

  // Where the first sample of the first dimension of capsule `task` lies.
  std::int64_t in_maps(std::int64_t task) const {
    const std::int64_t type = task / positions, position = task % positions;
    return (position * types + type) * dim * batch;
  }
  std::int64_t in_capsules(std::int64_t task) const { return task * dim * batch; }
};

// Calls `work(begin, end)` for all capsules of a type and position, on several threads, in blocks
// of samples.
template <class Work>
void for_each_capsule(const PrimaryShape& shape, int threads, Work work) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t task = 0; task < shape.types * shape.positions; task++) {
    for (std::int64_t begin = 0; begin < shape.batch; begin += LANES) {
      work(task, begin, static_cast<int>(std::min<std::int64_t>(LANES, shape.batch - begin)));
    }
  }
}

}  // namespace

extern "C" void primary_forward(const float* maps, float* capsules, std::int64_t batch,
                                std::int64_t types, std::int64_t dim, std::int64_t positions,
                                int threads) {
  const PrimaryShape shape{batch, types, dim, positions};
  for_each_capsule(shape, threads, [=](std::int64_t task, std::int64_t begin, int count) {
    const float* s = maps + shape.in_maps(task) + begin;
    float* capsule = capsules + shape.in_capsules(task) + begin;
    Lanes squared = zeros();
    for (std::int64_t d = 0; d < dim; d++) {
      const Lanes component = bounded(load_some(s + d * batch, count));
      squared = multiply_add(component, component, squared);
    }
    const Lanes factor = squash_factor(squared);
    for (std::int64_t d = 0; d < dim; d++) {
      store_some(capsule + d * batch, bounded(load_some(s + d * batch, count)) * factor, count);
    }
  });
}

extern "C" void primary_backward(const float* maps, const float* gradient, float* result,
                                 std::int64_t batch, std::int64_t types, std::int64_t dim,
                                 std::int64_t positions, int threads) {
  const PrimaryShape shape{batch, types, dim, positions};
  for_each_capsule(shape, threads, [=](std::int64_t task, std::int64_t begin, int count) {
    const float* s = maps + shape.in_maps(task) + begin;
    const float* given = gradient + shape.in_capsules(task) + begin;
    float* to = result + shape.in_maps(task) + begin;
    Lanes squared = zeros(), product = zeros();
    for (std::int64_t d = 0; d < dim; d++) {
      const Lanes component = bounded(load_some(s + d * batch, count));
      squared = multiply_add(component, component, squared);
      product = multiply_add(component, load_some(given + d * batch, count), product);
    }
    const SquashGradient slopes(squared, product);
    for (std::int64_t d = 0; d < dim; d++) {
      const Lanes component = load_some(s + d * batch, count);
      store_some(to + d * batch, slopes.at(component, load_some(given + d * batch, count)), count);
    }
  });
}
