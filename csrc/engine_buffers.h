// What a worker of the engine holds: buffers of a tile's output and of its operands, whatever the size of the files.
#pragma once

#include <cstring>
#include <map>
#include <vector>

#include "engine.h"
#include "evaluation.h"

namespace sds {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kFaultAround = 64 << 10;  // a fault of a mapping maps that much around it, however little is read

class PageBuffer {
 public:
    explicit PageBuffer(size_t bytes) : raw_(bytes + kPage) {
        const uintptr_t at = reinterpret_cast<uintptr_t>(raw_.data());
        data_ = raw_.data() + (kPage - at % kPage) % kPage;
    }
    uint8_t* data() { return data_; }

 private:
    std::vector<uint8_t> raw_;
    uint8_t* data_;
};

struct Run::Buffers {
    Buffers(uint64_t tile_bytes, uint64_t chunk_bytes, size_t operands, size_t outputs) {
        for (size_t k = 0; k < outputs; ++k) out.emplace_back(tile_bytes);
        for (size_t k = 0; k < operands; ++k) in.emplace_back(chunk_bytes + 2 * kPage);
    }
    // Zeros between the data, which a file would otherwise take from the tile before.
    void clear(uint64_t at, uint64_t bytes) {
        for (PageBuffer& buffer : out) std::memset(buffer.data() + at, 0, bytes);
    }
    std::vector<PageBuffer> out, in;
    std::map<size_t, Decoder> decoders;  // of the operands that were encoded in some job, by their number
    std::map<size_t, Multiplier> multipliers;
    std::vector<Version> versions;
    std::vector<Stages> stages;  // of the job in work, for each output
    Again again = Again::no;     // of what it reads
    Scratch scratch;
    Reduction reduction;  // of the chunk in work
};

}  // namespace sds
