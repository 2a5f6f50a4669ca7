#include "reduce.h"

#include <algorithm>

namespace sds {

namespace {

double canonical(double x) { return x == x ? x : bits_as<double>(F64::nan); }

}  // namespace

void Reduction::merge_unordered(const Reduction& other) {
    a_max = std::max(a_max, other.a_max);
    b_max = std::max(b_max, other.b_max);
    difference_max = std::max(difference_max, other.difference_max);
    a_nonfinite += other.a_nonfinite;
    b_nonfinite += other.b_nonfinite;
    equal += other.equal;
}

void Reductions::add_job(uint64_t count) {
    chunks_.resize(chunks_.size() + (count + kReduceChunk - 1) / kReduceChunk);
    first_chunk_.push_back(chunks_.size());
    unordered_.emplace_back();
}

void Reductions::chunk_done(size_t job, uint64_t chunk, const Reduction& found) {
    chunks_[first_chunk_[job] + chunk] = found.sums;
    unordered_[job].merge_unordered(found);
}

Reduction Reductions::total(size_t job) const {
    Reduction total = unordered_[job];
    for (size_t i = first_chunk_[job]; i < first_chunk_[job + 1]; ++i) total.sums.add(chunks_[i]);
    for (double* sum : {&total.sums.dot, &total.sums.aa, &total.sums.bb, &total.sums.dd}) *sum = canonical(*sum);
    return total;
}

}  // namespace sds
