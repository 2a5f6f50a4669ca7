// All loops of a CPU target, and their table. Included by target_*.cc inside that target's namespace and region, after
// a lanes/*.h.
//
// What lies outside a region may run on any machine of the family, and a linker keeps one of the copies of an inline
// function, whichever file it comes from. So a target_*.cc includes every header that is not the target's own before
// its region, this file includes none but the loops, and nothing in a region runs before the target has been chosen.

constexpr size_t kStrip = 256;  // elements that a loop takes at a time, in the L1 cache

inline size_t lowest_bit(uint64_t bits) {  // of those that are set
#if defined(__GNUC__)
    return static_cast<size_t>(__builtin_ctzll(bits));
#else
    size_t at = 0;
    for (; (bits & 1) == 0; bits >>= 1) ++at;
    return at;
#endif
}

#include "functions.h"
#include "packs.inl.h"
#include "functions.inl.h"
#include "normal.inl.h"
#include "generated.inl.h"
#include "fused.inl.h"
#include "elementwise.inl.h"
#include "reduce.inl.h"
#include "select.inl.h"
#include "products.inl.h"
#include "lines.inl.h"
#include "dots.inl.h"
#include "keys.inl.h"
#include "stages.inl.h"
#include "encoding.inl.h"
#include "low_rank.inl.h"

constexpr Loops loops = {evaluate, fill, reduce, generate_into, accumulate, decode, product};
