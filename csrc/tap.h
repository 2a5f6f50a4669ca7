// What a run reads of a file past the page cache, passed on to whoever hashes the file, so that the disk is read once.
//
// The run's workers read the bytes in pieces, roughly in order; the hasher needs them in order. Between them is a
// window of the file, which moves on with the hasher: a worker that is ahead of it waits. What no worker delivers (a
// header, a tensor that is not needed, pieces out of order) the hasher reads itself: what a run reads, and in which
// order, decides how much is read twice, never the digest.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

namespace sds {

// Any thread may call anything at any time.
class Tap {
 public:
    explicit Tap(uint64_t file_bytes, uint64_t window_bytes);
    Tap(const Tap&) = delete;

    // For the run. `expect` announces a range that it will read; one that begins before the end of another is ignored.
    void expect(uint64_t begin, uint64_t end);
    void offer(const uint8_t* data, uint64_t bytes, uint64_t offset);

    // For the hasher, which has one thread at a time here. Before open() and after close() no worker waits.
    void open();
    void close() noexcept;
    struct Next {
        const uint8_t* data;  // null: to be read from the file
        uint64_t bytes;       // 0: not there yet
    };
    // What follows, `most` bytes at most; `running`: whether the run may still bring something.
    Next next(uint64_t most, bool running);
    void advance(uint64_t bytes);

 private:
    bool stuck();  // under the lock

    const uint64_t file_bytes_;
    std::mutex mutex_;  // over what follows
    std::condition_variable moved_;
    std::vector<uint8_t> window_;                          // byte x of the file is at x modulo its size
    uint64_t position_ = 0;                                // everything before is hashed
    std::map<uint64_t, uint64_t> present_;                 // begin → end of what the window holds; no two adjoin
    std::vector<std::pair<uint64_t, uint64_t>> expected_;  // ascending, no two adjoin
    size_t first_expected_ = 0;                            // that doesn't end before the position
    unsigned waiting_ = 0;                                 // workers
    std::chrono::steady_clock::time_point stuck_since_{};  // they wait, and nothing comes; the epoch: not so
    bool open_ = false;
};

}  // namespace sds
