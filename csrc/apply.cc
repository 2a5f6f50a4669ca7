#include "apply.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <system_error>
#include <thread>

#include "os.h"

namespace sds {

namespace {

// What one thread does: the tensor is read for each stage and for the result.
Tally apply_stages(const Program& program, const Numbers& numbers, const std::vector<Operand>& operands, uint8_t* out,
                   DType out_dtype, Extents extents, Overflow policy, const Target& target) {
    constexpr uint64_t kStretch = Stages::kStretch;
    const os::IeeeMode ieee;
    Scratch scratch;
    Tally tally;
    std::vector<DType> dtypes;
    for (const Operand& operand : operands) dtypes.push_back(operand.dtype);
    Stages stages(program, numbers, extents, dtypes, target);
    Operand here[Program::kMaxInputs];
    const auto at = [&](uint64_t first, uint64_t) {
        for (size_t k = 0; k < operands.size(); ++k)
            here[k] = {operands[k].data + first * size_of(operands[k].dtype), operands[k].dtype};
        return here;
    };
    stages.work_off(scratch, at);
    const Elementwise& last = stages.last();
    std::vector<uint8_t> buffer(kStretch * size_of(out_dtype));  // the result may replace an input
    for (uint64_t first = 0; first < extents.count; first += kStretch) {
        const uint64_t n = std::min(kStretch, extents.count - first);
        stages.add_generated(last, first, at(first, n));
        target.evaluate(*last.program, *last.numbers, here, buffer.data(), out_dtype, n, policy, tally, scratch);
        std::memcpy(out + first * size_of(out_dtype), buffer.data(), n * size_of(out_dtype));
    }
    return tally;
}

}  // namespace

Tally apply(const Program& program, const Numbers& numbers, const std::vector<Operand>& operands, uint8_t* out,
            DType out_dtype, Extents extents, Overflow policy, unsigned threads, const std::string& target_name) {
    const Target& target = target_named(target_name);
    if (operands.size() != static_cast<size_t>(program.inputs)) throw Error(Code::invalid, "wrong operand count");
    if (program.in_stages()) return apply_stages(program, numbers, operands, out, out_dtype, extents, policy, target);
    const uint64_t count = extents.count;
    // The careful path reads the inputs a second time, so a result that replaces its input waits in a buffer.
    bool in_place = false;
    for (const Operand& operand : operands) {
        const uint8_t* end = operand.data + count * size_of(operand.dtype);
        in_place |= operand.data < out + count * size_of(out_dtype) && out < end;
    }
    constexpr uint64_t kStretch = 16384;
    const uint64_t stretches = (count + kStretch - 1) / kStretch;
    if (threads == 0) threads = os::usable_cpus();
    threads = static_cast<unsigned>(std::max<uint64_t>(1, std::min<uint64_t>(threads, stretches / 8)));
    std::atomic<uint64_t> next{0};
    std::mutex mutex;
    Tally total;
    const auto work = [&] {
        const os::IeeeMode ieee;
        Scratch scratch;
        Tally tally;
        std::vector<uint8_t> buffer(in_place ? kStretch * size_of(out_dtype) : 0);
        std::vector<Operand> here(operands);
        for (uint64_t stretch = next++; stretch < stretches; stretch = next++) {
            const uint64_t first = stretch * kStretch, n = std::min(kStretch, count - first);
            for (size_t k = 0; k < operands.size(); ++k)
                here[k].data = operands[k].data + first * size_of(operands[k].dtype);
            uint8_t* to = out + first * size_of(out_dtype);
            target.evaluate(program, numbers, here.data(), in_place ? buffer.data() : to, out_dtype, n, policy, tally,
                            scratch);
            if (in_place) std::memcpy(to, buffer.data(), n * size_of(out_dtype));
        }
        std::lock_guard<std::mutex> lock(mutex);
        total.nonfinite += tally.nonfinite;
        total.overflow += tally.overflow;
    };
    std::vector<std::thread> others;
    try {
        for (unsigned i = 1; i < threads; ++i) others.emplace_back(work);
    } catch (const std::system_error&) {  // no more threads can be started
    }
    work();
    for (std::thread& thread : others) thread.join();
    return total;
}

}  // namespace sds
