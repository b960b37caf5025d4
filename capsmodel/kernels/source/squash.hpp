// Squash, v = s |s| / (1 + |s|^2), and its gradient: as capsmodel.functional.squash, lane by lane.

#pragma once

#include <limits>

#include "lanes.hpp"

// Its square, summed over 1,000 dimensions, still fits; a longer vector has length 1 anyway.
constexpr float LARGEST_COMPONENT = 1e17f;

// What a component of a long vector counts as; infinite is NaN, so that it is noticed.
inline Lanes bounded(Lanes s) {
  const Lanes limit = splat(LARGEST_COMPONENT);
  const Lanes within = where(s > limit, limit, where(s < -limit, -limit, s));
  return where(s - s == zeros(), within, splat(std::numeric_limits<float>::quiet_NaN()));
}

// By what the bounded components are multiplied, from their squared length.
inline Lanes squash_factor(Lanes squared) { return square_root(squared) / (splat(1.0f) + squared); }

// The gradient at s from the gradient at squash(s); 0 where s is 0.
class SquashGradient {
 public:
  // `squared` length of the bounded s, and its `product` with the gradient at squash(s).
  SquashGradient(Lanes squared, Lanes product) {
    const Lanes length = square_root(squared), one_more = splat(1.0f) + squared;
    factor_ = length / one_more;
    // Divided in an order in which nothing of a very long vector overflows or vanishes.
    const Lanes radial = product / length * ((splat(1.0f) - squared) / one_more) / one_more;
    along_ = where(length == zeros(), zeros(), radial);
  }

  // For one component of s and of the gradient. Beyond the bound squash does not change.
  Lanes at(Lanes component, Lanes gradient) const {
    const Lanes limit = splat(LARGEST_COMPONENT);
    const Lanes value = multiply_add(factor_, gradient, bounded(component) * along_);
    return where((component > limit) | (component < -limit), value - value, value);
  }

 private:
  Lanes factor_, along_;
};
