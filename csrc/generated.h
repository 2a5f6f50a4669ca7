// Operands that no file holds: a number of each row or column, an element's place, random numbers. An element's value
// depends on nothing but its index in the tensor, so tiles and threads change nothing.
//
// Random numbers are Philox-4x32-10 (Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011)
// of a counter (block, draw) and a key made of a seed and a tensor's name. Of the four words of a block,
//   uniform  element i takes word i mod 4 of block i/4: its upper 24 bits, in [0, 1)
//   normal   elements 2j and 2j + 1 take words 2·(j mod 2) and the next of block j/2: √(−2·ln u)·cos 2πv and
//            √(−2·ln u)·sin 2πv (Box & Muller, 1958) with u = (word + 1)/2^32 and v = word/2^32, in float64 by
//            functions.h, rounded once
// The same in NumPy: python/sdsurgery/definitions/draws.py.
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
