// What the POSIX side of os.h shares among its files.
#pragma once

#include <sys/types.h>

#include <cerrno>
#include <string>

#include "error.h"
#include "os.h"

namespace sds::os {

[[noreturn]] void fail(int error, const std::string& what);  // an Error by the system's number
const char* kind_of(mode_t mode);                            // of what is no regular file, in words

// A call of the system, made again as long as a signal interrupts it.
template <class Call>
auto repeated(const Call& call) {
    auto result = call();
    while (result < 0 && errno == EINTR) result = call();
    return result;
}

}  // namespace sds::os
