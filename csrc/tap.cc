#include "tap.h"

#include <algorithm>
#include <cstring>

namespace sds {

namespace {

constexpr auto kPatience = std::chrono::seconds(1);

}  // namespace

Tap::Tap(uint64_t file_bytes, uint64_t window_bytes)
    : file_bytes_(file_bytes), window_(std::min(file_bytes, window_bytes)) {}

void Tap::expect(uint64_t begin, uint64_t end) {
    std::lock_guard<std::mutex> lock(mutex_);
    const uint64_t last = expected_.empty() ? 0 : expected_.back().second;
    if (begin < last || begin >= end) return;
    if (begin == last && !expected_.empty()) {
        expected_.back().second = end;
    } else {
        expected_.emplace_back(begin, end);
    }
}

void Tap::offer(const uint8_t* data, uint64_t bytes, uint64_t offset) {
    const uint64_t end = offset + bytes, size = window_.size();
    if (bytes > size) return;
    std::unique_lock<std::mutex> lock(mutex_);
    ++waiting_;
    moved_.wait(lock, [&] { return !open_ || end <= position_ + size; });
    --waiting_;
    if (!open_) return;
    // Only what isn't there already: the hasher may be reading that.
    for (uint64_t at = std::max(offset, position_); at < end;) {
        auto after = present_.upper_bound(at);
        auto before = after == present_.begin() ? present_.end() : std::prev(after);
        if (before != present_.end() && before->second > at) {
            at = before->second;
            continue;
        }
        const uint64_t within = at % size;
        const uint64_t stop = std::min({end, after == present_.end() ? end : after->first, at + size - within});
        std::memcpy(window_.data() + within, data + (at - offset), stop - at);
        if (before != present_.end() && before->second == at) {
            before->second = stop;
        } else {
            before = present_.emplace(at, stop).first;
        }
        if (after != present_.end() && after->first == stop) {
            before->second = after->second;
            present_.erase(after);
        }
        at = stop;
    }
}

void Tap::open() {
    std::lock_guard<std::mutex> lock(mutex_);
    open_ = true;
}

void Tap::close() noexcept {
    std::lock_guard<std::mutex> lock(mutex_);
    open_ = false;
    moved_.notify_all();
}

Tap::Next Tap::next(uint64_t most, bool running) {
    std::lock_guard<std::mutex> lock(mutex_);
    while (!present_.empty() && present_.begin()->second <= position_) present_.erase(present_.begin());
    while (first_expected_ < expected_.size() && expected_[first_expected_].second <= position_) ++first_expected_;
    uint64_t end = std::min(file_bytes_, position_ + most);
    if (!present_.empty()) {
        const auto [first, last] = *present_.begin();
        if (first <= position_) {
            const uint64_t within = position_ % window_.size();
            return {window_.data() + within, std::min({end, last, position_ + window_.size() - within}) - position_};
        }
        end = std::min(end, first);
    }
    if (first_expected_ < expected_.size()) {
        const uint64_t begin = expected_[first_expected_].first;
        if (begin <= position_ && running && !stuck()) return {nullptr, 0};
        if (begin > position_) end = std::min(end, begin);
    }
    return {nullptr, end - position_};
}

// Whether the hasher waits for the workers while they wait for it: then each goes its own way from now on. (No order of
// work that there is leads to that.)
bool Tap::stuck() {
    const auto now = std::chrono::steady_clock::now();
    if (!open_) return true;
    if (waiting_ == 0) {
        stuck_since_ = {};
    } else if (stuck_since_ == std::chrono::steady_clock::time_point{}) {
        stuck_since_ = now;
    } else if (now - stuck_since_ > kPatience) {
        open_ = false;
        moved_.notify_all();
    }
    return !open_;
}

void Tap::advance(uint64_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    position_ += bytes;
    stuck_since_ = {};
    if (waiting_ > 0) moved_.notify_all();
}

}  // namespace sds
