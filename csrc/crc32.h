// CRC-32 as zip files have it (the IEEE polynomial, reflected), fast enough to run beside a copy: 0.05 to 0.1 ns a
// byte with carry-less multiplication. And its sum over a byte range whose pieces become known in any order.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace sds {

uint32_t crc32(uint32_t crc, const uint8_t* data, size_t bytes);  // zlib's: begin with 0, go on with the last result
uint32_t crc32_shift(uint32_t crc, uint64_t bytes);               // crc(A ‖ B) = shift(crc(A), bytes of B) ^ crc(B)

class RangeSum {
 public:
    RangeSum(uint64_t begin, uint64_t end) : end_(end), left_(end - begin) {}

    // The CRC-32 of one piece of the range, which ends at `piece_end`. True when no piece is left. From any thread.
    bool add(uint32_t crc, uint64_t bytes, uint64_t piece_end) {
        value_ ^= crc32_shift(crc, end_ - piece_end);
        return (left_ -= bytes) == 0;
    }
    bool complete() const { return left_ == 0; }
    uint32_t value() const { return value_; }

 private:
    uint64_t end_;
    std::atomic<uint64_t> left_;
    std::atomic<uint32_t> value_{0};
};

}  // namespace sds
