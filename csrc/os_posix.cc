// POSIX: reading and writing open files, and the machine. Linux first, macOS and the BSDs where they differ.
#include <fcntl.h>
#include <limits.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "os_posix.h"

#ifdef __linux__
#include <sched.h>
#include <sys/syscall.h>
#endif
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace sds::os {

[[noreturn]] void fail(int error, const std::string& what) {
    Code code = Code::io;
    if (error == ENOENT || error == ENOTDIR) code = Code::not_found;
    if (error == EACCES || error == EPERM || error == EROFS) code = Code::permission;
    if (error == ENOSPC || error == EDQUOT || error == EFBIG) code = Code::no_space;
    if (error == ELOOP || error == EISDIR) code = Code::not_regular;
    if (error == EEXIST) code = Code::exists;
    if (error == EMFILE || error == ENFILE) code = Code::too_many_files;
    if (error == ENOMEM) code = Code::memory;
    throw Error(code, what + ": " + std::strerror(error));
}

const char* kind_of(mode_t mode) {
    if (S_ISDIR(mode)) return "a folder";
    if (S_ISFIFO(mode)) return "a FIFO";
    if (S_ISSOCK(mode)) return "a socket";
    if (S_ISCHR(mode) || S_ISBLK(mode)) return "a device";
    return "a special file";
}

Handle open_read(const std::string& path) {
    struct stat info;
    if (::stat(path.c_str(), &info) != 0) fail(errno, path);
    // Before opening: opening some devices has effects of its own, and a FIFO would wait for a writer.
    if (!S_ISREG(info.st_mode)) throw Error(Code::not_regular, path + ": is " + kind_of(info.st_mode) + ", not a file");
    const int file = repeated([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK); });
    if (file < 0) fail(errno, path);
    if (fstat(file, &info) != 0 || !S_ISREG(info.st_mode)) {
        ::close(file);
        throw Error(Code::not_regular, path + ": is " + kind_of(info.st_mode) + ", not a file");
    }
    return file;
}

Handle open_past_cache(Handle file) {
#if defined(__linux__) && defined(O_DIRECT)
    char link[40];
    std::snprintf(link, sizeof link, "/proc/self/fd/%ld", static_cast<long>(file));
    return ::open(link, O_RDONLY | O_CLOEXEC | O_DIRECT);
#else
    (void)file;
    return kNone;
#endif
}

namespace {

Stat stat_of(const struct stat& info) {
    Stat result;
    result.size = static_cast<uint64_t>(info.st_size);
    result.device = static_cast<uint64_t>(info.st_dev);
    result.inode = static_cast<uint64_t>(info.st_ino);
#ifdef __APPLE__
    const timespec modified = info.st_mtimespec, changed = info.st_ctimespec;
#else
    const timespec modified = info.st_mtim, changed = info.st_ctim;
#endif
    const auto in_ns = [](const timespec& time) {
        return static_cast<int64_t>(time.tv_sec) * 1000000000 + time.tv_nsec;
    };
    result.mtime_ns = in_ns(modified);
    result.ctime_ns = in_ns(changed);
    return result;
}

}  // namespace

Stat stat(Handle file) {
    struct stat info;
    if (fstat(static_cast<int>(file), &info) != 0) fail(errno, "cannot examine an open file");
    return stat_of(info);
}

Stat stat(const std::string& path) {
    struct stat info;
    if (::stat(path.c_str(), &info) != 0) fail(errno, path);
    return stat_of(info);
}

std::string absolute(const std::string& path) {
    char folder[PATH_MAX];
    if (path.empty() || path.front() == '/' || getcwd(folder, sizeof folder) == nullptr) return path;
    return std::string(folder) + "/" + path;
}

size_t most_open_files() {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return SIZE_MAX;
    return static_cast<size_t>(limit.rlim_cur);
}

size_t read_at(Handle file, void* to, size_t bytes, uint64_t offset) {
    size_t got = 0;
    while (got < bytes) {
        // Linux moves at most 2 GiB a call and macOS refuses more.
        const size_t want = std::min<size_t>(bytes - got, 1u << 30);
        const ssize_t now =
            pread(static_cast<int>(file), static_cast<uint8_t*>(to) + got, want, static_cast<off_t>(offset + got));
        if (now > 0) {
            got += static_cast<size_t>(now);
        } else if (now == 0) {
            break;
        } else if (errno != EINTR) {
            fail(errno, "cannot read");
        }
    }
    return got;
}

size_t read_past_cache(Handle file, void* to, size_t bytes, uint64_t offset) {
    size_t got = 0;
    while (got < bytes) {
        const ssize_t now = pread(static_cast<int>(file), static_cast<uint8_t*>(to) + got, bytes - got,
                                  static_cast<off_t>(offset + got));
        if (now < 0 && errno == EINTR) continue;
        if (now < 0) return 0;
        got += static_cast<size_t>(now);
        if (now == 0 || now % 4096 != 0) break;  // the end of the file: going on from there would be unaligned
    }
    return got;
}

double cached_share(Handle file, uint64_t size) {
    if (size == 0) return 1;
#ifdef __linux__
    // 64 windows of 1 MiB spread over the file: asking about every page of a large one takes tens of milliseconds.
    constexpr uint64_t kWindows = 64;
    const size_t page = page_size();
    const uint64_t window = std::min<uint64_t>(size, 1u << 20);
    const uint64_t pages = (window + page - 1) / page;
    const uint64_t step = (size - window) / kWindows / page * page;
    struct Range {
        uint64_t offset, length;
    } range{0, window};
    struct Counts {
        uint64_t cached, dirty, writeback, evicted, recently_evicted;
    } counts{};
    const long kCachestat = 451;  // since Linux 6.5
    uint64_t there = 0;
    if (syscall(kCachestat, static_cast<unsigned>(file), &range, &counts, 0u) == 0) {
        for (uint64_t i = 0; i < kWindows; ++i) {
            range.offset = i * step;
            if (syscall(kCachestat, static_cast<unsigned>(file), &range, &counts, 0u) != 0) return 1;
            there += std::min(counts.cached, pages);
        }
        return static_cast<double>(there) / static_cast<double>(kWindows * pages);
    }
    // Older kernels: ask for the pages of a mapping.
    void* at = mmap(nullptr, size, PROT_READ, MAP_SHARED, static_cast<int>(file), 0);
    if (at == MAP_FAILED) return 1;
    std::vector<unsigned char> present(pages);
    for (uint64_t i = 0; i < kWindows; ++i) {
        if (mincore(static_cast<uint8_t*>(at) + i * step, window, present.data()) != 0) break;
        for (unsigned char bits : present) there += bits & 1;
    }
    munmap(at, size);
    return static_cast<double>(there) / static_cast<double>(kWindows * pages);
#else
    (void)file;
    return 1;
#endif
}

void close(Handle file) noexcept {
    if (file != kNone) ::close(static_cast<int>(file));
}

void write_at(Handle file, const void* from, size_t bytes, uint64_t offset) {
    size_t done = 0;
    while (done < bytes) {
        const size_t want = std::min<size_t>(bytes - done, 1u << 30);
        const ssize_t now = pwrite(static_cast<int>(file), static_cast<const uint8_t*>(from) + done, want,
                                   static_cast<off_t>(offset + done));
        if (now > 0) {
            done += static_cast<size_t>(now);
        } else if (now == 0 || errno != EINTR) {
            fail(now == 0 ? ENOSPC : errno, "cannot write the output");
        }
    }
}

void start_flush(Handle file, uint64_t offset, uint64_t bytes) noexcept {
#ifdef __linux__
    sync_file_range(static_cast<int>(file), static_cast<off64_t>(offset), static_cast<off64_t>(bytes),
                    SYNC_FILE_RANGE_WRITE);
#else
    (void)file, (void)offset, (void)bytes;
#endif
}

size_t page_size() {
    static const size_t size = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    return size;
}

unsigned usable_cpus() {
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return static_cast<unsigned>(std::max(1, CPU_COUNT(&set)));
#endif
    return std::max(1u, std::thread::hardware_concurrency());
}

IeeeMode::IeeeMode() {
#if defined(__x86_64__)
    saved_ = _mm_getcsr();
    _mm_setcsr(0x1f80);  // all exceptions masked, round to nearest, no flush-to-zero, no denormals-are-zero
#elif defined(__aarch64__)
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" ::"r"(uint64_t{0}));
#else
    saved_ = 0;
#endif
}

IeeeMode::~IeeeMode() {
#if defined(__x86_64__)
    _mm_setcsr(static_cast<unsigned>(saved_));
#elif defined(__aarch64__)
    asm volatile("msr fpcr, %0" ::"r"(saved_));
#endif
}

}  // namespace sds::os
