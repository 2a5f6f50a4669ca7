// Starts threads that have what they need: where a thread's own variables get no memory, the system ends the process.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <utility>

#include "error.h"

namespace sds {

// Memory of the heap that nobody else gets meanwhile, as pieces that stay there when they are free: a large one would
// go back to the system, and from there to whoever asks first.
class KeptFree {
 public:
    KeptFree() {
        for (void*& piece : pieces_) piece = std::malloc(8 << 10);
    }
    KeptFree(const KeptFree&) = delete;
    ~KeptFree() {
        for (void* piece : pieces_) std::free(piece);
    }
    bool is_enough() const {
        return std::all_of(std::begin(pieces_), std::end(pieces_), [](const void* piece) { return piece != nullptr; });
    }

 private:
    void* pieces_[8];
};

// A thread that does `work`. Some memory is kept free for it until its own variables have theirs. Throws
// std::system_error where there is too little, and where the system starts no more threads.
template <class Work>
std::thread started(Work work) {
    std::mutex mutex;
    std::condition_variable changed;
    bool may_go = false, is_ready = false;
    try {
        auto kept = std::make_unique<KeptFree>();
        if (!kept->is_enough()) throw std::bad_alloc();
        std::thread thread([&mutex, &changed, &may_go, &is_ready, work]() mutable {
            {
                std::unique_lock<std::mutex> lock(mutex);
                while (!may_go) changed.wait(lock);
                prepare_to_throw();
                is_ready = true;
                changed.notify_all();  // under the lock: the starter's variables go as soon as it has that
            }
            work();
        });
        kept.reset();
        std::unique_lock<std::mutex> lock(mutex);
        may_go = true;
        changed.notify_all();
        while (!is_ready) changed.wait(lock);
        return thread;
    } catch (const std::bad_alloc&) {
        throw std::system_error(std::make_error_code(std::errc::resource_unavailable_try_again));
    }
}

}  // namespace sds
