// SHA-256 of input files and of an output that is being written, by threads beside a run.
//
// The bytes of each stream are taken in order: an input's from its first to its last, the output's tensor data behind
// the Sink's watermark. Nothing is read from a disk twice: what the page cache holds is hashed there, and of what isn't
// cached a tap (tap.h) passes on what the run reads. Each thread takes its share of the streams and hashes a stretch of
// each together (hash.h); while the run's workers still need the processors, only half of them are used
// here.
//
// No thread outlives the Hasher, and none needs Python.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "file.h"
#include "hash.h"

namespace sds {

// Any thread may call anything at any time.
class Hasher {
 public:
    // `sink` may be empty: nothing is being written. Otherwise its bytes from `body_begin` on are hashed too, unless
    // `body_begin` is negative. `map`: files may be read through mappings, which needs a SIGBUS handler. `target` is
    // one of hash_targets(), empty for the best.
    Hasher(std::vector<std::shared_ptr<Source>> files, std::shared_ptr<Sink> sink, int64_t body_begin, bool map,
           const std::string& target);
    ~Hasher();
    Hasher(const Hasher&) = delete;

    void start();
    bool wait(double seconds);  // true once every thread has ended
    void cancel() noexcept;     // and join
    void finish();              // joins; throws the first error, `cancelled` after cancel()

    unsigned processors() const;             // that it keeps busy
    std::vector<std::string> files() const;  // of each file, in hexadecimal, after finish()
    std::string body() const;                // empty where it was not asked for

 private:
    struct Stream;
    void join();
    void work(unsigned number);
    std::vector<Stream*> take(unsigned number, bool& over);
    void advance(const std::vector<Stream*>& streams, std::vector<std::vector<uint8_t>>& buffers);
    void fail(const Error& error) noexcept;
    void fail_for_memory() noexcept;
    void close_taps();

    std::shared_ptr<Sink> sink_;
    const HashTarget& target_;
    std::vector<std::unique_ptr<Stream>> streams_;  // the files, then the body
    std::mutex threads_mutex_;  // over the threads: held to start or join them, and taken before mutex_
    std::vector<std::thread> threads_;
    std::optional<os::FaultGuard> guard_;  // while they run, if they read mappings
    mutable std::mutex mutex_;             // over what follows
    std::condition_variable freed_;        // a stream can be taken again
    std::condition_variable stopped_;      // notified only of an early end: for threads that wait until all is written
    std::condition_variable ended_;
    unsigned threads_wanted_ = 1, threads_while_writing_ = 1;
    unsigned running_ = 0, busy_ = 0;
    bool started_ = false, stop_ = false, cancelled_ = false;
    std::unique_ptr<Error> error_;
    bool out_of_memory_ = false;
    std::vector<std::string> digests_;
    std::string body_digest_;
};

}  // namespace sds
