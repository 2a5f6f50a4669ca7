// Everything that differs between operating systems, as plain functions. One implementation per platform:
// os_posix*.cc (Linux, macOS, BSD) and os_windows.cc. Nothing else in the tree makes a system call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace sds::os {

using Handle = intptr_t;
constexpr Handle kNone = -1;

struct Stat {
    uint64_t size = 0;
    uint64_t device = 0, inode = 0;  // together they identify a file under all its names
    int64_t mtime_ns = 0;
    int64_t ctime_ns = 0;  // of the last change to the bytes or to anything about the file; 0 where there is none

    bool is(const Stat& other) const {  // the same file, with the same bytes as far as size and time tell
        return device == other.device && inode == other.inode && size == other.size && mtime_ns == other.mtime_ns;
    }
};

// Reading. All throw sds::Error; `path` is UTF-8 (any bytes on POSIX).
Handle open_read(const std::string& path);  // regular files only; never blocks on a FIFO
Handle open_past_cache(Handle file);        // a second handle whose reads bypass the page cache, or kNone
Stat stat(Handle file);
Stat stat(const std::string& path);
std::string absolute(const std::string& path);                                 // leads to the same file from any folder
size_t most_open_files();                                                      // that this process may have
size_t read_at(Handle file, void* to, size_t bytes, uint64_t offset);          // fewer only at the end of the file
size_t read_past_cache(Handle file, void* to, size_t bytes, uint64_t offset);  // page-aligned; 0 when it can't
double cached_share(Handle file, uint64_t size);  // 0..1 of the file in the page cache; 1 when unknown
void close(Handle file) noexcept;

// Mapping. Copy-on-write mappings are writable in memory and never reach the file.
const uint8_t* map(Handle file, uint64_t size, bool copy_on_write);
void unmap(const uint8_t* at, uint64_t size) noexcept;
void release_pages(const uint8_t* at, uint64_t bytes) noexcept;  // give back resident pages, keep the mapping
bool maps_cheaply();  // whether a cached file is read faster through its mapping than by copying from the cache
bool can_guard();     // whether guarded() can catch a fault
bool guarded(void (*work)(void*), void* context);  // false when the work touched a page that is gone
// guarded() needs a handler of the process's. One that calls it often holds a guard: the handler is installed with the
// first and taken away with the last.
class FaultGuard {
 public:
    FaultGuard();
    ~FaultGuard();
    FaultGuard(const FaultGuard&) = delete;
};

// Writing: a nameless (or temporarily named) file beside the target, which takes the target's name at the end.
struct Pending {
    Handle file = kNone;
    std::string target;                  // resolved path
    std::string temporary;               // empty while the file has no name
    std::vector<std::string> leftovers;  // names of the files of dead runs that were removed from the folder
};
Pending create_beside(const std::string& target);
void reserve(const Pending& pending, uint64_t size);  // throws no_space at once when the disk can't hold it
void write_at(Handle file, const void* from, size_t bytes, uint64_t offset);
void start_flush(Handle file, uint64_t offset, uint64_t bytes) noexcept;  // begin writing back, don't wait
void publish(Pending& pending, bool replace, bool sync);                  // durable when `sync`, then one atomic rename
void discard(Pending& pending) noexcept;

size_t page_size();
unsigned usable_cpus();
uint64_t free_bytes(const std::string& folder);

// Worker threads inherit the floating-point mode of their creator; this sets IEEE mode (round to nearest even,
// subnormals kept) for a scope.
class IeeeMode {
 public:
    IeeeMode();
    ~IeeeMode();
    IeeeMode(const IeeeMode&) = delete;

 private:
    uint64_t saved_;
};

}  // namespace sds::os
