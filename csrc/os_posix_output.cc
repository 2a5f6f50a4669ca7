// POSIX: the output, from its temporary file to its name.
#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "os_posix.h"

#ifdef __linux__
#include <linux/capability.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#endif

namespace sds::os {

namespace {

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
        const int file = repeated([&] { return ::open(name.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0666); });
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
    if (repeated([&] { return fsync(file); }) != 0) fail(errno, path + ": cannot flush to disk");
}

void sync_folder(const std::string& folder) {
    const int handle = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (handle < 0) return;
    fsync(handle);  // some file systems refuse it for folders; the rename has happened either way
    ::close(handle);
}

}  // namespace

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
    if (access("/proc/self/fd", X_OK) == 0)
        file = repeated([&] { return ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0666); });
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
    const std::string folder = folder_of(pending.target);
    const auto too_full = [&](int error) {
        if (error != ENOSPC && error != EDQUOT && error != EFBIG)
            fail(error, folder + ": cannot reserve " + std::to_string(size) + " bytes for the output");
        fail(error, folder + ": no room for the output (" + std::to_string(size) + " bytes needed, " +
                        std::to_string(free_bytes(folder)) + " free)");
    };
    // Asked first: a reservation that fails has filled the disk for a moment. Some file systems say 0 and have room.
    const uint64_t free = free_bytes(folder);
    if (free != 0 && free < size) too_full(ENOSPC);
#ifdef __linux__
    // Not posix_fallocate: where the file system has no reservation, that one writes every block.
    if (repeated([&] { return fallocate(file, 0, 0, static_cast<off_t>(size)); }) == 0) return;
    if (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL) too_full(errno);
#elif defined(__APPLE__)
    fstore_t want = {F_ALLOCATEALL, F_PEOFPOSMODE, 0, static_cast<off_t>(size), 0};
    if (fcntl(file, F_PREALLOCATE, &want) != 0 && errno == ENOSPC) too_full(errno);
#endif
    if (free_bytes(folder) < size) too_full(ENOSPC);
    if (repeated([&] { return ftruncate(file, static_cast<off_t>(size)); }) != 0) too_full(errno);
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
        const int claimed =
            repeated([&] { return ::open(target.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0666); });
        if (claimed < 0) fail(errno, target + ": cannot be created");
        ::close(claimed);
    }
    if (std::rename(pending.temporary.c_str(), target.c_str()) != 0) {
        const int error = errno;
        if (!replace) unlink(target.c_str());  // which was made for this rename
        fail(error, target + (replace ? ": cannot be replaced" : ": cannot be created"));
    }
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

}  // namespace sds::os
