#include "apply.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <mutex>
#include <system_error>

#include "os.h"
#include "threads.h"

namespace sds {

namespace {

constexpr uint64_t kStretch = 16384;

// Calls task(number, scratch) for each number below `tasks`, on so many threads, and throws what one of them threw.
template <class Task>
void share_out(unsigned threads, uint64_t tasks, Task task) {
    std::atomic<uint64_t> next{0};
    std::mutex mutex;
    std::exception_ptr failure;
    const auto work = [&] {
        const os::IeeeMode ieee;
        Scratch scratch;
        try {
            for (uint64_t number = next++; number < tasks; number = next++) task(number, scratch);
        } catch (...) {
            next = tasks;
            std::lock_guard<std::mutex> lock(mutex);
            failure = std::current_exception();
        }
    };
    std::vector<std::thread> others;
    others.reserve(threads);
    try {
        for (unsigned i = 1; i < threads && i < tasks; ++i) others.push_back(started(work));
    } catch (const std::system_error&) {  // no more threads can be started
    }
    work();
    for (std::thread& thread : others) thread.join();
    if (failure) std::rethrow_exception(failure);
}

// The operands from element `first` on; room for those that stages add.
std::vector<Operand> behind(const std::vector<Operand>& operands, uint64_t first, size_t more = 0) {
    std::vector<Operand> here(operands);
    for (Operand& operand : here) operand.data += first * size_of(operand.dtype);
    here.resize(here.size() + more);
    return here;
}

// Reads the tensor for each stage.
void read_for_stages(Stages& stages, const std::vector<Operand>& operands, uint64_t count, unsigned threads) {
    for (size_t stage = 0; stage < stages.size(); ++stage) {
        stages.begin(stage);
        do {
            if (!stages.reads()) continue;
            if (stages.in_chunks()) {
                std::vector<std::vector<double>> found((count + kReduceChunk - 1) / kReduceChunk);
                const auto size = [count](uint64_t chunk) {
                    return std::min<uint64_t>(kReduceChunk, count - chunk * kReduceChunk);
                };
                share_out(threads, found.size(), [&](uint64_t chunk, Scratch& scratch) {
                    const uint64_t first = chunk * kReduceChunk;
                    found[chunk] = stages.of_chunk(first, behind(operands, first).data(), size(chunk), scratch);
                });
                for (uint64_t chunk = 0; chunk < found.size(); ++chunk) stages.add_chunk(found[chunk], size(chunk));
                continue;
            }
            share_out(1, 1, [&](uint64_t, Scratch& scratch) {
                for (uint64_t first = 0, n; first < count; first += n) {
                    n = std::min(Stages::kStretch, count - first);
                    stages.add(behind(operands, first).data(), n, scratch);
                }
            });
        } while (!stages.end());
    }
}

}  // namespace

Tally apply(const Program& program, const Numbers& numbers, const std::vector<Operand>& operands, uint8_t* out,
            DType out_dtype, Extents extents, Overflow policy, unsigned threads, const std::string& target_name) {
    const Target& target = target_named(target_name);
    if (operands.size() != static_cast<size_t>(program.inputs)) throw Error(Code::invalid, "wrong operand count");
    const os::IeeeMode ieee;
    const uint64_t count = extents.count, stretches = (count + kStretch - 1) / kStretch;
    if (threads == 0) threads = os::usable_cpus();
    threads = static_cast<unsigned>(std::max<uint64_t>(1, std::min<uint64_t>(threads, stretches / 8)));

    std::vector<DType> dtypes;
    for (const Operand& operand : operands) dtypes.push_back(operand.dtype);
    Stages stages(program, numbers, extents, dtypes, target);
    const Elementwise* last = nullptr;
    if (program.in_stages()) {
        read_for_stages(stages, operands, count, threads);
        last = &stages.last();
    }
    // The careful path reads the inputs a second time, so a result that replaces its input waits in a buffer.
    bool in_place = false;
    for (const Operand& operand : operands) {
        const uint8_t* end = operand.data + count * size_of(operand.dtype);
        in_place |= operand.data < out + count * size_of(out_dtype) && out < end;
    }
    std::mutex mutex;
    Tally total;
    share_out(threads, stretches, [&](uint64_t stretch, Scratch& scratch) {
        const uint64_t first = stretch * kStretch, n = std::min(kStretch, count - first);
        std::vector<Operand> here = behind(operands, first, last ? last->generated.size() : 0);
        if (last) stages.add_generated(*last, first, here.data());
        Tally tally;
        uint8_t* const to = out + first * size_of(out_dtype);
        std::vector<uint8_t> buffer(in_place ? n * size_of(out_dtype) : 0);
        target.evaluate(last ? *last->program : program, last ? *last->numbers : numbers, here.data(),
                        in_place ? buffer.data() : to, out_dtype, n, policy, tally, scratch);
        if (in_place) std::memcpy(to, buffer.data(), buffer.size());
        if (tally.nonfinite == 0 && tally.overflow == 0) return;
        std::lock_guard<std::mutex> lock(mutex);
        total.nonfinite += tally.nonfinite;
        total.overflow += tally.overflow;
    });
    return total;
}

}  // namespace sds
