// Reductions over two tensors of n elements in one pass: how alike they are.
//
// Numeric rule. Elements are widened to float64 (exactly; 64-bit integers round to nearest even). An element that is
// not finite in a or in b counts as 0 in both: it is in no sum and no maximum. Then, every operation rounded by itself,
//
//   dot = Σ a·b   aa = Σ a·a   bb = Σ b·b   dd = Σ (a−b)·(a−b)
//
// are added in this order, which is a promise and the same on every target, device, thread count and tile size:
//
//   block   1024 elements, the last one of a tensor shorter: eight lanes, which start at +0; element i of the block is
//           added to lane i mod 8, in rising order of i; then lane j adds lane j + 4, then j + 2, then j + 1:
//           ((l0 + l4) + (l2 + l6)) + ((l1 + l5) + (l3 + l7))
//   chunk   256 blocks, the last one shorter: starts at +0, its blocks are added in rising order
//   tensor  starts at +0, its chunks are added in rising order
//
// A missing element may be added as +0: no sum is ever −0. Overflow (of F64 inputs only) follows IEEE; a sum that is
// NaN is reported as 7FF8000000000000. A GPU gives eight threads (or one thread and eight accumulators) to a block.
//
// Maxima of |a|, |b| and |a−b| and the counts do not depend on an order: non-finite elements of a and of b, and equal
// elements: of one dtype those whose stored bits are equal, of two those whose values are (so no NaN, and −0 = +0).
//
// backends/reference.py is the readable version; the tests hold every target to its bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "dtypes.h"

namespace sds {

constexpr size_t kReduceLanes = 8;
constexpr size_t kReduceBlock = 1024;
constexpr size_t kReduceChunk = 256 * kReduceBlock;  // what is computed in one go, by one worker

struct Sums {
    double dot = 0, aa = 0, bb = 0, dd = 0;
    void add(const Sums& next) {
        dot += next.dot;
        aa += next.aa;
        bb += next.bb;
        dd += next.dd;
    }
};

struct Reduction {
    Sums sums;
    double a_max = 0, b_max = 0, difference_max = 0;
    uint64_t a_nonfinite = 0, b_nonfinite = 0, equal = 0;

    void merge_unordered(const Reduction& other);  // all but the sums
};

// The reductions of a run's jobs. Chunks may come in any order; their sums wait in a slot each (32 bytes for 2^18
// elements), so that they can be added in theirs.
class Reductions {
 public:
    void add_job(uint64_t count);  // elements; 0 for a job of another kind
    void chunk_done(size_t job, uint64_t chunk, const Reduction& found);
    Reduction total(size_t job) const;

 private:
    std::vector<size_t> first_chunk_{0};
    std::vector<Sums> chunks_;
    std::vector<Reduction> unordered_;
};

}  // namespace sds
