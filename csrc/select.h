// The k-th largest of a tensor's elements, by radix: a histogram of the upper 16 bits of their keys, then of the next
// 16 within the one bucket that the k-th lies in, until all bits are known. Two passes of 256 KB for float32, four for
// float64, and nothing is sorted.
//
// A key is the element's pattern in the order of the values: −0 counts as +0, a NaN as larger than everything. Where
// `ties` are asked for, the elements above the k-th are counted too, and of those equal to it the first ones, in order
// of index, make up the k; the last of these is found from the candidates of the last pass if they are few, else by a
// pass of its own. Of tensors that lie in memory bounds of the k-th are looked for first, which mostly saves all but
// one pass (bracket.h).
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "bracket.h"
#include "dtypes.h"
#include "error.h"

namespace sds {

SDS_HD inline uint32_t key_of(float x) {
    const uint32_t bits = bits_as<uint32_t>(x + 0.0f);
    const uint32_t key = bits ^ (bits & 0x80000000 ? 0xffffffff : 0x80000000);
    return x != x ? 0xffffffff : key;
}
SDS_HD inline uint64_t key_of(double x) {
    constexpr uint64_t sign = uint64_t{1} << 63;
    const uint64_t bits = bits_as<uint64_t>(x + 0.0);
    const uint64_t key = bits ^ (bits & sign ? ~uint64_t{0} : sign);
    return x != x ? ~uint64_t{0} : key;
}

class Selection {
 public:
    // `k` counts from 1, and is rounded down; `bits` of a key: 32 or 64.
    Selection(uint64_t count, double k, int bits, bool ties) : ties_(ties), bits_(bits), count_(count) {
        const double infinity = std::numeric_limits<double>::infinity();
        if (count > UINT32_MAX) throw Error(Code::invalid, "a selection takes fewer than 2^32 elements");
        if (!(k >= 1) || count == 0) {
            finish(infinity, -1);
        } else if (k > static_cast<double>(count)) {
            finish(-infinity, static_cast<double>(count));
        } else {
            left_ = static_cast<uint64_t>(k);
            shift = bits - 16;
        }
    }

    // Before the first pass. Of many selections only some are started at a time, as they take memory until they are
    // done. At most so many candidates are remembered. A twin that selects from the same elements and starts at
    // the same time counts them for both in the first pass; it ends that pass later.
    void start(size_t most_candidates, const Selection* twin) {
        most_candidates_ = most_candidates;
        twin_ = twin;
        started_ = true;
    }
    bool in_work() const { return started_ && !done_; }
    bool counted_by_twin() const { return twin_; }

    // ---- before the first pass, if the tensor lies in memory
    bool wants_sample() const { return in_work() && !asked_ && bits_ == 32; }
    bool is_small() const { return count_ < Bracket::kLeast; }  // then it is enough that elements are magnitudes
    uint64_t sample_step() const { return Bracket::step(count_); }
    uint64_t sampled = 0;              // magnitudes, whose keys' upper bits are counted; 0 where elements are not such
    std::unique_ptr<Bracket> bracket;  // then the passes are only one, if it holds the k-th
    // At most so many elements between the bounds.
    void end_sample(size_t room) {
        const Selection& counted = *counts_for_both();
        bracket = is_small() ? Bracket::of_all(counted.sampled, room)
                             : Bracket::of(counted.histogram, counted.sampled, left_, count_, room);
        asked_ = true;
        position = 0;
    }
    const Selection* counts_for_both() const { return twin_ ? twin_ : this; }
    void count_alone() { twin_ = nullptr; }
    void drop_bracket() {
        bracket = nullptr;
        histogram.clear();
    }

    // ---- for the loop that adds elements (select.inl.h)
    int shift = 0;          // of the 16 bits that this pass counts; −16: it looks for the index
    uint64_t prefix = 0;    // the bits above them, of the k-th
    uint64_t position = 0;  // elements so far
    uint64_t wanted = 0;    // equal elements to go, in the pass that looks for the index
    std::vector<uint32_t> histogram;
    uint32_t* counts() {  // of it
        if (histogram.empty()) histogram.assign(1 << 16, 0);
        return histogram.data();
    }
    std::vector<uint64_t> candidates;  // index·2^16 and the last 16 bits
    bool collecting() const { return ties_ && shift == 0 && !overflowed_; }
    void collect(uint64_t index, uint64_t low) {
        if (candidates.size() == most_candidates_) {
            overflowed_ = true;
            candidates.clear();
        }
        if (!overflowed_) candidates.push_back(index << 16 | low);
    }

    // ---- after each pass
    void end_pass() {
        position = 0;
        if (const auto found = std::move(bracket)) {
            if (!found->holds(left_)) return histogram.clear();  // so the first pass is still to be made
            const uint32_t bits = found->kth(left_);
            return finish(bits_as<float>(bits), ties_ ? found->last_of(bits, left_) : kNone);
        }
        if (shift < 0) return finish(threshold_, static_cast<double>(index_));
        const std::vector<uint32_t>& counted = twin_ ? twin_->histogram : histogram;
        twin_ = nullptr;
        uint32_t bucket = 0xffff;
        while (counted[bucket] < left_) left_ -= counted[bucket--];
        prefix = prefix << 16 | bucket;
        if (shift > 0) {
            shift -= 16;
            histogram.assign(1 << 16, 0);
            return;
        }
        threshold_ = value_of(prefix);
        if (!ties_ || left_ == histogram[bucket]) return finish(threshold_, kNone);
        wanted = left_;
        for (uint64_t candidate : candidates) {
            if ((candidate & 0xffff) == bucket && --wanted == 0)
                return finish(threshold_, static_cast<double>(candidate >> 16));
        }
        wanted = left_;
        shift = -16;
    }
    void found_index(uint64_t index) { index_ = index; }

    bool done() const { return done_; }
    double threshold() const { return threshold_; }  // the k-th largest; Inf for k < 1, −Inf for one past the last
    double last() const { return last_; }            // of its equals, the last index that belongs to the k largest

 private:
    void finish(double threshold, double last) {
        threshold_ = threshold;
        last_ = last;
        done_ = true;
        std::vector<uint32_t>().swap(histogram);  // an assignment of {} would keep the memory
        std::vector<uint64_t>().swap(candidates);
    }
    double value_of(uint64_t key) const {
        if (bits_ == 32) {
            const uint32_t code = static_cast<uint32_t>(key);
            if (code == 0xffffffff) return bits_as<double>(F64::nan);
            return bits_as<float>(code ^ (code & 0x80000000 ? 0x80000000 : 0xffffffff));
        }
        constexpr uint64_t sign = uint64_t{1} << 63;
        return key == ~uint64_t{0} ? bits_as<double>(F64::nan)
                                   : bits_as<double>(key ^ (key & sign ? sign : ~uint64_t{0}));
    }

    static constexpr double kNone = std::numeric_limits<double>::infinity();  // no last one: all its equals belong

    bool ties_, overflowed_ = false, started_ = false, done_ = false;
    int bits_;
    uint64_t count_;
    bool asked_ = false;  // for a sample
    const Selection* twin_ = nullptr;
    size_t most_candidates_ = 0;
    uint64_t left_ = 0;  // the k-th is the left_-th largest of those that share its prefix
    uint64_t index_ = 0;
    double threshold_ = 0, last_ = 0;
};

}  // namespace sds
