// POSIX: mapped files, and the fault that one which shrinks makes.
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <csetjmp>
#include <csignal>
#include <mutex>

#include "os_posix.h"

namespace sds::os {

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

}  // namespace sds::os
