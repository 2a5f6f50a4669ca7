// The one error type of the native side. Python turns each code into an exception class and an exit code.
#pragma once

#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>

namespace sds {

enum class Code : int {
    invalid,         // an invalid argument (a bug of the caller, or a usage error)
    not_found,       // no such file or folder
    permission,      // the system refuses access
    not_regular,     // a directory, FIFO, device, socket or symlink loop where a file was expected
    io,              // a read or write failed
    truncated,       // a file ends before the data that its header describes
    changed,         // an input changed while it was being read
    no_space,        // the disk or quota is full
    exists,          // the target appeared meanwhile
    nonfinite,       // NaN or Inf in an input, and the policy is to refuse it
    overflow,        // a result does not fit the output dtype, and the policy is to refuse it
    cancelled,       // cancel() was called
    too_many_files,  // the system's limit on open files
    damaged,         // bytes differ from the checksum that their file states
    memory,          // no more memory, or threads, from the system
};

struct Error : std::runtime_error {
    Error(Code code, const std::string& message, int64_t job = -1)
        : std::runtime_error(message), code(code), job(job) {}
    Code code;
    int64_t job;  // index of the Job it happened in, -1 when it belongs to none
};

// The first exception of a thread takes some memory, and the process is ended where there is none. A thread that must
// survive that calls this while there is some.
inline void prepare_to_throw() noexcept {
    const volatile int none = std::uncaught_exceptions();  // without effects to a compiler, which leaves it out unused
    (void)none;
}

}  // namespace sds
