/* What a failing disk or an odd file system does, for tests: preloaded, it makes calls fail on purpose.
 *
 * SDS_FAULT_READ = "K KIND": the K-th positioned read (from 1) of a file whose path holds SDS_FAULT_PATH fails by KIND:
 * EIO, ESTALE, EINTR (once), SHORT (half of it), CUT (nothing more, now and later). SDS_FAULT_CALL = "CALL K ERROR": the
 * K-th call of that name fails, of those about a file under SDS_FAULT_PATH (of pthread_create: of all).
 * SDS_FAULT_NO_TMPFILE: no nameless files. SDS_FAULT_NO_LINK: no hard links, and no rename that spares its target when
 * the value is "2".
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REAL(type, name) ((type)dlsym(RTLD_NEXT, name))

static atomic_long reads, calls, fired;

void sds_faults_begin(void) { reads = calls = fired = 0; }
long sds_faults_fired(void) { return fired; }

static int is_meant(int file) {
    const char* wanted = getenv("SDS_FAULT_PATH");
    char link[64], path[4096];
    if (wanted == NULL) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    const ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strstr(path, wanted) != NULL;
}

/* -1 with errno, 0 for the end of the file, or how many bytes to read. */
static ssize_t allowed(int file, size_t bytes) {
    const char* fault = getenv("SDS_FAULT_READ");
    if (fault == NULL || !is_meant(file)) return (ssize_t)bytes;
    char kind[16] = "";
    long which = 0;
    sscanf(fault, "%ld %15s", &which, kind);
    const long number = atomic_fetch_add(&reads, 1) + 1;
    const int is_cut = strcmp(kind, "CUT") == 0;
    if (is_cut ? number < which : number != which) return (ssize_t)bytes;
    fired = 1;
    if (is_cut) return 0;
    if (strcmp(kind, "SHORT") == 0) return bytes > 1 ? (ssize_t)(bytes / 2) : (ssize_t)bytes;
    errno = strcmp(kind, "ESTALE") == 0 ? ESTALE : strcmp(kind, "EINTR") == 0 ? EINTR : EIO;
    return -1;
}

ssize_t pread64(int file, void* to, size_t bytes, off64_t offset) {
    static ssize_t (*real)(int, void*, size_t, off64_t);
    if (real == NULL) real = (ssize_t(*)(int, void*, size_t, off64_t))dlsym(RTLD_NEXT, "pread64");
    const ssize_t now = allowed(file, bytes);
    return now <= 0 ? now : real(file, to, (size_t)now, offset);
}

ssize_t pread(int file, void* to, size_t bytes, off_t offset) { return pread64(file, to, bytes, offset); }

ssize_t read(int file, void* to, size_t bytes) {
    static ssize_t (*real)(int, void*, size_t);
    if (real == NULL) real = (ssize_t(*)(int, void*, size_t))dlsym(RTLD_NEXT, "read");
    const ssize_t now = allowed(file, bytes);
    return now <= 0 && bytes > 0 ? now : real(file, to, (size_t)now);
}

static int error_of(const char* name) {
    static const struct {
        const char* name;
        int error;
    } known[] = {{"EIO", EIO},       {"ENOSPC", ENOSPC}, {"EINTR", EINTR},   {"EACCES", EACCES}, {"EDQUOT", EDQUOT},
                 {"EPERM", EPERM},   {"ESTALE", ESTALE}, {"EROFS", EROFS},   {"ENOMEM", ENOMEM}, {"EAGAIN", EAGAIN},
                 {"EMFILE", EMFILE}, {"EINVAL", EINVAL}, {"ENOSYS", ENOSYS}, {"EOPNOTSUPP", EOPNOTSUPP}, {"EEXIST", EEXIST}, {"ENOENT", ENOENT}};
    for (size_t k = 0; k < sizeof known / sizeof *known; ++k) {
        if (strcmp(name, known[k].name) == 0) return known[k].error;
    }
    abort();
}

/* Whether this call is the one that fails; errno is set then. */
static int strikes(const char* call, int meant) {
    const char* fault = getenv("SDS_FAULT_CALL");
    char name[24] = "", error[16] = "";
    long which = 0;
    if (fault == NULL || !meant || sscanf(fault, "%23s %ld %15s", name, &which, error) != 3) return 0;
    if (strcmp(name, call) != 0 || atomic_fetch_add(&calls, 1) + 1 != which) return 0;
    fired = 1;
    errno = error_of(error);
    return 1;
}

/* A path that is relative belongs to the folder of the test. */
static int is_path_meant(const char* path) {
    const char* wanted = getenv("SDS_FAULT_PATH");
    return wanted != NULL && path != NULL && (path[0] != '/' || strstr(path, wanted) != NULL);
}

static int opened(const char* name, const char* path, int flags, mode_t mode) {
    if ((flags & O_TMPFILE) == O_TMPFILE && getenv("SDS_FAULT_NO_TMPFILE") != NULL) {
        errno = EOPNOTSUPP;
        return -1;
    }
    if (strikes("open", is_path_meant(path))) return -1;
    return REAL(int (*)(const char*, int, ...), name)(path, flags, mode);
}

#define OPEN(name)                                                                       \
    int name(const char* path, int flags, ...) {                                         \
        va_list more;                                                                    \
        va_start(more, flags);                                                           \
        const mode_t mode = (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(more, mode_t) : 0; \
        va_end(more);                                                                    \
        return opened(#name, path, flags, mode);                                         \
    }
OPEN(open)
OPEN(open64)

/* A call about an open file, and one about paths, with the real one behind it. */
#define OF_FILE(name, as, file, parameters, arguments)                        \
    int name parameters {                                                     \
        if (strikes(as, is_meant(file))) return -1;                           \
        return REAL(int (*) parameters, #name)arguments;                      \
    }
OF_FILE(fsync, "fsync", file, (int file), (file))
OF_FILE(fallocate, "fallocate", file, (int file, int mode, off_t at, off_t size), (file, mode, at, size))
OF_FILE(fallocate64, "fallocate", file, (int file, int mode, off64_t at, off64_t size), (file, mode, at, size))
OF_FILE(ftruncate, "ftruncate", file, (int file, off_t size), (file, size))
OF_FILE(ftruncate64, "ftruncate", file, (int file, off64_t size), (file, size))

int close(int file) { /* the file is closed even so, as Linux does it */
    const int meant = is_meant(file), result = REAL(int (*)(int), "close")(file);
    return strikes("close", meant) ? -1 : result;
}

ssize_t pwrite64(int file, const void* from, size_t bytes, off64_t offset) {
    if (strikes("pwrite", is_meant(file))) return -1;
    return REAL(ssize_t (*)(int, const void*, size_t, off64_t), "pwrite64")(file, from, bytes, offset);
}

ssize_t pwrite(int file, const void* from, size_t bytes, off_t offset) { return pwrite64(file, from, bytes, offset); }

void* mmap64(void* at, size_t size, int protection, int flags, int file, off64_t offset) {
    if (file >= 0 && strikes("mmap", is_meant(file))) return MAP_FAILED;
    return REAL(void* (*)(void*, size_t, int, int, int, off64_t), "mmap64")(at, size, protection, flags, file, offset);
}

void* mmap(void* at, size_t size, int protection, int flags, int file, off_t offset) {
    return mmap64(at, size, protection, flags, file, offset);
}

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*), void* argument) {
    if (strikes("pthread_create", 1)) return errno;
    typedef int (*Create)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
    return REAL(Create, "pthread_create")(thread, attributes, start, argument);
}

int unlink(const char* path) {
    if (strikes("unlink", is_path_meant(path))) return -1;
    return REAL(int (*)(const char*), "unlink")(path);
}

int rename(const char* from, const char* to) {
    if (strikes("rename", is_path_meant(to))) return -1;
    return REAL(int (*)(const char*, const char*), "rename")(from, to);
}

int link(const char* from, const char* to) {
    if (getenv("SDS_FAULT_NO_LINK") != NULL) {
        errno = EPERM;
        return -1;
    }
    if (strikes("link", is_path_meant(to))) return -1;
    return REAL(int (*)(const char*, const char*), "link")(from, to);
}

int linkat(int from_folder, const char* from, int to_folder, const char* to, int flags) {
    if (strikes("linkat", is_path_meant(to))) return -1;
    return REAL(int (*)(int, const char*, int, const char*, int), "linkat")(from_folder, from, to_folder, to, flags);
}

/* The native engine renames without replacing by its number, not every C library having the name. */
long syscall(long number, ...) {
    long given[6];
    va_list more;
    va_start(more, number);
    for (int k = 0; k < 6; ++k) given[k] = va_arg(more, long);
    va_end(more);
    if (number == SYS_renameat2) {
        const char* value = getenv("SDS_FAULT_NO_LINK");
        if (value != NULL && strcmp(value, "2") == 0) {
            errno = EINVAL;
            return -1;
        }
        if (strikes("renameat2", is_path_meant((const char*)given[3]))) return -1;
    }
    typedef long (*Syscall)(long, ...);
    return REAL(Syscall, "syscall")(number, given[0], given[1], given[2], given[3], given[4], given[5]);
}
