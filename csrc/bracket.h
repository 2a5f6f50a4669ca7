// Bounds between which the k-th largest of a tensor's magnitudes lies, as a sample of them says; of a small tensor they
// are 0 and Inf. Then one pass finds it: elements above the bounds are counted, and those between them remembered.
// Should it lie elsewhere after all, or should they be too many, the histograms of select.h find it. Always exactly.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "dtypes.h"

namespace sds {

class Bracket {
 public:
    // Magnitudes are float32: their bits have the order of their values. A NaN is above all.
    const float low, high;
    uint64_t above = 0;
    // Of the elements between the bounds, in their order, the bits and the indexes; there is room for kAdded more.
    size_t within = 0;
    const std::unique_ptr<uint32_t[]> bits, indexes;
    static constexpr size_t kAdded = 512;
    size_t room() const { return room_; }
    bool is_full() const { return within > room_; }

    // By the upper 16 bits of the keys (select.h) of `n` of `count` magnitudes; null where more than `room` of them all
    // lie near the k-th, or NaNs do.
    static std::unique_ptr<Bracket> of(const std::vector<uint32_t>& counted, uint64_t n, uint64_t k, uint64_t count,
                                       size_t room) {
        if (n < kLeastSample || counted[kNothing] > 0) return nullptr;
        const double sampled = static_cast<double>(n), all = static_cast<double>(count),
                     part = static_cast<double>(k) / all;
        // Six deviations, were they independent: those of a row are not, so few of one are taken.
        const double share = part * sampled, margin = 6 * std::sqrt(part * (1 - part) * sampled) + 1;
        uint32_t bucket = kInfinity;
        double larger = 0, within = 0;  // of the sample: above the bounds, between them
        while (larger + counted[bucket] < share - margin) larger += counted[bucket--];
        const uint32_t high = bucket;
        while (bucket > kZero && larger + within + counted[bucket] < share + margin) within += counted[bucket--];
        within += counted[bucket];
        const double most = (within + 8 * std::sqrt(within)) / sampled * all + 1024;  // of all, between them
        if (most > static_cast<double>(room)) return nullptr;
        const auto end_of = [](uint32_t upper, uint32_t lower) {
            return bits_as<float>((upper << 16 | lower) & 0x7fffffff);
        };
        return std::unique_ptr<Bracket>(
            new Bracket(end_of(bucket, 0), end_of(high, high == kInfinity ? 0 : 0xffff), static_cast<size_t>(most)));
    }

    // Bounds of all `n` magnitudes but NaNs: of a small tensor, whose sample would take longer.
    static std::unique_ptr<Bracket> of_all(uint64_t n, size_t room) {
        if (n == 0 || n > room) return nullptr;
        return std::unique_ptr<Bracket>(new Bracket(0, std::numeric_limits<float>::infinity(), n));
    }

    bool holds(uint64_t k) const { return !is_full() && above < k && k <= above + within; }

    // The bits of the k-th largest, if it `holds` that.
    uint32_t kth(uint64_t k) const {
        uint64_t left = k - above;
        uint32_t base = bits_as<uint32_t>(low), range = bits_as<uint32_t>(high) - base;
        for (;;) {  // it lies from `base` to `base` + `range`
            int shift = 0;
            while (range >> shift >= kBuckets) ++shift;
            std::vector<uint32_t> counted(kBuckets);
            for (size_t i = 0; i < within; ++i) {
                const uint32_t at = bits[i] - base;
                if (at <= range) ++counted[at >> shift];
            }
            uint32_t bucket = kBuckets - 1;
            while (counted[bucket] < left) left -= counted[bucket--];
            base += bucket << shift;
            if (shift == 0) return base;
            range = (1u << shift) - 1;
        }
    }

    // Of the elements equal to the k-th, which has these bits, the index of the last that belongs to the k largest;
    // Inf where all do.
    double last_of(uint32_t of, uint64_t k) const {
        uint64_t larger = above, equal = 0;
        for (size_t i = 0; i < within; ++i) {
            larger += bits[i] > of;
            equal += bits[i] == of;
        }
        uint64_t wanted = k - larger;
        if (wanted == equal) return std::numeric_limits<double>::infinity();
        size_t i = 0;
        while (bits[i] != of || --wanted > 0) ++i;
        return indexes[i];
    }

    // Elements of a tensor that is sampled, at least; those of a sample that lie side by side, and of how many elements
    // they are taken.
    static constexpr uint64_t kLeast = 1 << 14, kTogether = 16;
    static uint64_t step(uint64_t count) {
        const uint64_t most = std::max<uint64_t>(8192, count / 2048);
        const uint64_t least = std::min<uint64_t>(1024, count / 256 / kTogether * kTogether);
        return std::max(least, (count / most + kTogether - 1) / kTogether * kTogether);
    }
    // Where they begin in the `index`-th step: at other places in each, so that they are not of the same columns.
    static uint64_t place(uint64_t index, uint64_t step) {
        const uint64_t part = static_cast<uint32_t>(index) * 2654435769u;  // of 2^32, by the golden ratio
        return index * step + (part * (step / kTogether) >> 32) * kTogether;
    }

 private:
    static constexpr uint32_t kZero = 0x8000, kInfinity = 0xff80, kNothing = 0xffff;  // upper bits of keys
    static constexpr uint32_t kBuckets = 4096;
    static constexpr uint64_t kLeastSample = 2048;

    Bracket(float low, float high, size_t room)
        : low(low), high(high), bits(new uint32_t[room + kAdded]), indexes(new uint32_t[room + kAdded]), room_(room) {}

    const size_t room_;
};

}  // namespace sds
