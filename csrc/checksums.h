// The CRC-32 of byte ranges that a run reads (zip files record theirs) and of ranges that it writes (to be recorded
// there), computed on the way, from the pieces that the workers handle.
#pragma once

#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

#include "crc32.h"
#include "jobs.h"

namespace sds {

class Checksums {
 public:
    // Writes into `jobs` which check each operand and which sum each output is a part of. Throws `invalid` unless the
    // parts of a check fill it, in order, and every job lies within its summed range (offset, bytes) or outside all.
    Checksums(std::vector<Job>& jobs, std::vector<Check> checks,
              const std::vector<std::pair<uint64_t, uint64_t>>& sums);

    // A piece of a source's range, up to byte `end` of the source. True when it was the last and the sum is not `crc`.
    bool read(int32_t check, uint32_t crc, uint64_t bytes, uint64_t end);
    // A piece of the output, up to its byte `end`.
    void written(int32_t sum, uint32_t crc, uint64_t bytes, uint64_t end);

    const Check& check(int32_t index) const { return checks_[static_cast<size_t>(index)]; }
    std::vector<size_t> damaged() const;  // the checks that are complete and differ
    std::vector<uint32_t> sums() const;   // of the output's ranges, once all is written

 private:
    std::vector<Check> checks_;
    std::deque<RangeSum> read_, written_;  // deques: atomics do not move
};

}  // namespace sds
