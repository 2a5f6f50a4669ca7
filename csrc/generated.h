// Operands that no file holds: a number of each row or column, an element's place, random numbers. An element's value
// depends on nothing but its index in the tensor, so tiles and threads change nothing.
//
// Random numbers are Philox-4x32 (Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011)
// with seven rounds, the fewest that pass their tests (BigCrush), of a counter (block, draw, part) and a key made of a
// seed and a tensor's name. A block has four words, the lower bits first; element i takes 24 bits n: the upper 8 are
// byte i mod 16 of block i/16 of part 0, the lower 16 are half i mod 8 of block i/8 of part 1.
//   uniform  n/2^24, in [0, 1)
//   normal   the inverse of the normal distribution function at (n + ½)/2^24, by a polynomial (normal.inl.h)
// A comparison with a number needs the lower bits of few elements only. The same in NumPy:
// python/sdsurgery/definitions/draws.py.
#pragma once

#include <cstdint>
#include <vector>

namespace sds {

struct Generated {
    enum Kind : int { numbers, index, within, uniform, normal, elements } kind;
    uint64_t inner = 1, length = 1;   // of numbers and index: element i has place i / inner mod length
    const double* values = nullptr;   // of numbers, one for each place
    double last = 0;                  // of within: 1 up to this element, 0 behind it
    const uint8_t* stored = nullptr;  // of elements: float32, or float64 if `wide`
    bool wide = false;
    uint32_t key[2] = {0, 0}, draw = 0;  // of random numbers
    const float* narrow = nullptr;       // `values`, rounded; null where only they are there
};

}  // namespace sds
