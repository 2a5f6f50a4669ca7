/* What a failing disk or an odd file system does, for tests: preloaded, it makes calls fail on purpose.
 *
 * SDS_FAULT_READ = "K KIND": the K-th positioned read (from 1) of a file whose path holds SDS_FAULT_PATH fails by KIND:
 * EIO, ESTALE, EINTR (once), SHORT (half of it), CUT (nothing more, now and later). SDS_FAULT_NO_TMPFILE: no nameless
 * files. SDS_FAULT_NO_LINK: no hard links, and no rename that spares its target when the value is "2".
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static atomic_long reads, fired;

void sds_faults_begin(void) { reads = fired = 0; }
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

static int opened(const char* name, const char* path, int flags, mode_t mode) {
    if ((flags & O_TMPFILE) == O_TMPFILE && getenv("SDS_FAULT_NO_TMPFILE") != NULL) {
        errno = EOPNOTSUPP;
        return -1;
    }
    int (*real)(const char*, int, ...) = (int (*)(const char*, int, ...))dlsym(RTLD_NEXT, name);
    return real(path, flags, mode);
}

int open(const char* path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    const mode_t mode = (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(more, mode_t) : 0;
    va_end(more);
    return opened("open", path, flags, mode);
}

int open64(const char* path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    const mode_t mode = (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(more, mode_t) : 0;
    va_end(more);
    return opened("open64", path, flags, mode);
}

int link(const char* from, const char* to) {
    if (getenv("SDS_FAULT_NO_LINK") != NULL) {
        errno = EPERM;
        return -1;
    }
    return ((int (*)(const char*, const char*))dlsym(RTLD_NEXT, "link"))(from, to);
}

int renameat2(int from_folder, const char* from, int to_folder, const char* to, unsigned flags) {
    const char* value = getenv("SDS_FAULT_NO_LINK");
    if (value != NULL && strcmp(value, "2") == 0) {
        errno = EINVAL;
        return -1;
    }
    typedef int (*Rename)(int, const char*, int, const char*, unsigned);
    return ((Rename)dlsym(RTLD_NEXT, "renameat2"))(from_folder, from, to_folder, to, flags);
}
