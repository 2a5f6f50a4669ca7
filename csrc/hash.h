// SHA-256 (FIPS 180-4) of several streams at once.
//
// One stream cannot keep a core busy: each round needs the result of the one before. The instructions for SHA-256 take
// several cycles and are pipelined, so rounds of a second stream fit into the gaps of the first. Callers with
// several streams therefore pass them together.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace sds {

// One implementation. All give the same digests.
struct HashTarget {
    static constexpr size_t kMost = 3;  // streams that are interleaved; a fourth gains nothing

    const char* name;
    bool (*runs_here)();
    // Advances states[i] by `blocks` blocks of 64 bytes at data[i], for i < streams ≤ kMost.
    void (*compress)(uint32_t* const* states, const uint8_t* const* data, size_t streams, size_t blocks);
};

const std::vector<HashTarget>& hash_targets();                 // those compiled in, the best first
const HashTarget& hash_target_named(const std::string& name);  // empty: the best that runs here; throws invalid

class Sha256 {
 public:
    using Digest = std::array<uint8_t, 32>;

    struct Piece {  // what comes next in a stream
        Sha256* stream;
        const uint8_t* data;
        size_t bytes;
    };
    // Any number of pieces, of different streams. They are consumed: reordered, and empty afterwards.
    // (Nothing is allocated: a fault in mapped data may jump out of it.)
    static void update(const HashTarget& target, Piece* pieces, size_t count);

    void update(const HashTarget& target, const uint8_t* data, size_t bytes) {
        Piece piece{this, data, bytes};
        update(target, &piece, 1);
    }
    Digest digest(const HashTarget& target) const;  // of everything so far

 private:
    std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    uint64_t bytes_ = 0;
    std::array<uint8_t, 64> rest_ = {};  // the first bytes_ % 64 are an unfinished block
};

std::string hex(const Sha256::Digest& digest);

}  // namespace sds
