// The operating system, POSIX side: Linux first, macOS and the BSDs where they differ.
#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "error.h"
#include "os.h"

#ifdef __linux__
#include <linux/capability.h>
#include <linux/fs.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#endif
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace sds::os {

namespace {

[[noreturn]] void fail(int error, const std::string& what) {
    Code code = Code::io;
    if (error == ENOENT || error == ENOTDIR) code = Code::not_found;
    if (error == EACCES || error == EPERM || error == EROFS) code = Code::permission;
    if (error == ENOSPC || error == EDQUOT || error == EFBIG) code = Code::no_space;
    if (error == ELOOP || error == EISDIR) code = Code::not_regular;
    if (error == EEXIST) code = Code::exists;
    if (error == EMFILE || error == ENFILE) code = Code::too_many_files;
    throw Error(code, what + ": " + std::strerror(error));
}

const char* kind_of(mode_t mode) {
    if (S_ISDIR(mode)) return "a folder";
    if (S_ISFIFO(mode)) return "a FIFO";
    if (S_ISSOCK(mode)) return "a socket";
    if (S_ISCHR(mode) || S_ISBLK(mode)) return "a device";
    return "a special file";
}

std::string folder_of(const std::string& path) {
    const size_t slash = path.rfind('/');
    if (slash == std::string::npos) return ".";
    return slash == 0 ? "/" : path.substr(0, slash);
}

const char kPrefix[] = ".sdsurgery-", kSuffix[] = ".tmp";

std::string within(const std::string& folder, const std::string& name) {
    return (folder == "/" ? "/" : folder + "/") + name;
}

// Named with its process, and locked by that as long as it lives (take_leftovers).
std::string unused_name(const std::string& target) {
    std::random_device random;
    char name[40];
    std::snprintf(name, sizeof name, "%s%ld-%08x%s", kPrefix, static_cast<long>(getpid()), random(), kSuffix);
    return within(folder_of(target), name);
}

bool is_temporary(const char* name) {
    const size_t length = std::strlen(name), prefix = sizeof kPrefix - 1, suffix = sizeof kSuffix - 1;
    return length > prefix + suffix && std::strncmp(name, kPrefix, prefix) == 0 &&
           std::strcmp(name + length - suffix, kSuffix) == 0;
}

// Remove what runs that were killed have left in a folder: temporary files of this user that nobody holds a lock on.
// Where there are no locks nothing is removed, since the run may be alive, on another machine too.
std::vector<std::string> take_leftovers(const std::string& folder) {
    std::vector<std::string> removed;
    DIR* listing = opendir(folder.c_str());
    if (listing == nullptr) return removed;
    while (const dirent* entry = readdir(listing)) {
        if (!is_temporary(entry->d_name)) continue;
        const std::string path = within(folder, entry->d_name);
        const int file = ::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
        if (file < 0) continue;
        struct stat info;
        const bool ours = fstat(file, &info) == 0 && S_ISREG(info.st_mode) && info.st_uid == geteuid();
        if (ours && flock(file, LOCK_EX | LOCK_NB) == 0 && unlink(path.c_str()) == 0) removed.push_back(entry->d_name);
        ::close(file);
    }
    closedir(listing);
    return removed;
}

// A new file with a name, and a lock by which others see that its owner lives. They may look at it before it is
// locked, and remove it: then it is made again.
int create_locked(const std::string& target, std::string& name) {
    for (;;) {
        name = unused_name(target);
        const int file = ::open(name.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0666);
        if (file < 0) return file;
        flock(file, LOCK_EX);
        struct stat info;
        if (fstat(file, &info) != 0 || info.st_nlink > 0) return file;
        ::close(file);
    }
}

bool may_act_as_owner() {
#ifdef __linux__
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct data[2]{};
    if (syscall(SYS_capget, &header, data) == 0) return (data[0].effective & (1u << CAP_FOWNER)) != 0;
#endif
    return geteuid() == 0;
}

// Refuse before the work what the rename at its end would fail with.
void check_replaceable(const std::string& target, const struct stat& old) {
    const std::string folder = folder_of(target);
    struct stat around;
    if (::stat(folder.c_str(), &around) == 0 && (around.st_mode & S_ISVTX) && !may_act_as_owner() &&
        geteuid() != around.st_uid && geteuid() != old.st_uid) {
        throw Error(Code::permission, target + ": cannot be replaced: it belongs to another user, and in " + folder +
                                          " only the owner may replace a file (sticky folder)");
    }
#ifdef FS_IOC_GETFLAGS
    const auto is_fixed = [](const std::string& path) {
        const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        if (file < 0) return false;
        int flags = 0;
        const bool known = ioctl(file, FS_IOC_GETFLAGS, &flags) == 0;
        ::close(file);
        return known && (flags & (FS_IMMUTABLE_FL | FS_APPEND_FL)) != 0;
    };
    for (const std::string& path : {target, folder}) {
        if (is_fixed(path))
            throw Error(Code::permission, target + ": cannot be replaced: " + path + " is immutable or append-only");
    }
#endif
}

// The extended attributes of the file that is replaced: what can't be set is left out.
void copy_attributes(const std::string& from, int to) {
#ifdef __linux__
    std::vector<char> names(64 << 10);
    const ssize_t length = listxattr(from.c_str(), names.data(), names.size());
    std::vector<char> value(64 << 10);
    for (const char* name = names.data(); name < names.data() + std::max<ssize_t>(length, 0);
         name += std::strlen(name) + 1) {
        const ssize_t size = getxattr(from.c_str(), name, value.data(), value.size());
        if (size >= 0) fsetxattr(to, name, value.data(), static_cast<size_t>(size), 0);
    }
#else
    (void)from, (void)to;
#endif
}

// Like rename(), but the target must not exist. False when the system or the file system has nothing like it.
bool rename_to_new(const std::string& from, const std::string& to) {
#if defined(__linux__) && defined(SYS_renameat2)
    const unsigned kNoReplace = 1;
    if (syscall(SYS_renameat2, AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), kNoReplace) == 0) return true;
#elif defined(__APPLE__)
    if (renamex_np(from.c_str(), to.c_str(), RENAME_EXCL) == 0) return true;
#else
    errno = ENOSYS;
#endif
    if (errno == EEXIST) fail(errno, to + ": cannot be created");
    return false;
}

void sync_file(int file, const std::string& path) {
#ifdef __APPLE__
    if (fcntl(file, F_FULLFSYNC) == 0) return;  // fsync alone leaves the data in the drive's cache
#endif
    if (fsync(file) != 0) fail(errno, path + ": cannot flush to disk");
}

void sync_folder(const std::string& folder) {
    const int handle = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (handle < 0) return;
    fsync(handle);  // some file systems refuse it for folders; the rename has happened either way
    ::close(handle);
}

}  // namespace

Handle open_read(const std::string& path) {
    struct stat info;
    if (::stat(path.c_str(), &info) != 0) fail(errno, path);
    // Before opening: opening some devices has effects of its own, and a FIFO would wait for a writer.
    if (!S_ISREG(info.st_mode)) throw Error(Code::not_regular, path + ": is " + kind_of(info.st_mode) + ", not a file");
    int file;
    do {
        file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    } while (file < 0 && errno == EINTR);
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

Stat stat(Handle file) {
    struct stat info;
    if (fstat(static_cast<int>(file), &info) != 0) fail(errno, "cannot examine an open file");
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

const uint8_t* map(Handle file, uint64_t size, bool copy_on_write) {
    if (size == 0) return nullptr;
    const int protection = copy_on_write ? PROT_READ | PROT_WRITE : PROT_READ;
    int flags = copy_on_write ? MAP_PRIVATE : MAP_SHARED;
#ifdef MAP_NORESERVE
    if (copy_on_write) flags |= MAP_NORESERVE;
#endif
    void* at = mmap(nullptr, size, protection, flags, static_cast<int>(file), 0);
    if (at == MAP_FAILED) fail(errno, "cannot map the file");
    return static_cast<const uint8_t*>(at);
}

void unmap(const uint8_t* at, uint64_t size) noexcept {
    if (at != nullptr) munmap(const_cast<uint8_t*>(at), size);
}

void release_pages(const uint8_t* at, uint64_t bytes) noexcept {
    const uintptr_t page = page_size();
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(at) + page - 1) / page * page;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(at) + bytes) / page * page;
    if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

// A mapped file that shrinks turns reads into SIGBUS. Only faults inside guarded() are caught; all others go to
// the handler that was there before.
namespace {

thread_local sigjmp_buf* fault_return = nullptr;
thread_local volatile sig_atomic_t passing_on = 0;
struct sigaction previous_action;
std::mutex guards_mutex;  // over the handler's installation, and over:
unsigned guards = 0;

void on_fault(int signal, siginfo_t* info, void* context) {
    if (fault_return != nullptr) siglongjmp(*fault_return, 1);
    const bool has_info = previous_action.sa_flags & SA_SIGINFO;
    // A handler that passes the signal on to its own predecessor may come back to us: we were there before it, too.
    if (passing_on || (!has_info && previous_action.sa_handler == SIG_DFL)) {
        ::signal(signal, SIG_DFL);  // the fault repeats on return, with the default action
        return;
    }
    passing_on = 1;
    if (has_info) {
        previous_action.sa_sigaction(signal, info, context);
    } else if (previous_action.sa_handler != SIG_IGN) {
        previous_action.sa_handler(signal);
    }
    passing_on = 0;
}

bool is_ours(const struct sigaction& action) {
    return (action.sa_flags & SA_SIGINFO) && action.sa_sigaction == on_fault;
}

}  // namespace

bool maps_cheaply() {
#ifdef __linux__
    return true;
#else
    return false;  // never measured
#endif
}

bool can_guard() { return true; }

// Looks every time: others (faulthandler, say) may have taken the signal since the first.
FaultGuard::FaultGuard() {
    std::lock_guard<std::mutex> lock(guards_mutex);
    ++guards;
    struct sigaction present;
    if (sigaction(SIGBUS, nullptr, &present) != 0 || is_ours(present)) return;
    previous_action = present;
    struct sigaction action{};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, nullptr);
}

// A handler that others installed over ours stays, and may go on passing faults to ours.
FaultGuard::~FaultGuard() {
    std::lock_guard<std::mutex> lock(guards_mutex);
    struct sigaction present;
    if (--guards == 0 && sigaction(SIGBUS, nullptr, &present) == 0 && is_ours(present))
        sigaction(SIGBUS, &previous_action, nullptr);
}

bool guarded(void (*work)(void*), void* context) {
    const FaultGuard guard;
    sigjmp_buf here;
    if (sigsetjmp(here, 0) != 0) {
        fault_return = nullptr;
        return false;
    }
    passing_on = 0;  // a handler may have left by a jump
    fault_return = &here;
    try {
        work(context);
    } catch (...) {
        fault_return = nullptr;
        throw;
    }
    fault_return = nullptr;
    return true;
}

Pending create_beside(const std::string& target) {
    Pending pending;
    pending.target = target;
    struct stat info;
    bool replaces = false;
    if (::stat(target.c_str(), &info) == 0) {
        if (!S_ISREG(info.st_mode)) {
            throw Error(Code::not_regular, target + ": is " + kind_of(info.st_mode) + ", cannot be replaced by a file");
        }
        check_replaceable(target, info);
        replaces = true;
    } else if (errno != ENOENT) {
        fail(errno, target);
    }
    const std::string folder = folder_of(target);
    pending.leftovers = take_leftovers(folder);
    int file = -1;
#if defined(__linux__) && defined(O_TMPFILE)
    // A file without a name: even SIGKILL leaves nothing behind.
    if (access("/proc/self/fd", X_OK) == 0) file = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0666);
#endif
    if (file < 0) {
        file = create_locked(target, pending.temporary);
        if (file < 0) {
            const int error = errno;
            pending.temporary.clear();
            fail(error, folder + ": cannot create a file in this folder");
        }
    }
    pending.file = file;
    if (replaces) {
        // The new file stands in for the old one: same permissions and attributes, and the same owner where we may set
        // it. But nothing says that other bytes may run with its owner's rights.
        if (fchown(file, info.st_uid, info.st_gid) != 0) errno = 0;
        copy_attributes(target, file);
        fchmod(file, info.st_mode & 0777);
    }
    return pending;
}

uint64_t free_bytes(const std::string& folder) {
    struct statvfs info;
    if (statvfs(folder.empty() ? "." : folder.c_str(), &info) != 0) return UINT64_MAX;
    return static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
}

void reserve(const Pending& pending, uint64_t size) {
    const int file = static_cast<int>(pending.file);
    const auto too_full = [&](int error) {
        fail(error, folder_of(pending.target) + ": no room for the output (" + std::to_string(size) +
                        " bytes needed, " + std::to_string(free_bytes(folder_of(pending.target))) + " free)");
    };
#ifdef __linux__
    // Not posix_fallocate: where the file system has no reservation, that one writes every block.
    int error;
    do {
        error = fallocate(file, 0, 0, static_cast<off_t>(size)) == 0 ? 0 : errno;
    } while (error == EINTR);
    if (error == 0) return;
    if (error != EOPNOTSUPP && error != ENOSYS && error != EINVAL) too_full(error);
#elif defined(__APPLE__)
    fstore_t want = {F_ALLOCATEALL, F_PEOFPOSMODE, 0, static_cast<off_t>(size), 0};
    if (fcntl(file, F_PREALLOCATE, &want) != 0 && errno == ENOSPC) too_full(errno);
#endif
    if (free_bytes(folder_of(pending.target)) < size) too_full(ENOSPC);
    if (ftruncate(file, static_cast<off_t>(size)) != 0) too_full(errno);
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

void publish(Pending& pending, bool replace, bool sync) {
    const int file = static_cast<int>(pending.file);
    const std::string& target = pending.target;
    if (sync) sync_file(file, target);
#if defined(__linux__) && defined(O_TMPFILE)
    if (pending.temporary.empty()) {
        char link[40];
        std::snprintf(link, sizeof link, "/proc/self/fd/%d", file);
        // Straight to the target's name where that is free; linkat never replaces.
        if (linkat(AT_FDCWD, link, AT_FDCWD, target.c_str(), AT_SYMLINK_FOLLOW) == 0) {
            discard(pending);
            if (sync) sync_folder(folder_of(target));
            return;
        }
        if (errno != EEXIST || !replace) fail(errno, target + ": cannot be created");
        flock(file, LOCK_EX);
        const std::string name = unused_name(target);
        if (linkat(AT_FDCWD, link, AT_FDCWD, name.c_str(), AT_SYMLINK_FOLLOW) != 0) fail(errno, name);
        pending.temporary = name;
    }
#endif
    if (!replace) {
        if (::link(pending.temporary.c_str(), target.c_str()) == 0) {
            discard(pending);
            if (sync) sync_folder(folder_of(target));
            return;
        }
        if (errno == EEXIST) fail(errno, target + ": cannot be created");
        // A file system without hard links.
        if (rename_to_new(pending.temporary, target)) {
            pending.temporary.clear();
            discard(pending);
            if (sync) sync_folder(folder_of(target));
            return;
        }
        // Whoever creates the name has it, and replaces what it has created.
        const int claimed = ::open(target.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0666);
        if (claimed < 0) fail(errno, target + ": cannot be created");
        ::close(claimed);
    }
    if (std::rename(pending.temporary.c_str(), target.c_str()) != 0) fail(errno, target + ": cannot be replaced");
    pending.temporary.clear();
    discard(pending);
    if (sync) sync_folder(folder_of(target));
}

void discard(Pending& pending) noexcept {
    close(pending.file);
    pending.file = kNone;
    if (!pending.temporary.empty()) unlink(pending.temporary.c_str());
    pending.temporary.clear();
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
