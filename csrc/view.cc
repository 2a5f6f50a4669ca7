#include "view.h"

#include <algorithm>
#include <cstring>

#include "error.h"
#include "os.h"

namespace sds {

namespace {

constexpr uint64_t kMost = uint64_t{1} << 60;
constexpr uint64_t kWindow = 16 << 20;  // of a mapping: how much stays resident behind a walk

// `count` elements, `from_step` and `to_step` bytes apart.
template <class T>
void strided(const uint8_t* from, uint64_t from_step, uint8_t* to, uint64_t to_step, uint64_t count) {
    for (uint64_t i = 0; i < count; ++i) {
        T value;
        std::memcpy(&value, from, sizeof value);
        std::memcpy(to, &value, sizeof value);
        from += from_step;
        to += to_step;
    }
}

void copy_run(uint64_t item, const uint8_t* from, uint64_t from_step, uint8_t* to, uint64_t to_step, uint64_t count) {
    if (from_step == item && to_step == item) {
        std::memcpy(to, from, count * item);
    } else if (item == 1) {
        strided<uint8_t>(from, from_step, to, to_step, count);
    } else if (item == 2) {
        strided<uint16_t>(from, from_step, to, to_step, count);
    } else if (item == 4) {
        strided<uint32_t>(from, from_step, to, to_step, count);
    } else {
        strided<uint64_t>(from, from_step, to, to_step, count);
    }
}

// Gives pages of a mapping back once a walk has gone far enough past them.
class Trail {
 public:
    explicit Trail(bool on) : on_(on) {}
    void reached(const uint8_t* from, uint64_t bytes) {
        if (!on_) return;
        low_ = low_ ? std::min(low_, from) : from;
        high_ = std::max(high_, from + bytes);
        if (static_cast<uint64_t>(high_ - low_) >= kWindow) {
            os::release_pages(low_, static_cast<uint64_t>(high_ - low_));
            low_ = high_ = nullptr;
        }
    }

 private:
    bool on_;
    const uint8_t* low_ = nullptr;
    const uint8_t* high_ = nullptr;
};

}  // namespace

View::View(uint64_t item, const std::vector<uint64_t>& sizes, const std::vector<uint64_t>& strides, uint64_t start)
    : item_(item), start_(start) {
    const auto refuse = [] { throw Error(Code::invalid, "an impossible strided operand"); };
    if ((item != 1 && item != 2 && item != 4 && item != 8) || sizes.size() != strides.size()) refuse();
    uint64_t last = 0;
    for (size_t d = 0; d < sizes.size(); ++d) {
        if (sizes[d] != 0 && elements_ > kMost / 8 / sizes[d]) refuse();
        elements_ *= sizes[d];
        if (sizes[d] > 1 && strides[d] > (kMost / 8 - last) / (sizes[d] - 1)) refuse();
        if (sizes[d] > 1) last += (sizes[d] - 1) * strides[d];
    }
    if (start > elements_) refuse();
    if (elements_ == 0) return;
    reach_ = (last + 1) * item;
    for (size_t d = 0; d < sizes.size(); ++d) {
        if (sizes[d] == 1) continue;
        if (!dims_.empty() && dims_.back().stride == strides[d] * sizes[d]) {
            dims_.back().size *= sizes[d];
            dims_.back().stride = strides[d];
        } else {
            dims_.push_back({sizes[d], strides[d], 1});
        }
    }
    if (dims_.empty()) dims_.push_back({1, 1, 1});
    for (size_t d = dims_.size() - 1; d-- > 0;) dims_[d].below = dims_[d + 1].below * dims_[d + 1].size;
}

const uint8_t* View::gather(const uint8_t* base, uint64_t first, uint64_t bytes, uint8_t* out, bool mapped) const {
    // A copy is cut at any byte, so its ends may lie within an element.
    const uint64_t begin = first / item_, end = (first + bytes + item_ - 1) / item_;
    elements_to(base, start_ + begin, end - begin, out, mapped && reach_ > kWindow);
    return out + first % item_;
}

// A box of the image: all that is between an index and that index plus the extents, one of the at most two boxes a
// dimension that a stretch of elements falls into.
struct View::Walk {
    struct Extent {
        uint64_t count, from_step, to_step;  // bytes
    };
    std::vector<Extent> extents;  // the file's smallest steps last
    uint64_t item;

    void run(const uint8_t* from, uint8_t* to, Trail& trail) const {
        std::vector<uint64_t> index(extents.size(), 0);
        const Extent& inner = extents.back();
        const uint64_t most = std::max<uint64_t>(1, inner.from_step ? kWindow / 4 / inner.from_step : inner.count);
        for (;;) {
            for (uint64_t done = 0; done < inner.count;) {
                const uint64_t now = std::min(most, inner.count - done);
                const uint8_t* at = from + done * inner.from_step;
                copy_run(item, at, inner.from_step, to + done * inner.to_step, inner.to_step, now);
                trail.reached(at, (now - 1) * inner.from_step + item);
                done += now;
            }
            size_t d = extents.size() - 1;
            for (; d > 0; --d) {
                const Extent& outer = extents[d - 1];
                from += outer.from_step;
                to += outer.to_step;
                if (++index[d - 1] < outer.count) break;
                from -= outer.count * outer.from_step;
                to -= outer.count * outer.to_step;
                index[d - 1] = 0;
            }
            if (d == 0) return;
        }
    }
};

void View::elements_to(const uint8_t* base, uint64_t first, uint64_t count, uint8_t* out, bool mapped) const {
    Trail trail(mapped);
    while (count > 0) {
        // The outermost dimension of which a whole number of steps begins here.
        size_t d = 0;
        while (first % dims_[d].below != 0 || count < dims_[d].below) ++d;
        uint64_t offset = 0, left = first, inside = 0;
        for (size_t k = 0; k < dims_.size(); ++k) {
            const uint64_t at = left / dims_[k].below;
            offset += at * dims_[k].stride;
            left %= dims_[k].below;
            if (k == d) inside = at;
        }
        const uint64_t steps = std::min(dims_[d].size - inside, count / dims_[d].below);
        Walk walk{{}, item_};
        for (size_t k = d; k < dims_.size(); ++k) {
            const uint64_t extent = k == d ? steps : dims_[k].size;
            walk.extents.push_back({extent, dims_[k].stride * item_, dims_[k].below * item_});
        }
        std::stable_sort(walk.extents.begin(), walk.extents.end(),
                         [](const Walk::Extent& a, const Walk::Extent& b) { return a.from_step > b.from_step; });
        walk.run(base + offset * item_, out, trail);
        const uint64_t done = steps * dims_[d].below;
        first += done;
        count -= done;
        out += done * item_;
    }
}

}  // namespace sds
