// Source: a read-only input, by positioned reads, past the page cache, or mapped. Sink: the output file, which
// appears whole under its name at commit() or not at all.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <vector>

#include "error.h"
#include "os.h"
#include "tap.h"
#include "view.h"

namespace sds {

enum class Io : int { automatic = 0, pread = 1, mmap = 2, direct = 3 };

class Mapping {
 public:
    Mapping(os::Handle file, uint64_t size, bool copy_on_write);
    ~Mapping();
    Mapping(const Mapping&) = delete;
    const uint8_t* data() const { return data_; }
    uint64_t size() const { return size_; }
    bool copy_on_write() const { return copy_on_write_; }

 private:
    const uint8_t* data_;
    uint64_t size_;
    bool copy_on_write_;
};

// Closed with its last user. Readers hold it: close() on another thread must not let a read meet a handle that
// the system has given to another file by then.
class OpenFile {
 public:
    explicit OpenFile(os::Handle opened) : handle(opened) { ++count; }
    ~OpenFile() {
        os::close(handle);
        --count;
    }
    OpenFile(const OpenFile&) = delete;
    const os::Handle handle;
    static std::atomic<size_t> count;  // that are open now
};

struct MemoryPiece {
    const uint8_t* data;
    uint64_t bytes;
};

// Any thread may call anything at any time; what is called after close() throws `invalid`.
//
// A run may have more inputs than the process may have open files. Sources hold half of that number at most: one that
// opens its file lets go of those that were used least recently, and these open theirs again when they are read.
class Source {
 public:
    explicit Source(const std::string& path);  // a file
    // Memory that `owner` keeps alive: pieces that count as if they lay one behind the other.
    Source(const std::vector<MemoryPiece>& pieces, std::shared_ptr<const void> owner);
    ~Source();
    Source(const Source&) = delete;

    const std::string& path() const { return path_; }
    uint64_t size() const { return stat_.size; }
    const os::Stat& identity() const { return stat_; }
    bool in_memory() const { return in_memory_; }
    const uint8_t* memory(uint64_t offset, uint64_t bytes) const;  // throws invalid unless one piece holds them

    void read(void* to, size_t bytes, uint64_t offset) const;  // all of them, or truncated
    // `bytes` of a strided tensor's row-major image from its byte `first` on, in `buffer`, which must have room for an
    // element on either side; returns where they begin. Elements lie all over their storage, which is therefore read
    // through the mapping: the page cache holds what the next call needs again.
    const uint8_t* gather(const View& view, uint64_t offset, uint64_t first, uint64_t bytes, uint8_t* buffer);
    std::shared_ptr<Mapping> mapping(bool copy_on_write = false);
    Io resolve(Io wanted) const;  // what `automatic` means for this file now
    bool can_read_past_cache() { return direct() != nullptr; }
    size_t read_past_cache(void* to, size_t bytes, uint64_t offset);  // page-aligned; 0 when it can't
    // Set while the file is being hashed: where a run puts what it reads past the page cache.
    void set_tap(std::shared_ptr<Tap> tap);
    std::shared_ptr<Tap> tap() const;
    void check_unchanged() const;  // throws changed when size or time differ from those at opening
    // Whether only the time of the last change differs: the file has another name, mode or attribute, or its bytes
    // were changed and the time of that put back.
    bool touched() const;
    void settle();  // from now on, what has touched it is as it was at opening
    void close() noexcept;

 private:
    std::shared_ptr<const OpenFile> opened() const;  // throws once closed, and when it can't be opened again
    bool let_go() const noexcept;                    // of the file, where it is idle and can be opened again
    static void make_room();
    std::shared_ptr<const OpenFile> direct();  // for reads past the page cache; empty where there are none

    const std::string path_, reopened_by_;    // as it was given; from the root
    std::map<uint64_t, MemoryPiece> pieces_;  // by the offset that they begin at
    const std::shared_ptr<const void> owner_;
    const bool in_memory_;
    os::Stat stat_;
    std::atomic<int64_t> ctime_ns_{0};
    mutable std::atomic<uint64_t> used_{0};  // when it was last, in uses of all
    mutable std::mutex mutex_;               // over what follows
    mutable std::shared_ptr<const OpenFile> file_, direct_;
    mutable bool direct_tried_ = false;
    bool closed_ = false;
    std::weak_ptr<Mapping> mapping_;
    std::shared_ptr<Tap> tap_;
};

// Any thread may call anything at any time; what comes after commit() or abort() throws `invalid`.
class Sink {
 public:
    Sink(const std::string& target, uint64_t size);  // reserves the space
    ~Sink();                                         // aborts unless committed
    Sink(const Sink&) = delete;

    uint64_t size() const { return size_; }
    void write(const void* from, size_t bytes, uint64_t offset);
    void read(void* to, size_t bytes, uint64_t offset) const;  // what was written, for hashing behind the writers
    std::shared_ptr<Mapping> mapping() const;
    // Set by the writers: every byte before this offset (from where their work begins) is written.
    void set_watermark(uint64_t offset) { watermark_ = offset; }
    uint64_t watermark() const { return watermark_; }
    void start_flush(uint64_t offset, uint64_t bytes) noexcept;
    void commit(bool replace, bool sync);
    bool committed() const;
    const std::vector<std::string>& leftovers() const { return leftovers_; }  // of dead runs, which it has removed
    void abort() noexcept;

 private:
    os::Handle open_file() const;  // under the lock; throws once committed or aborted

    const uint64_t size_;
    std::vector<std::string> leftovers_;
    std::atomic<uint64_t> watermark_{0};
    mutable std::shared_mutex
        mutex_;  // over what follows: shared by users of the file, exclusive in commit() and abort()
    os::Pending pending_;
    bool committed_ = false;
};

}  // namespace sds
